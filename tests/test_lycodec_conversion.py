"""Checkpoints as the original's trainer writes them become folders, or an error that says what they are."""

import json
import subprocess

import pytest
import soundfile
import torch
from transformers import AutoModel
from typer.testing import CliRunner

import fsqcodec
from fsqcodec import LycodecConfig, LycodecModel
from fsqcodec.conversion.lycodec_table import _converted, lycodec_sizes
from fsqcodec.conversion.original_weights import CheckpointError
from fsqcodec.hub.cards import model_card
from fsqcodec_cli import app
from lycodec_models import golden_paths, load_golden, small_lycodec, stereo_clip


@pytest.fixture(params=golden_paths(), scope="module")
def golden(request):
    return load_golden(request.param)


@pytest.fixture(scope="module")
def config_file(golden, tmp_path_factory):
    """The sizes that tensors' shapes don't tell, and all others."""
    path = tmp_path_factory.mktemp("config") / "sizes.json"
    names = LycodecConfig.__annotations__
    path.write_text(json.dumps({name: getattr(golden.model.config, name) for name in names}))
    return path


def run(*arguments) -> "subprocess.CompletedProcess[str]":
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def same_weights(model: LycodecModel, other: LycodecModel) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_step_file_converts_on_the_command_line_and_loads(golden, config_file, tmp_path):
    torch.save({"model": golden.weights, "opt": {"state": {}, "param_groups": []}, "step": 1000}, tmp_path / "step.pt")
    result = run("convert", "lycodec", tmp_path / "step.pt", "--config", config_file, "-o", tmp_path / "model")
    assert result.exit_code == 0, result.stderr
    model = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert same_weights(model, golden.model)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "preprocessor_config.json", "README.md", "decoder_lycodec.py", "pretrained.py"} <= names
    card = (tmp_path / "model" / "README.md").read_text()
    assert "mini-kio/Lycodec" in card
    assert f"{model.config.bitrate:.1f}" in card
    assert model_card(tmp_path / "model") == card


@pytest.mark.parametrize("layout", ["bare", "processes", "ema", "no buffers"])
def test_layouts_of_a_checkpoint_convert_alike(golden, layout, tmp_path):
    weights = golden.weights
    contents = {
        "bare": weights,
        "processes": {"model": {f"module.{key}": tensor for key, tensor in weights.items()}},
        "ema": {"model": {key: 0 * tensor for key, tensor in weights.items()}, "ema": {"shadow": weights}},
        "no buffers": {"model": {key: x for key, x in weights.items() if "rope" not in key and "_mask" not in key}},
    }[layout]
    torch.save(contents, tmp_path / "latest.pt")
    folder = fsqcodec.convert_checkpoint(
        "lycodec", tmp_path / "latest.pt", tmp_path / "model", config=golden.model.config, ema=layout == "ema"
    )
    assert same_weights(LycodecModel.from_pretrained(folder, dtype=torch.float32), golden.model)


def test_sizes_are_told_by_shapes(golden):
    ours = lycodec_sizes(golden.weights)
    untold = {"crop_length", "stft_size", "stft_hop_length", "stft_window_length", "num_heads", "decoder_num_heads"}
    for name in set(LycodecConfig.__annotations__) - untold:
        given, expected = getattr(ours, name), getattr(golden.model.config, name)
        assert (list(given) if isinstance(given, (list, tuple)) else given) == (
            list(expected) if isinstance(expected, (list, tuple)) else expected
        ), name


def _other_version(weights):
    weights["quantizer.opq.rotation"] = torch.zeros(2, 2)


def _missing(weights):
    del weights["cond.conv.bias"]


def _unexpected(weights):
    weights["decoder.extra.weight"] = torch.zeros(1)


def _misshapen(weights):
    weights["to_token.bias"] = torch.zeros(7)


def _not_finite(weights):
    weights["to_token.bias"][0] = float("nan")


def _damaged_run(weights):
    weights["encoder.rope.cos_cached"].zero_()


def _other_base(weights):
    weights["encoder.rope.inv_freq"] *= 1.5


def _other_mask(weights):
    weights["encoder.chunked_mask"].zero_()


def _without_rotation(weights):
    for key in [key for key in weights if ".rope." in key]:
        del weights[key]


@pytest.mark.parametrize(
    "edit, message",
    [
        (_other_version, r"a later version of Lycodec.*quantizer.opq.rotation.*commit 8040de3"),
        (_missing, r"lacks tensors of this model: decoder.conditioner.output_proj.bias"),
        (_unexpected, r"has tensors this model does not have: decoder.extra.weight"),
        (_misshapen, r"encoder.output_proj.bias has shape \(7,\)"),
        (_not_finite, r"encoder.output_proj.bias holds NaN"),
        (_damaged_run, r"weights before training"),
        (_other_base, r"another base than 10000"),
        (_other_mask, r"encoder.chunked_mask is not that of the first 9 of 18 frames"),
        (_without_rotation, r"no rotary embedding: use_rotary_embedding must be false"),
    ],
)
def test_what_is_not_right_is_named_and_nothing_is_written(golden, edit, message, tmp_path):
    weights = {key: tensor.clone() for key, tensor in golden.weights.items()}
    edit(weights)
    torch.save({"model": weights}, tmp_path / "step.pt")
    with pytest.raises(CheckpointError, match=message):
        fsqcodec.convert_checkpoint("lycodec", tmp_path / "step.pt", tmp_path / "out", config=golden.model.config)
    assert [path.name for path in tmp_path.iterdir()] == ["step.pt"]


def test_the_command_line_says_what_is_wrong_in_a_sentence(golden, config_file, tmp_path):
    torch.save({"model": golden.weights}, tmp_path / "step.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for arguments, message in (
        ([tmp_path / "none.pt"], "none.pt is no file: the step_<n>.pt or latest.pt of a Lycodec training is wanted"),
        ([tmp_path / "text.pt"], "text.pt can't be read as PyTorch weights"),
        ([tmp_path / "step.pt", "--ema"], "no averaged parameters, an entry 'ema'"),
        ([tmp_path / "step.pt", "--verify"], "no package of the original 'lycodec' to verify with"),
        ([tmp_path / "step.pt", "--preset", "lycodec-48khz"], "is the preset or config the right one?"),
        ([tmp_path / "step.pt", "--preset", "l3ac-1kbps"], "not of the family 'lycodec'"),
    ):
        result = run("convert", "lycodec", *arguments, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert (
        "averaged parameters" in run("convert", "l3ac", tmp_path, "--preset", "l3ac-1kbps", "--ema", "-o", "x").stderr
    )


def test_files_of_one_and_two_channels_keep_their_length_and_more_are_refused(tmp_path):
    model = small_lycodec(sampling_rate=48000)
    model.save_pretrained(tmp_path / "model")
    fsqcodec.LycodecFeatureExtractor().save_pretrained(tmp_path / "model")
    recordings = tmp_path / "in"
    recordings.mkdir()
    clip = stereo_clip(5000).T.numpy()
    soundfile.write(recordings / "stereo.flac", clip, 48000)
    soundfile.write(recordings / "mono.wav", clip[:3000, 0], 48000)
    soundfile.write(recordings / "cd.wav", clip[:4410], 44100)
    soundfile.write(recordings / "short.wav", clip[:300], 48000)
    result = run("encode", recordings, "-m", tmp_path / "model", "-o", tmp_path / "tokens")
    assert result.exit_code == 0, result.stderr
    result = run("decode", tmp_path / "tokens", "-m", tmp_path / "model", "-o", tmp_path / "out", "--format", "flac")
    assert result.exit_code == 0, result.stderr
    shapes = {path.stem: soundfile.read(path)[0].shape for path in (tmp_path / "out").iterdir()}
    assert shapes == {"stereo": (5000, 2), "mono": (3000, 2), "cd": (4800, 2), "short": (300, 2)}

    soundfile.write(tmp_path / "surround.wav", stereo_clip(2000).repeat(3, 1).T.numpy(), 48000)
    result = run("encode", tmp_path / "surround.wav", "-m", tmp_path / "model", "-o", tmp_path / "tokens")
    assert result.exit_code == 1
    assert "surround.wav has 6 channels, the codec is stereo: --channels mix takes their mean" in result.stderr
    command = ["encode", tmp_path / "surround.wav", "-m", tmp_path / "model", "-o", tmp_path / "tokens"]
    assert run(*command, "--channels", "mix").exit_code == 0

    rows = dict(line.split(maxsplit=1) for line in run("info", tmp_path / "model").stdout.splitlines())
    assert rows["channels"] == "2"


def original_layout(model: LycodecModel) -> dict[str, torch.Tensor]:
    """The model's weights by the original's names: `_converted`, searched for the way back."""
    config = model.config
    ours = model.state_dict()
    keys = [
        "enc_proj",
        "resampler.conv",
        "resampler.proj",
        "to_token",
        "hybrid.residual_net.0",
        "hybrid.residual_net.3",
    ]
    keys += ["cond.proj", "cond.conv", "cond.noise_embed.0", "cond.noise_embed.2", "decoder.noise_embed.0"]
    keys += ["decoder.noise_embed.2", "decoder.token_proj", "decoder.patch_embed.proj", "decoder.final_ln"]
    keys += ["decoder.unpatchify.final_proj", "bands.high_cond.0", "bands.high_cond.2"]
    keys += [f"patch.l{i}.net.{j}" for i in range(1, 5) for j in (0, 1, 3, 4)]
    keys += [f"bands.{band}_head.{i}" for band in ("low", "high") for i in (0, 1, 3)]
    keys += [f"decoder.unpatchify.upsample.{3 * i + j}" for i in range(len(config.upsampling_channels)) for j in (0, 1)]
    attentions = []
    for i in range(config.num_layers):
        keys += [f"encoder.blocks.{i}.{part}" for part in ("ln1", "ln2", "ff.0", "ff.3")]
        attentions.append(f"encoder.blocks.{i}.attn")
    for i in range(config.decoder_num_layers):
        keys += [f"decoder.blocks.{i}.{part}.scale_shift.1" for part in ("adaln_self", "adaln_cross", "adaln_mlp")]
        keys += [f"decoder.blocks.{i}.mlp.{j}" for j in (0, 3)]
        attentions += [f"decoder.blocks.{i}.{kind}_attn" for kind in ("self", "cross")]
    names = [f"{key}.{part}" for key in keys for part in ("weight", "bias")]
    names += [f"{key}.out_proj.{part}" for key in attentions for part in ("weight", "bias")]
    names += ["hybrid.alpha", "bands.blend_weight", "decoder.pos_embed", "decoder.token_pos_embed"]
    names += [f"{key}.in_proj_{part}" for key in attentions for part in ("weight", "bias")]
    weights = {}
    for name in names:
        parts = [ours[part] for part in _converted(name, torch.zeros(3))]
        weights[name] = torch.cat(parts)
    weights["cond.conv.weight"] = weights["cond.conv.weight"].unsqueeze(-1)
    for kind in ("ild", "itd"):
        for i, (rows, columns) in ((0, (128, config.latent_dim)), (2, (1, 128))):
            weights |= {
                f"stereo.{kind}.{i}.weight": torch.zeros(rows, columns),
                f"stereo.{kind}.{i}.bias": torch.zeros(rows),
            }
    weights["stereo.side_res.weight"] = torch.zeros(config.latent_dim, config.latent_dim)
    weights["stereo.side_res.bias"] = torch.zeros(config.latent_dim)
    late = torch.arange(config.frames_per_crop) >= config.attention_chunk_size
    weights["encoder.chunked_mask"] = torch.zeros(late.shape[0], late.shape[0]).masked_fill(
        ~late[:, None] & late, float("-inf")
    )
    for prefix in ("encoder", *(f"encoder.blocks.{i}" for i in range(config.num_layers))):
        weights[f"{prefix}.rope.inv_freq"] = 10000 ** (-torch.arange(0, config.hidden_size, 2) / config.hidden_size)
        for name in ("cos_cached", "sin_cached"):
            weights[f"{prefix}.rope.{name}"] = torch.zeros(1, 1, 1)
    return weights


def test_the_original_layout_is_that_of_the_golden_files(golden):
    weights = original_layout(golden.model)
    assert weights.keys() == golden.weights.keys()
    for key, tensor in weights.items():
        if not key.startswith("stereo.") and "_cached" not in key:
            assert torch.allclose(tensor, golden.weights[key], atol=1e-6), key


@pytest.mark.slow
def test_a_full_size_checkpoint_converts_and_codes_a_clip_on_the_command_line(tmp_path):
    torch.manual_seed(0)
    model = LycodecModel(LycodecConfig()).eval()
    weights = original_layout(model)
    assert len(weights) == 342
    torch.save({"model": weights, "step": 1}, tmp_path / "step_1.pt")
    assert run("convert", "lycodec", tmp_path / "step_1.pt", "-o", tmp_path / "model").exit_code == 0
    assert same_weights(AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32), model)
    soundfile.write(tmp_path / "clip.wav", stereo_clip(100_001).T.numpy(), 48000)
    assert run("encode", tmp_path / "clip.wav", "-m", tmp_path / "model", "-o", tmp_path).exit_code == 0
    assert run("decode", tmp_path / "clip.safetensors", "-m", tmp_path / "model", "-o", tmp_path / "out").exit_code == 0
    assert soundfile.read(tmp_path / "out" / "clip.wav")[0].shape == (100_001, 2)
