"""The README's code runs as it stands, in its order, and the demo before it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from clips import ENGLISH

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
# they need the network, are what runs this test, or want files
NOT_HERE = ["pip install", "make ", "zhai-lw/", "neuphonic/", "--data recordings", "talk.mp3"]
if shutil.which("opusenc") is None or shutil.which("c2enc") is None:
    NOT_HERE.append("opus:6")
SLOW = ("fsqcodec latency", "fsqcodec export")  # minutes


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder like a fresh clone in which `make demo` has run."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(ROOT / "examples")
    result = _run([sys.executable, "examples/demo.py"], folder)
    assert "1399 in all" in result.stdout
    return folder


def _run(command, folder: Path, **kwargs) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def test_the_demo_writes_audio_of_the_inputs_length_and_a_picture(workplace):
    assert soundfile.info(workplace / "demo" / "out.wav").frames == soundfile.info(ENGLISH).frames
    assert (workplace / "demo" / "out.png").read_bytes().startswith(b"\x89PNG")


def run_blocks(folder: Path, taken) -> int:
    """Run those blocks that run here and for whose code `taken` is true; returns how many."""
    ran = 0
    for language, code in BLOCKS:
        if language == "bash" and any(phrase in code for phrase in NOT_HERE) or not taken(code):
            continue
        _run([sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code], folder)
        ran += 1
    return ran


def test_the_blocks_run(workplace):
    demo = workplace / "demo"
    assert run_blocks(workplace, lambda code: not any(phrase in code for phrase in SLOW)) >= 3
    assert len(list((demo / "decoded").glob("*.flac"))) == 2
    assert soundfile.info(demo / "gutenberg.wav").frames == soundfile.info(ENGLISH).frames
    if "opus:6" not in NOT_HERE:
        assert "<audio" in (demo / "evaluation" / "report.html").read_text()


@pytest.mark.slow
def test_the_slow_blocks_run(workplace):
    assert run_blocks(workplace, lambda code: any(phrase in code for phrase in SLOW)) == 2
    assert (workplace / "demo" / "latency" / "latency.png").exists()
    assert soundfile.info(workplace / "demo" / "onnx.wav").frames == soundfile.info(ENGLISH).frames


def test_the_shapes_in_the_comments_are_right(workplace):
    code = next(code for language, code in BLOCKS if language == "python")
    shapes = (
        "assert features.input_values.shape == (2, 1, 134233)\n"
        "assert encoded.audio_codes.shape == (2, 1, 1399) and encoded.audio_codes_mask.shape == (2, 1399)\n"
        "assert decoded.audio_values.shape == (2, 1, 134304)\n"
    )
    _run([sys.executable, "-c", code + shapes], workplace)


def test_the_table_of_models_is_what_info_prints(workplace):
    readme = (ROOT / "README.md").read_text()
    row = r"^\| `([\w-]+)` \| (\d+) Hz \| ([\d.]+) \| (\d+)(?: x (\d+))? \| ([\d.]+) \|"
    rows = [list(filter(None, cells)) for cells in re.findall(row, readme, flags=re.MULTILINE)]
    info = _run([sys.executable, "-m", "fsqcodec", "info"], workplace).stdout
    printed = [tuple(re.findall(r"^(\S+)|([\d.]+)", line)) for line in info.splitlines()]
    assert [[first or second for first, second in line] for line in printed] == rows
