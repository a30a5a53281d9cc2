"""NeuCodecs on the command line: convert, encode, decode with peaks above full scale, info, card."""

import json

import pytest
import soundfile
import torch
from typer.testing import CliRunner

from clips import ENGLISH
from fsqcodec.audio import read_audio
from fsqcodec.hub.cards import model_card
from fsqcodec.packing import read_tokens
from fsqcodec_cli import app
from small_neucodecs import CONFIGS, FEATURE_EXTRACTORS, original_checkpoint, small_neucodec

NUM_SAMPLES = 8099


def _run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(params=CONFIGS)
def origin(request):
    return request.param


@pytest.fixture
def folder(origin, tmp_path):
    """A model whose audio is far above full scale."""
    model = small_neucodec(origin)
    with torch.no_grad():
        magnitude_bias = model.acoustic_decoder.head.linear.bias[: model.config.n_fft // 2 + 1]
        magnitude_bias.add_(3)
    model.save_pretrained(tmp_path / "model")
    FEATURE_EXTRACTORS[origin].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_files_there_and_back(origin, folder, tmp_path):
    soundfile.write(tmp_path / "clip.wav", read_audio(ENGLISH, 16000)[8000:][:NUM_SAMPLES], 16000)
    assert _run("encode", tmp_path / "clip.wav", "-m", folder, "-o", tmp_path / "tokens").exit_code == 0
    tokens = read_tokens(tmp_path / "tokens" / "clip.safetensors", CONFIGS[origin])
    assert (tokens.num_samples, tokens.sampling_rate) == (NUM_SAMPLES, 16000)
    peaks = {}
    for option in ([], ["--limit-peaks"]):
        output = tmp_path / f"decoded{len(option)}"
        result = _run("decode", tmp_path / "tokens", "-m", folder, "-o", output, *option)
        assert result.exit_code == 0
        assert "1 exceeded full scale and" in result.output
        assert ("--limit-peaks scales them" in result.output) == (not option)
        audio, sampling_rate = soundfile.read(output / "clip.wav")
        assert sampling_rate == 24000
        assert len(audio) == (NUM_SAMPLES // 320 * 480 if origin == "neucodec" else NUM_SAMPLES * 3 // 2)
        peaks[len(option)] = (abs(audio) > 0.999).sum()
    assert peaks[0] > 10 * peaks[1] > 0
    info = _run("info", folder)
    assert "24000 Hz" in info.output
    assert tokens.token_digest in info.output


def test_conversion_by_the_command_line_and_its_card(origin, tmp_path):
    torch.save(original_checkpoint(origin, CONFIGS[origin])[0], tmp_path / "pytorch_model.bin")
    CONFIGS[origin].to_json_file(tmp_path / "sizes.json")
    arguments = ["convert", origin, tmp_path, "--output", tmp_path / "model"]
    result = _run(*arguments, "--config", tmp_path / "sizes.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == CONFIGS[origin].model_type
    assert model_card(tmp_path / "model") == (tmp_path / "model" / "README.md").read_text()
    result = _run("convert", origin, tmp_path, "--output", tmp_path / "other")
    assert result.exit_code == 1
    assert "is the preset or config the right one?" in result.output
    result = _run(*arguments, "--verify")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
