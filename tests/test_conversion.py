"""Conversion of checkpoints that are whole, and of ones that are not. That the result is right is test_parity.py's."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

import fsqcodec
from clips import speech
from fsqcodec.conversion import convert
from fsqcodec.conversion.original_weights import CheckpointError
from fsqcodec.conversion.originals import OriginalCodec
from fsqcodec.conversion.verification import VerificationError
from small_configs import small_config

pytest.importorskip("l3ac", reason="the original package l3ac is not installed: pip install fsqcodec[originals]")

CONFIG = small_config("l3ac-coarse")
SCRIPTS = Path(__file__).parent.parent / "conversion_scripts"


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint in the original's format, written by the original package."""
    original = OriginalCodec("l3ac", CONFIG)
    original.randomize(seed=0, clip=speech()[:20000])
    original.save(tmp_path / "original")
    return tmp_path / "original"


def _edit(path: Path, edit):
    state_dict = torch.load(path, weights_only=True)
    edit(state_dict)
    torch.save(state_dict, path)


def _assert_nothing_written(tmp_path):
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_the_folder_is_complete_and_loads(checkpoint, tmp_path):
    folder = fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG, verify=True)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "preprocessor_config.json", "model.safetensors", "README.md", "modeling_codec.py"} <= names
    model, extractor = AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert model.config.to_dict()["quantization_levels"] == list(CONFIG.quantization_levels)
    features = extractor(speech()[:3000], sampling_rate=16000, return_tensors="pt")
    assert model(**features).audio_values.shape == (1, 1, 3000)
    card = (folder / "README.md").read_text()
    assert "tokens equal" in card
    assert f"{CONFIG.bitrate:.1f}" in card


def test_the_three_spellings_of_weight_norm_convert_alike(checkpoint, tmp_path):
    fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "a", config=CONFIG)

    def old_spelling(state_dict):
        for key in [key for key in state_dict if key.endswith("original0")]:
            prefix = key.removesuffix(".parametrizations.weight.original0")
            state_dict[f"{prefix}.weight_g"] = state_dict.pop(key)
            state_dict[f"{prefix}.weight_v"] = state_dict.pop(f"{prefix}.parametrizations.weight.original1")

    def folded(state_dict):
        for key in [key for key in state_dict if key.endswith("original0")]:
            prefix = key.removesuffix(".parametrizations.weight.original0")
            norm, direction = state_dict.pop(key), state_dict.pop(f"{prefix}.parametrizations.weight.original1")
            state_dict[f"{prefix}.weight"] = torch._weight_norm(direction, norm, 0)

    _edit(checkpoint / "encoder.pt", old_spelling)
    _edit(checkpoint / "decoder.pt", folded)
    fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "b", config=CONFIG)
    expected = AutoModel.from_pretrained(tmp_path / "a").state_dict()
    for name, tensor in AutoModel.from_pretrained(tmp_path / "b").state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_a_missing_file_is_named(checkpoint, tmp_path):
    (checkpoint / "en_decoder.pt").unlink()
    with pytest.raises(CheckpointError, match=r"has no en_decoder.pt: an original checkpoint is the files encoder.pt"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG)
    _assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (
            "encoder",
            lambda weights: weights.pop("blocks.1.0.module.grn.gamma"),
            r"has no 'encoder.blocks.1.0.module.grn.gamma' \(1, 16\)",
        ),
        (
            "decoder",
            lambda weights: weights.update(extra=torch.zeros(3)),
            "tensors this model does not have: decoder.extra",
        ),
        (
            "quantizer",
            lambda weights: weights.update({"project_in.bias": torch.zeros(4)}),
            r"'quantizer.project_in.bias' has shape \(4,\), \(3,\) is wanted",
        ),
        (
            "en_encoder",
            lambda weights: weights["local_trans.layers.0.0.to_qkv.weight"][0].fill_(torch.nan),
            "'en_encoder.local_trans.layers.0.0.to_qkv.weight' holds NaN",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "nan"],
)
def test_wrong_tensors_are_named_and_nothing_is_written(checkpoint, tmp_path, file, edit, message):
    _edit(checkpoint / f"{file}.pt", edit)
    with pytest.raises(CheckpointError, match=message):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG)
    _assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:100],
        lambda whole: b"",
        lambda whole: b"<html>404: not found</html>",
    ],
    ids=["half", "head", "empty", "web page"],
)
def test_a_damaged_file_is_named_and_nothing_is_written(checkpoint, tmp_path, content):
    path = checkpoint / "decoder.pt"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(CheckpointError, match="decoder.pt can't be read as PyTorch weights"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG)
    _assert_nothing_written(tmp_path)


class _Payload:
    def __reduce__(self):
        return print, ("a pickle was executed",)


def test_pickled_code_is_not_executed(checkpoint, tmp_path, capsys):
    torch.save({"payload": _Payload()}, checkpoint / "encoder.pt")
    with pytest.raises(CheckpointError, match="encoder.pt can't be read"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG)
    assert "executed" not in capsys.readouterr().out


def test_a_file_that_is_no_state_dict_is_named(checkpoint, tmp_path):
    torch.save([torch.zeros(2)], checkpoint / "encoder.pt")
    with pytest.raises(CheckpointError, match="encoder.pt is not a state dict"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG)


def test_the_wrong_preset_is_noticed(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="is the preset or config the right one"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", preset="l3ac-1kbps")
    _assert_nothing_written(tmp_path)


def test_wrong_arguments_say_what_is_right(checkpoint, tmp_path):
    output = tmp_path / "model"
    with pytest.raises(ValueError, match="no origin 'encodec'; the origins are: l3ac, sqcodec"):
        fsqcodec.convert_checkpoint("encodec", checkpoint, output, preset="l3ac-1kbps")
    with pytest.raises(ValueError, match="either preset or config"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, output)
    with pytest.raises(ValueError, match="'sqcodec-3kbps' is not of the family 'l3ac'"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, output, preset="sqcodec-3kbps")
    with pytest.raises(ValueError, match="no preset 'l3ac-2kbps'; the presets are: l3ac-0k75bps"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, output, preset="l3ac-2kbps")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository id"):
        fsqcodec.convert_checkpoint("l3ac", tmp_path / "nowhere", output, config=CONFIG)
    with pytest.raises(ValueError, match="name the preset"):
        fsqcodec.convert_checkpoint("l3ac", "zhai-lw/L3AC", output, config=CONFIG)


def test_an_existing_folder_is_not_touched(checkpoint, tmp_path):
    output = tmp_path / "model"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, output, config=CONFIG)
    assert [path.name for path in output.iterdir()] == ["precious.txt"]


def test_verify_finds_a_wrong_conversion(checkpoint, tmp_path, monkeypatch):
    def transposed_enhance(*args):
        converted = convert_codec(*args)
        converted["decoder.stages.0.enhance.to_gain.weight"] *= 1.1
        return converted

    convert_codec = convert.convert_codec
    monkeypatch.setattr(convert, "convert_codec", transposed_enhance)
    with pytest.raises(VerificationError, match="differs from the original"):
        fsqcodec.convert_checkpoint("l3ac", checkpoint, tmp_path / "model", config=CONFIG, verify=True)
    _assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("origin", "repository", "preset", "folder"),
    [
        ("l3ac", "zhai-lw/L3AC", "l3ac-1kbps", "1kbps.v1"),
        ("sqcodec", "zhai-lw/SQCodec", "sqcodec-12kbps-24khz", "12kbps_24khz.v0"),
    ],
)
def test_a_hub_repository_converts_from_where_its_files_lie(tmp_path, origin, repository, preset, folder):
    """Offline, from a cache as a download leaves it: the weights are random, the paths are the published ones."""
    pytest.importorskip("sq_codec", reason="the original package sq_codec is not installed")
    config = fsqcodec.CodecConfig.from_preset(preset)
    cached_repository = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    OriginalCodec(origin, config).save(cached_repository / "snapshots" / revision / "weights" / folder)
    (cached_repository / "refs").mkdir()
    (cached_repository / "refs" / "main").write_text(revision)

    command = [sys.executable, "-m", "fsqcodec", "convert", origin, repository, "--preset", preset, "--output", "model"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert AutoModel.from_pretrained(tmp_path / "model").config.bitrate == config.bitrate


@pytest.mark.skipif(importlib.util.find_spec("sq_codec") is None, reason="sq_codec is not installed")
@pytest.mark.parametrize("origin", ["l3ac", "sqcodec"])
def test_the_conversion_scripts_run(origin, tmp_path):
    config = small_config(f"{origin}-fine")
    original = OriginalCodec(origin, config)
    original.randomize(seed=0, clip=speech()[:20000])
    original.save(tmp_path / "original")
    config.to_json_file(tmp_path / "sizes.json")
    command = [sys.executable, SCRIPTS / f"convert_{origin}.py", tmp_path / "original", "--output", tmp_path / "model"]
    subprocess.run([*command, "--config", tmp_path / "sizes.json", "--verify"], check=True)
    assert AutoModel.from_pretrained(tmp_path / "model").config.hop_length == config.hop_length
