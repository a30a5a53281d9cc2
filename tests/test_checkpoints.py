"""The models that come with the package load without network and speak."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

import fsqcodec
from clips import ENGLISH, GERMAN
from fsqcodec import CodecConfig, CodecModel
from fsqcodec.audio import read_audio
from fsqcodec.checkpoints import list_checkpoints
from fsqcodec.codecs import load_codec
from fsqcodec.evaluation.metrics import mel_distance, pesq_wb, stoi
from fsqcodec.files import decode_file, encode_file

CARDS = Path(__file__).parent.parent / "model_cards"
MOST_BYTES = 20e6


@pytest.mark.parametrize("name", list_checkpoints())
def test_a_checkpoint_is_its_preset_in_float32_and_small_enough_for_the_wheel(name):
    folder = fsqcodec.bundled_checkpoint(name)
    model = AutoModel.from_pretrained(folder)
    assert type(model) is CodecModel and model.dtype == torch.float32
    sizes, preset = (
        json.loads(config.to_json_string(False))
        for config in (model.config, CodecConfig.from_preset(name.removesuffix("-v2")))
    )
    assert all(sizes[field] == preset[field] for field in CodecConfig.__annotations__)
    assert AutoFeatureExtractor.from_pretrained(folder).sampling_rate == model.config.sampling_rate
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("name", list_checkpoints())
def test_its_card_names_the_data_and_has_the_figures(name):
    card = (fsqcodec.bundled_checkpoint(name) / "README.md").read_text()
    assert card == (CARDS / f"{name}.md").read_text()
    for fact in ("LibriSpeech", "CC-BY-4.0", "| pesq_wb |", "39 clips", "license: apache-2.0"):
        assert fact in card


@pytest.mark.parametrize("name", list_checkpoints())
@pytest.mark.parametrize("path", [ENGLISH, GERMAN], ids=["english", "german"])
def test_speech_comes_back(path, name):
    """Both speakers are in the evaluation, so the model has never heard them."""
    audio = read_audio(path, 16000)
    codec = load_codec(name)
    (codes,) = codec.encode([audio])
    assert codes.shape == (1, -(-len(audio) // 96)) and len(np.unique(codes)) > codes.shape[1] / 2
    (decoded,) = codec.decode([codes], [len(audio)])
    assert stoi(audio, decoded, 16000) > 0.7
    assert pesq_wb(audio, decoded, 16000) > 1.3
    assert mel_distance(audio, decoded, 16000) < 0.5


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match="no model 'music-3kbps' comes with the package; there are: speech-3kbps, speech-3kbps-v2"
    ):
        fsqcodec.bundled_checkpoint("music-3kbps")


def test_tokens_of_the_first_model_are_refused_by_the_second_with_what_to_do(tmp_path):
    encode_file(ENGLISH, "speech-3kbps", tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match="was encoded by .*speech-3kbps with token digest .* decode with the codec"):
        decode_file(tmp_path / "old.safetensors", "speech-3kbps-v2", tmp_path / "new.wav")
