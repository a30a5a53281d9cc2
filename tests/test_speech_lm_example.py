"""The example of a speech language model at a tiny size, as a user starts it, and the page about them, as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM

from clips import ENGLISH, GERMAN
from fsqcodec import CodecFeatureExtractor
from fsqcodec.lm import AudioVocabulary
from small_configs import small_model

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "speech_lm.py"
PAGE = ROOT / "docs" / "language_models.md"
TINY = [
    "--steps",
    "120",
    "--batch-size",
    "4",
    "--block-ids",
    "384",
    "--hidden-size",
    "64",
    "--num-layers",
    "2",
    "--digits-per-id",
    "2",
    "--learning-rate",
    "0.005",
]


def run(folder: Path, *arguments) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(os.fspath, arguments)]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    small_model("l3ac-coarse").save_pretrained(folder)
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return folder


def test_it_learns_and_speaks(codec_folder, tmp_path):
    sources = ["--codec", codec_folder, "--train", ENGLISH, "--held-out", GERMAN, "--output", tmp_path / "lm"]
    run(tmp_path, EXAMPLE, *sources, *TINY)
    result = json.loads((tmp_path / "lm" / "result.json").read_text())
    codes, digits = result["unigram_bits_per_frame"]["codes"], result["unigram_bits_per_frame"]["digits"]
    assert 0 < result["language_model_bits_per_frame"] < codes["entropy"]
    assert codes["entropy"] < codes["smoothed"] < result["uniform_bits_per_frame"]
    assert codes["entropy"] < digits["entropy"] < digits["smoothed"] < result["uniform_bits_per_frame"]
    assert (tmp_path / "lm" / "held-out" / "errors.parquet").exists()
    seconds = soundfile.info(tmp_path / "lm" / "continued.wav").duration
    assert seconds >= 0.5
    assert (tmp_path / "lm" / "continued.png").read_bytes().startswith(b"\x89PNG")
    vocabulary = AudioVocabulary.from_pretrained(tmp_path / "lm")
    language_model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert vocabulary.view == "digits"
    assert language_model(torch.tensor([[0]])).logits.shape == (1, 1, vocabulary.size)


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "demo").mkdir()
    run(tmp_path, "-c", "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)))
    assert soundfile.info(tmp_path / "demo" / "continued.wav").frames >= 60 * 18  # what was given, at least
    assert (tmp_path / "demo" / "lm" / "audio_vocabulary.json").exists()
