import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig

import fsqcodec
from fsqcodec import CodecConfig, CodecModel
from fsqcodec.models import convolution
from fsqcodec.models.codec_facts import CodecFacts, OneRateFacts
from fsqcodec.models.configuration_codec import PRESETS
from fsqcodec.models.convolution import ClipNorm
from small_configs import SMALL_CONFIGS, small_config, small_model

OWN_FIELDS = list(CodecConfig.__annotations__)
DERIVED = [
    name
    for owner in (CodecFacts, OneRateFacts, CodecConfig)
    for name, value in vars(owner).items()
    if isinstance(value, property)
]
InvalidConfig = (ValueError, StrictDataclassClassValidationError)

PRESET_TABLE = [  # name, sampling_rate, tokens per second, codebook_size, bit/s
    ("l3ac-0k75bps", 16000, "44.44", 117649, "748.6"),
    ("l3ac-1kbps", 16000, "59.26", 117649, "998.2"),
    ("l3ac-1k5bps", 16000, "88.89", 117649, "1497.3"),
    ("l3ac-3kbps", 16000, "166.67", 250047, "2988.6"),
    ("sqcodec-0k75bps", 16000, "44.44", 117649, "748.6"),
    ("sqcodec-1k5bps", 16000, "88.89", 117649, "1497.3"),
    ("sqcodec-3kbps", 16000, "177.78", 117649, "2994.5"),
    ("sqcodec-6kbps", 16000, "355.56", 117649, "5989.0"),
    ("sqcodec-12kbps", 16000, "666.67", 250047, "11954.6"),
    ("sqcodec-12kbps-24khz", 24000, "666.67", 250047, "11954.6"),
    ("sqcodec-24kbps-24khz", 24000, "1333.33", 250047, "23909.1"),
    ("speech-3kbps", 16000, "166.67", 250047, "2988.6"),
]
PRESET_NAMES = [row[0] for row in PRESET_TABLE]


@pytest.mark.parametrize(
    "name, sampling_rate, frame_rate, codebook_size, bitrate", PRESET_TABLE, ids=[row[0] for row in PRESET_TABLE]
)
def test_preset_has_the_published_rates(name, sampling_rate, frame_rate, codebook_size, bitrate):
    config = CodecConfig.from_preset(name)
    assert config.sampling_rate == sampling_rate
    assert f"{config.frame_rate:.2f}" == frame_rate
    assert config.codebook_size == codebook_size
    assert f"{config.bitrate:.1f}" == bitrate


def test_presets_are_listed_in_the_order_of_family_and_rate():
    listed = fsqcodec.list_presets()
    assert [name for name in listed if name in PRESET_NAMES] == PRESET_NAMES
    assert fsqcodec.list_presets("l3ac") == PRESET_NAMES[:4]
    assert fsqcodec.list_presets(family="sqcodec") == PRESET_NAMES[4:-1]
    assert fsqcodec.list_presets("speech") == PRESET_NAMES[-1:]


def test_listed_presets_can_be_changed_without_changing_the_list():
    fsqcodec.list_presets().clear()
    assert fsqcodec.list_presets()


@pytest.mark.parametrize("family", ["encodec", "", "l3", "l3ac-1kbps"])
def test_unknown_family_is_refused_with_the_known_ones(family):
    with pytest.raises(ValueError, match=f"no family '{family}'.*l3ac, sqcodec, speech"):
        fsqcodec.list_presets(family)


def test_unknown_preset_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="no preset 'l3ac-2kbps'.*" + ", ".join(PRESET_NAMES)):
        CodecConfig.from_preset("l3ac-2kbps")


def test_override_replaces_one_field_of_a_preset_and_leaves_the_preset_alone():
    config = CodecConfig.from_preset("l3ac-1kbps", attention_window_size=10)
    plain = CodecConfig.from_preset("l3ac-1kbps")
    assert config.attention_window_size == 10
    assert plain.attention_window_size == 250
    assert {name for name in OWN_FIELDS if getattr(config, name) != getattr(plain, name)} == {"attention_window_size"}


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_preset_sets_no_unknown_field_and_every_sqcodec_pads_to_a_window(name):
    assert set(PRESETS[name]) <= set(OWN_FIELDS)
    config = CodecConfig.from_preset(name)
    assert config.padding_frames == (config.attention_window_size if name.startswith("sqcodec") else 1)


def test_rates_follow_from_the_fields():
    config = small_config("l3ac-coarse")
    assert config.hop_length == 3 * 2 * 3
    assert config.frame_rate == 16000 / 18
    assert config.num_codebooks == 1
    assert config.codebook_size == 7 * 7 * 5
    assert 2**config.bits_per_frame == pytest.approx(245)
    assert config.bitrate == config.frame_rate * config.bits_per_frame
    assert config.padding_multiple == 18
    assert small_config("sqcodec-fine").padding_multiple == 15 * 10


def test_frame_rate_is_not_rounded():
    assert CodecConfig.from_preset("l3ac-1kbps").frame_rate == 16000 / 270


@pytest.mark.parametrize("name", ["levls", *DERIVED])
def test_unknown_or_derived_keyword_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"no field '{name}'"):
        CodecConfig(**{name: 3})
    with pytest.raises(TypeError, match=f"no field '{name}'"):
        CodecConfig.from_preset("l3ac-1kbps", **{name: 3})
    with pytest.raises(TypeError, match=rf"no field ('\w+', )*'{name}'"):
        CodecConfig.from_dict({**CodecConfig().to_diff_dict(), name: 3})


def test_every_unknown_keyword_is_named():
    with pytest.raises(TypeError, match="no field 'depth', 'levls'; it has: sampling_rate, latent_dim"):
        CodecConfig(levls=(7, 7), depth=3)


@pytest.mark.parametrize("load", [CodecConfig.from_pretrained, AutoConfig.from_pretrained], ids=["class", "auto"])
@pytest.mark.parametrize("name", ["levls", "hop_length"])
def test_tampered_config_file_is_refused(tmp_path, name, load):
    CodecConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 3}))
    with pytest.raises(TypeError, match=f"no field '{name}'"):
        load(tmp_path)


def test_positional_arguments_are_refused():
    with pytest.raises(ValueError, match="only keyword arguments"):
        CodecConfig(16000)


INT_FIELDS = [
    "sampling_rate",
    "latent_dim",
    "transformer_downsampling_ratio",
    "attention_window_size",
    "num_attention_heads",
    "head_dim",
    "padding_frames",
]
LIST_FIELDS = [name for name in OWN_FIELDS if isinstance(getattr(CodecConfig, name, None), tuple)]
CHOICE_FIELDS = ["encoder_stem", "decoder_head", "enhance_normalization", "quantizer_bound"]


def test_every_field_is_covered_by_the_validation_tests():
    assert {*INT_FIELDS, *LIST_FIELDS, *CHOICE_FIELDS, "norm_eps"} == set(OWN_FIELDS)


@pytest.mark.parametrize("name", INT_FIELDS)
def test_numbers_below_one_are_refused(name):
    for value in (0, -1):
        with pytest.raises(InvalidConfig, match=f"{name} is {value}: .* none below 1"):
            CodecConfig(**{name: value})


@pytest.mark.parametrize("name", LIST_FIELDS)
def test_empty_lists_and_low_numbers_in_lists_are_refused(name):
    lowest = 0 if "depths" in name else 2 if name == "quantization_levels" else 1
    with pytest.raises(InvalidConfig, match=rf"{name} is \(\): it needs at least one number, none below {lowest}"):
        CodecConfig(**{name: ()})
    with pytest.raises(InvalidConfig, match=rf"{name} is .*{lowest - 1}\): .* none below {lowest}"):
        CodecConfig(**{name: (*getattr(CodecConfig, name)[:-1], lowest - 1)})


INCONSISTENT = {
    "encoder-sizes": (
        {"encoder_hidden_sizes": (24, 48, 96)},
        "encoder_hidden_sizes has 3 numbers, downsampling_ratios has 3: encoder_hidden_sizes needs 4",
    ),
    "encoder-depths": (
        {"encoder_depths": (1, 1, 1)},
        "encoder_depths has 3 numbers, downsampling_ratios has 3: encoder_depths needs 4",
    ),
    "decoder-sizes": (
        {"decoder_hidden_sizes": (24, 24, 24, 24)},
        "decoder_hidden_sizes has 4 numbers, upsampling_ratios has 4: decoder_hidden_sizes needs 5",
    ),
    "decoder-depths": (
        {"decoder_depths": (1, 1, 1, 1, 1)},
        "decoder_depths has 5 numbers, upsampling_ratios has 4: decoder_depths needs 4",
    ),
    "ratios": (
        {"upsampling_ratios": (5, 3, 3, 3)},
        r"\(6, 5, 3\) and upsampling_ratios \(5, 3, 3, 3\) multiply to 90 and 135: the products must be equal",
    ),
    "encoder-transformer": (
        {"encoder_transformer_depths": (1, 1, 1)},
        r"encoder_transformer_depths is \(1, 1, 1\): it needs two numbers",
    ),
    "decoder-transformer": (
        {"decoder_transformer_depths": (3,)},
        r"decoder_transformer_depths is \(3,\): it needs two numbers",
    ),
    "fine-encoder-layers": (
        {"transformer_downsampling_ratio": 1, "decoder_transformer_depths": (3, 0)},
        r"there is only the frame rate: .* not \(1, 2\) and \(3, 0\)",
    ),
    "fine-decoder-layers": (
        {"transformer_downsampling_ratio": 1, "encoder_transformer_depths": (0, 2)},
        r"there is only the frame rate: .* not \(0, 2\) and \(3, 2\)",
    ),
    "eps-zero": ({"norm_eps": 0.0}, "norm_eps is 0.0: it must lie between 0 and 1"),
    "eps-negative": ({"norm_eps": -1e-6}, "norm_eps is -1e-06: it must lie between 0 and 1"),
    "eps-nan": ({"norm_eps": float("nan")}, "norm_eps is nan: it must lie between 0 and 1"),
    "frames-stem": (
        {"encoder_stem": "frames"},
        r"downsampling_ratios is \(6, 5, 3\): with encoder_stem 'frames' it needs one number",
    ),
    "frames-stem-depths": (
        {"encoder_stem": "frames", "downsampling_ratios": (90,), "encoder_hidden_sizes": (24,)},
        r"encoder_depths is \(1, 1, 1, 2\): with encoder_stem 'frames' it needs one number",
    ),
    "frames-head-sizes": (
        {"decoder_head": "frames", "upsampling_ratios": (90,)},
        r"decoder_hidden_sizes is \(512, 256, 96, 48, 24\): with decoder_head 'frames' it needs one number",
    ),
    "frames-head-odd": (
        {"decoder_head": "frames", "upsampling_ratios": (45,), "decoder_hidden_sizes": (8,), "decoder_depths": (1,)},
        r"upsampling_ratios is \(45,\): with decoder_head 'frames' it needs an even number of 4 or more",
    ),
    "frames-head-short": (
        {"decoder_head": "frames", "upsampling_ratios": (2,), "decoder_hidden_sizes": (8,), "decoder_depths": (1,)},
        r"upsampling_ratios is \(2,\): with decoder_head 'frames' it needs an even number of 4 or more",
    ),
    "codebook": ({"quantization_levels": (2,) * 63}, "make 9223372036854775808 codes: indices are int64"),
}


@pytest.mark.parametrize("fields, message", INCONSISTENT.values(), ids=INCONSISTENT)
def test_inconsistent_fields_are_refused(fields, message):
    with pytest.raises(InvalidConfig, match=message):
        CodecConfig(**fields)


def test_largest_codebook_that_int64_holds_is_accepted():
    assert CodecConfig(quantization_levels=(2,) * 62).codebook_size == 2**62
    assert CodecConfig(quantization_levels=(2**63 - 1,)).codebook_size == 2**63 - 1


@pytest.mark.parametrize("name", INT_FIELDS)
@pytest.mark.parametrize("value", ["16", 16.0, True, None], ids=repr)
def test_numbers_of_another_type_are_refused(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{name}' expected int, got {type(value).__name__}"):
        CodecConfig(**{name: value})


@pytest.mark.parametrize("name", LIST_FIELDS)
@pytest.mark.parametrize("value", [3, "3", [3, 3.0], (3, True), None], ids=repr)
def test_lists_of_another_type_are_refused(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{name}'.*doesn't match any type"):
        CodecConfig(**{name: value})


@pytest.mark.parametrize(
    "fields", [*({name: "other"} for name in CHOICE_FIELDS), {"norm_eps": 1}, {"norm_eps": "1e-8"}], ids=str
)
def test_other_fields_of_another_type_are_refused(fields):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        CodecConfig(**fields)


def test_assigning_another_type_is_refused():
    config = CodecConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="'latent_dim' expected int, got str"):
        config.latent_dim = "128"
    with pytest.raises(AttributeError, match="hop_length"):
        config.hop_length = 270


ALL_CONFIGS = {**PRESETS, **SMALL_CONFIGS}


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_every_field_survives_the_config_file(tmp_path, name):
    config = CodecConfig(**ALL_CONFIGS[name])
    config.save_pretrained(tmp_path)
    for loaded in (CodecConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is CodecConfig
        ignored = {"_name_or_path", "transformers_version", "auto_map"}
        assert without(loaded.to_dict(), ignored) == without(config.to_dict(), ignored)
        for field, value in ALL_CONFIGS[name].items():
            loaded_value = getattr(loaded, field)
            assert (tuple(loaded_value) if isinstance(value, tuple) else loaded_value) == value, field


def without(dictionary: dict, names: set) -> dict:
    return {name: value for name, value in dictionary.items() if name not in names}


def test_config_survives_a_second_save_unchanged(tmp_path):
    small_config("sqcodec-fine").save_pretrained(tmp_path / "first")
    CodecConfig.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "first/config.json").read_text() == (tmp_path / "second/config.json").read_text()


def test_config_is_made_from_its_own_dictionary():
    config = small_config("sqcodec-coarse")
    assert CodecConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_config_file_holds_every_field_and_no_derived_value(tmp_path, name):
    assert {"hop_length", "frame_rate", "codebook_size", "bitrate", "encoder_lookahead_samples"} <= set(DERIVED)
    CodecConfig.from_preset(name).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(OWN_FIELDS) <= set(saved)
    assert set(saved) <= {*OWN_FIELDS, "model_type", "transformers_version", "auto_map"}


def test_model_type_belongs_to_nobody_else():
    script = "from transformers.models.auto.configuration_auto import CONFIG_MAPPING; print('codec' in CONFIG_MAPPING)"
    for imports, expected in (("", "False"), ("import fsqcodec; ", "True")):
        run = subprocess.run([sys.executable, "-c", imports + script], capture_output=True, text=True, check=True)
        assert run.stdout.split() == [expected]


def check_encoder_lookahead(model: CodecModel, frame: int):
    """The frame's latents depend on the last sample the property names, and on none after it.

    Trend pools hear the loudest sample of a window only, so the audio grows louder: the last one is always it.
    """
    config = model.config
    first_unheard = (frame + 1) * config.hop_length + config.encoder_lookahead_samples
    generator = torch.Generator().manual_seed(0)
    loudness = torch.linspace(0.05, 0.9, first_unheard + 2 * config.hop_length + 60, dtype=torch.float64)
    signs = torch.randint(0, 2, loudness.shape, generator=generator) * 2 - 1
    audio = (loudness * signs)[None, None].requires_grad_()
    latents = model.encode(audio, output_latents=True).latents[0, :, frame]
    direction = torch.randn(latents.shape, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(latents @ direction, audio)
    assert gradient[0, 0].nonzero().max() == first_unheard - 1


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@pytest.mark.parametrize("frame", [0, 7, 31])
def test_frame_hears_its_lookahead_and_nothing_after_it(name, frame):
    check_encoder_lookahead(small_model(name).double(), frame)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESET_NAMES)
def test_frame_of_a_preset_hears_its_lookahead_and_nothing_after_it(name):
    check_encoder_lookahead(CodecModel(CodecConfig.from_preset(name)).eval().double(), frame=5)


def frames_heard(model: CodecModel, frame: int, num_frames: int) -> torch.Tensor:
    """Bool `(num_frames,)`: which of the decoder's input frames have a gradient from the audio of `frame`."""
    hop_length = model.config.hop_length
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, num_frames, model.config.latent_dim, generator=generator, requires_grad=True)
    audio = model.decoder(features, None)[0, frame * hop_length : (frame + 1) * hop_length, 0]
    (gradient,) = torch.autograd.grad(audio @ torch.randn(audio.shape, generator=generator), features)
    return gradient[0].any(dim=-1)


def check_decoder_lookahead(model: CodecModel, frame: int, monkeypatch):
    """The audio of a frame depends on the frames within its lookahead, all of them and no other."""
    config = model.config
    lookahead_stop = (frame + 1) * config.hop_length + config.decoder_lookahead_samples
    first_unheard = -(-lookahead_stop // config.hop_length)
    heard = frames_heard(model, frame, first_unheard + 4)
    assert heard[frame : frame + 2].all()
    assert not heard[first_unheard:].any()

    # A maximum has a gradient to one step of its window only; a mean over the same window has it to all of them.
    monkeypatch.setattr(convolution, "trend_pool", mean_trend)
    heard = frames_heard(model, frame, first_unheard + 4)
    assert heard[frame:first_unheard].all()
    assert not heard[first_unheard:].any()


def mean_trend(signal, kernel_size, mask):
    for _ in range(2 if kernel_size > 1 else 0):
        signal = torch.nn.functional.avg_pool1d(signal, kernel_size, stride=1, padding=kernel_size // 2)
    return signal


@pytest.fixture
def constant_statistics(monkeypatch):
    """The clip-wide statistics of the enhance blocks, through which all frames hear each other, without gradient."""
    statistics = ClipNorm.statistics

    def detached(self, x, mask):
        return tuple(statistic.detach() for statistic in statistics(self, x, mask))

    monkeypatch.setattr(ClipNorm, "statistics", detached)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@pytest.mark.parametrize("frame", [0, 7, 31])
def test_audio_of_a_frame_hears_its_lookahead_and_nothing_after_it(name, frame, constant_statistics, monkeypatch):
    check_decoder_lookahead(small_model(name), frame, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESET_NAMES)
def test_audio_of_a_frame_of_a_preset_hears_its_lookahead_and_nothing_after_it(name, constant_statistics, monkeypatch):
    check_decoder_lookahead(CodecModel(CodecConfig.from_preset(name)).eval(), frame=2, monkeypatch=monkeypatch)


def test_audio_of_a_frame_hears_the_whole_clip_through_its_statistics():
    model = small_model("l3ac-coarse")
    features = torch.randn(1, 60, model.config.latent_dim, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.decoder(features, None)[0, : model.config.hop_length].sum(), features)
    assert gradient[0].any(dim=-1).all()


def check_encoder_context(model: CodecModel):
    """The last frame of a block depends on the first sample the property allows, and on none before it; the next
    frame, first of its block, on a block less if there is attention."""
    config = model.config
    num_layers = sum(config.encoder_transformer_depths)
    last = (num_layers + 2) * config.attention_window_size - 1
    frames_less = config.attention_window_size - 1 if num_layers else 0
    generator = torch.Generator().manual_seed(0)
    num_samples = (last + 2) * config.hop_length + config.encoder_lookahead_samples
    loudness = torch.linspace(0.9, 0.05, num_samples, dtype=torch.float64)  # of each trend pool the first is loudest
    signs = torch.randint(0, 2, loudness.shape, generator=generator) * 2 - 1
    audio = (loudness * signs)[None, None].requires_grad_()
    latents = model.encode(audio, output_latents=True).latents[0].T
    directions = torch.randn(latents.shape, dtype=torch.float64, generator=generator)
    for frame, unheard_frames in ((last, 0), (last + 1, frames_less)):
        (gradient,) = torch.autograd.grad(latents[frame] @ directions[frame], audio, retain_graph=True)
        context = config.encoder_context_samples - unheard_frames * config.hop_length
        assert gradient[0, 0].nonzero().min() == frame * config.hop_length - context


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_frame_hears_its_context_and_nothing_before_it(name):
    check_encoder_context(small_model(name).double())


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESET_NAMES)
def test_frame_of_a_preset_hears_its_context_and_nothing_before_it(name):
    check_encoder_context(CodecModel(CodecConfig.from_preset(name, attention_window_size=16)).eval().double())


def check_decoder_context(model: CodecModel):
    """Of all frames of a block, the one that looks back furthest depends on the first frame the property allows."""
    config = model.config
    context_frames, rest = divmod(config.decoder_context_samples, config.hop_length)
    assert rest == 0
    frames = range(context_frames + 2, context_frames + 2 + config.attention_window_size)
    num_frames = frames.stop + config.decoder_lookahead_samples // config.hop_length
    first_heard = [int(frames_heard(model, frame, num_frames).nonzero().min()) for frame in frames]
    assert max(frame - first for frame, first in zip(frames, first_heard)) == context_frames


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_audio_of_a_frame_hears_its_context_and_nothing_before_it(name, constant_statistics, monkeypatch):
    monkeypatch.setattr(convolution, "trend_pool", mean_trend)
    check_decoder_context(small_model(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESET_NAMES)
def test_audio_of_a_frame_of_a_preset_hears_its_context_and_nothing_before_it(name, constant_statistics, monkeypatch):
    monkeypatch.setattr(convolution, "trend_pool", mean_trend)
    check_decoder_context(CodecModel(CodecConfig.from_preset(name, attention_window_size=6)).eval())


def test_without_attention_context_equals_lookahead():
    config = small_config("l3ac-coarse", encoder_transformer_depths=(0, 0), decoder_transformer_depths=(0, 0))
    assert config.encoder_context_samples == config.encoder_lookahead_samples
    assert config.decoder_context_samples == config.decoder_lookahead_samples


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_audio_of_a_frame_waits_for_its_algorithmic_latency(name, constant_statistics, monkeypatch):
    monkeypatch.setattr(convolution, "trend_pool", mean_trend)
    model, frame = small_model(name).double(), 7
    config = model.config
    num_samples = round(config.algorithmic_latency * config.sampling_rate)
    generator = torch.Generator().manual_seed(0)
    audio = 0.1 * torch.randn(1, 1, 3 * num_samples, dtype=torch.float64, generator=generator)
    decoded = model(audio.requires_grad_()).audio_values[0, 0, frame * config.hop_length :][: config.hop_length]
    (gradient,) = torch.autograd.grad(decoded.square().sum(), audio)
    assert gradient[0, 0].nonzero().max() == frame * config.hop_length + num_samples - 1
