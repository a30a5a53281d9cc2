"""Classical codecs through their real programs, on real speech."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from clips import ENGLISH
from fsqcodec.audio import read_audio
from fsqcodec.classical import CODEC2_DELAYS, ogg_packet_sizes
from fsqcodec.codecs import load_codec
from fsqcodec.evaluation.metrics import stoi

PROGRAMS = {"opus": "opusenc", "codec2": "c2enc", "speex": "speexenc"}


def load(name: str):
    program = PROGRAMS[name.partition(":")[0]]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return load_codec(name)


@pytest.fixture(scope="module")
def clip():
    return read_audio(ENGLISH, 16000)


@pytest.mark.parametrize(
    "name", ["opus:6", "opus:16", "speex:1", "speex:6", *(f"codec2:{mode}" for mode in CODEC2_DELAYS)]
)
def test_speech_comes_back_as_long_as_it_was(name, clip):
    codec = load(name)
    codes = codec.encode([clip, clip[:20000]])
    decoded = codec.decode(codes, [len(clip), 20000])
    assert decoded[0].dtype == np.float32
    assert abs(len(decoded[0]) - len(clip)) <= 320
    assert abs(len(decoded[1]) - 20000) <= 320
    num_samples = len(decoded[0]) - 400
    delay = 220 if name.startswith("speex") else 0  # that of Speex is left to the alignment
    assert stoi(clip[: num_samples - delay], decoded[0][delay:num_samples], 16000) > 0.7


@pytest.mark.parametrize(
    "lower, higher", [("opus:6", "opus:24"), ("speex:1", "speex:8"), ("codec2:700C", "codec2:3200")]
)
def test_more_bits_are_better(lower, higher, clip):
    scores, bits = [], []
    for name in (lower, higher):
        codec = load(name)
        (codes,) = codec.encode([clip])
        (decoded,) = codec.decode([codes], [len(clip)])
        num_samples = min(len(clip), len(decoded))
        scores.append(stoi(clip[:num_samples], decoded[:num_samples], 16000))
        bits.append(codec.num_bits(codes, len(clip) / 16000))
    assert scores[0] < scores[1] and bits[0] < bits[1]


def test_rates_are_the_programs_own(clip, tmp_path):
    seconds = len(clip) / 16000
    (codes,) = load("codec2:2400").encode([clip])
    padded_bits = 8 * codes.shape[1]
    assert load("codec2:2400").num_bits(codes, seconds) == pytest.approx(2400 * seconds)
    assert padded_bits == pytest.approx(2400 * (seconds + 0.08), abs=96)

    codec = load("opus:8")
    (codes,) = codec.encode([clip])
    coded = codes.astype(np.uint8).tobytes()
    path = tmp_path / "clip.opus"
    path.write_bytes(coded)
    said = subprocess.run(["opusinfo", path], capture_output=True, text=True).stdout
    rate = float(re.search(r"w/o overhead: ([0-9.]+) kbit/s", said)[1])
    assert codec.num_bits(codes, seconds) / seconds / 1000 == pytest.approx(rate, rel=0.005)


def test_packet_sizes_add_up_to_the_file(clip):
    coded = load("opus:8").encode([clip])[0].astype(np.uint8).tobytes()
    sizes = ogg_packet_sizes(coded)
    assert coded[28 : 28 + 8] == b"OpusHead" and sizes[0] == 19
    seconds = len(clip) / 16000
    assert len(sizes) - 2 == pytest.approx(seconds / 0.02, abs=2)  # 20 ms a packet
    assert sum(sizes) < len(coded)
    with pytest.raises(ValueError, match="not the start of an Ogg page"):
        ogg_packet_sizes(b"RIFF" + coded)


@pytest.mark.parametrize("name", ["opus:5", "opus:", "opus:loud", "codec2:1", "speex:11", "speex:-1"])
def test_unknown_options_are_named(name):
    with pytest.raises(ValueError, match=f"'{name}' is no codec: after the colon comes"):
        load(name)


def test_a_program_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="opus:6 needs the program opusenc: install it"):
        load_codec("opus:6")
