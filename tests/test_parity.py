"""Same weights, same input, same codes, same audio as the original packages, through their own file format."""

import pytest
import torch
from transformers import AutoModel

from clips import speech
from fsqcodec import CodecConfig, convert_checkpoint, list_presets
from fsqcodec.conversion.originals import ORIGINS, OriginalCodec
from fsqcodec.conversion.verification import Agreement, compare_with_original
from small_configs import SMALL_CONFIGS

pytest.importorskip("l3ac", reason="the original package l3ac is not installed: pip install fsqcodec[originals]")
pytest.importorskip(
    "sq_codec", reason="the original package sq_codec is not installed: pip install fsqcodec[originals]"
)

FAST_PRESETS = ("l3ac-1kbps", "sqcodec-1k5bps")
NAMES = [name for name in (*SMALL_CONFIGS, *list_presets()) if name.split("-")[0] in ORIGINS]


def _case(name: str):
    return pytest.param(name, marks=[] if name in FAST_PRESETS or name in SMALL_CONFIGS else pytest.mark.slow)


def _config(name: str) -> CodecConfig:
    return CodecConfig(**SMALL_CONFIGS[name]) if name in SMALL_CONFIGS else CodecConfig.from_preset(name)


@pytest.fixture(scope="module", params=[_case(name) for name in NAMES])
def original_and_model(request, tmp_path_factory):
    """The original with random weights, and ours loaded from the conversion of its files."""
    config = _config(request.param)
    origin = request.param.split("-")[0]
    original = OriginalCodec(origin, config)
    original.randomize(seed=0, clip=speech(config.sampling_rate)[: 5 * config.sampling_rate])
    folder = tmp_path_factory.mktemp(request.param)
    original.save(folder / "original")
    convert_checkpoint(origin, folder / "original", folder / "converted", config=config)
    return original, AutoModel.from_pretrained(folder / "converted", dtype=torch.float32)


def _lengths(config: CodecConfig) -> list[int]:
    """In samples: several attention windows, one, a few frames, one or two; multiples of the hop and not."""
    hop_length = config.hop_length
    window = config.attention_window_size * hop_length
    everything = min(len(speech(config.sampling_rate)), 5 * window)
    return [
        everything,
        min(2 * window, everything // hop_length * hop_length),
        min(window + hop_length // 2, everything),
        7 * hop_length,
        7 * hop_length + 1,
        (_shortest_decodable(config) - 1) * hop_length + 1,
    ]


def _shortest_decodable(config: CodecConfig) -> int:
    """Frames: torch's instance norm, which the originals use, refuses a single step. Ours decodes it."""
    return 1 if config.transformer_downsampling_ratio > 1 else 2


def test_codes_and_audio_equal_the_originals(original_and_model):
    original, model = original_and_model
    clip = speech(model.config.sampling_rate)
    agreement = Agreement()
    for length in _lengths(model.config):
        agreement += compare_with_original(original, model, clip[:length])
    assert agreement.holds, str(agreement)


@torch.no_grad()
def test_tokens_of_the_parity_clip_vary(original_and_model):
    """Random networks map all audio to a handful of tokens, for which any encoder would pass."""
    original, model = original_and_model
    clip = torch.from_numpy(speech(model.config.sampling_rate)[: 3000 * model.config.hop_length])[None, None]
    codes = model.encode(clip).audio_codes
    assert len(codes.unique()) > 50
    assert model.decode(codes).audio_values.std() > 0.05


@torch.no_grad()
def test_random_codes_decode_like_the_original(original_and_model):
    original, model = original_and_model
    window = model.config.attention_window_size
    generator = torch.Generator().manual_seed(1)
    for num_frames in (_shortest_decodable(model.config), window - 1, window, 2 * window + 3):
        codes = torch.randint(model.config.codebook_size, (num_frames,), generator=generator)
        audio = model.decode(codes[None, None]).audio_values[0, 0]
        assert (audio - original.decode(codes)).abs().max() < 5e-4


@torch.no_grad()
def test_our_view_of_the_original_is_its_own_forward(original_and_model):
    """`OriginalCodec` splits the network's forward into parts: they must give what the whole gives."""
    original, model = original_and_model
    config = model.config
    num_frames = config.padding_frames if config.padding_frames > 1 else 7
    clip = speech(config.sampling_rate)[: num_frames * config.hop_length]
    num_frames = len(clip) // config.hop_length
    output = original.network(torch.from_numpy(clip[: num_frames * config.hop_length]).double()[None])
    indices = output["indices"] if original.origin == "l3ac" else output["embedded_indices"]
    codes = model.quantizer.digits_to_indices(original.positions(clip).round().long())
    assert torch.equal(indices[0, :num_frames].long(), codes[:num_frames])
    if num_frames % config.padding_frames == 0:
        assert (output["generated_audio"][0] - original.decode(codes)).abs().max() < 1e-6
