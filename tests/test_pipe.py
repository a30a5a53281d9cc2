"""`fsqcodec stream` as a user types it: real processes in a pipe."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import speech
from fsqcodec import CodecModel, StreamingEncoder
from fsqcodec.pipe import FORMAT, decode_pipe, encode_pipe, roundtrip_pipe
from small_configs import small_model

COMMAND = [sys.executable, "-m", "fsqcodec", "stream"]
PCM = (speech()[:48001] * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_model("frames-attention").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(model_dir) -> CodecModel:
    return CodecModel.from_pretrained(model_dir)


@torch.no_grad()
def decoded_whole(codec: CodecModel) -> np.ndarray:
    samples = torch.from_numpy(np.frombuffer(PCM, "<i2").astype(np.float32) / 32768)[None, None]
    return codec.decode(codec.encode(samples).audio_codes, num_samples=samples.shape[-1]).audio_values[0, 0].numpy()


def assert_is_audio(pcm: bytes, expected: np.ndarray):
    np.testing.assert_allclose(np.frombuffer(pcm, "<i2") / 32767, expected, rtol=0, atol=1.1 / 32767)


def encoded(codec: CodecModel) -> bytes:
    tokens = io.BytesIO()
    encode_pipe(io.BytesIO(PCM), tokens, codec)
    return tokens.getvalue()


def test_a_pipe_of_processes_gives_the_audio_of_the_whole(model_dir, codec, tmp_path):
    (tmp_path / "in.raw").write_bytes(PCM)
    stream = f"{sys.executable} -m fsqcodec stream"
    line = f"cat in.raw | {stream} encode -m {model_dir} | tee tokens | {stream} decode -m {model_dir} > out.raw"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert_is_audio((tmp_path / "out.raw").read_bytes(), decoded_whole(codec))
    factors = re.findall(r"^3\.00 s of audio, computed in .*: real-time factor \d+\.\d{3}$", result.stderr, re.M)
    assert len(factors) == 2
    num_bits = 8 * len((tmp_path / "tokens").read_bytes())
    assert num_bits < 1.2 * 3 * codec.config.bitrate + 8 * 400


def test_a_round_trip_is_encode_and_decode(codec):
    samples = io.BytesIO()
    roundtrip_pipe(io.BytesIO(PCM), samples, codec)
    assert_is_audio(samples.getvalue(), decoded_whole(codec))


@pytest.mark.parametrize("share", [0.99, 0.5, 0.2])
def test_of_a_cut_stream_what_was_complete_is_kept(codec, share):
    tokens, samples = encoded(codec), io.BytesIO()
    with pytest.raises(ValueError, match=r"the token stream was cut after \d+ frames, .* the audio of these was"):
        decode_pipe(io.BytesIO(tokens[: int(share * len(tokens))]), samples, codec)
    num_kept = len(samples.getvalue()) // 2
    assert num_kept % codec.config.hop_length == 0
    if share == 0.99:
        assert num_kept >= 0.95 * len(PCM) // 2
        num_same = num_kept - codec.config.decoder_lookahead_samples - codec.config.hop_length
        assert_is_audio(samples.getvalue()[: 2 * num_same], decoded_whole(codec)[:num_same])


def test_a_damaged_stream_ends_in_a_sentence(codec):
    tokens = bytearray(encoded(codec))
    start = tokens.index(b"}\n") + 2
    tokens[start + 2 : start + 40] = b"\xff" * 38
    with pytest.raises(ValueError, match="is unpacked: this codec's are 0 to 244"):
        decode_pipe(io.BytesIO(bytes(tokens)), io.BytesIO(), codec)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "is no token stream"),
        (PCM, "is no token stream"),
        (FORMAT, "cut or damaged within its header"),
        (FORMAT + b'{"model": "x"}\n', "cut or damaged within its header"),
    ],
)
def test_other_input_is_refused(codec, given, message):
    with pytest.raises(ValueError, match=message):
        decode_pipe(io.BytesIO(given), io.BytesIO(), codec)


def test_tokens_of_another_codec_are_refused(codec):
    with pytest.raises(ValueError, match=r"was encoded by .* with token_digest .*: decode with the codec that made it"):
        decode_pipe(io.BytesIO(encoded(codec)), io.BytesIO(), small_model("frames-attention", seed=1))


def test_half_a_sample_at_the_end_is_said_after_the_rest_is_written(codec):
    tokens, samples = io.BytesIO(), io.BytesIO()
    with pytest.raises(ValueError, match="ended within a sample"):
        encode_pipe(io.BytesIO(PCM + b"\x00"), tokens, codec)
    decode_pipe(io.BytesIO(tokens.getvalue()), samples, codec)
    assert len(samples.getvalue()) == len(PCM)


def test_the_end_of_a_stream_is_checked(codec):
    tokens = encoded(codec)
    for num_samples in (0, 100, len(PCM) // 2 - codec.config.hop_length, 10**6, 2**63):
        samples = io.BytesIO()
        with pytest.raises(ValueError, match=f"damaged at its end: {num_samples} samples don't make"):
            decode_pipe(io.BytesIO(tokens[:-8] + num_samples.to_bytes(8, "little")), samples, codec)
        assert_is_audio(samples.getvalue()[: len(PCM)], decoded_whole(codec))
    for following in (tokens, b"\n"):
        samples = io.BytesIO()
        with pytest.raises(ValueError, match="goes on after its end: one clip is decoded"):
            decode_pipe(io.BytesIO(tokens + following), samples, codec)
        assert_is_audio(samples.getvalue(), decoded_whole(codec))


def test_nothing_in_is_nothing_out(codec):
    tokens, samples = io.BytesIO(), io.BytesIO()
    encode_pipe(io.BytesIO(b""), tokens, codec)
    decode_pipe(io.BytesIO(tokens.getvalue()), samples, codec)
    assert samples.getvalue() == b""


def test_an_audio_file_is_not_taken_for_samples(model_dir, tmp_path):
    result = subprocess.run(
        [*COMMAND, "encode", "-m", model_dir], input=b"RIFF" + PCM, capture_output=True, timeout=600
    )
    assert result.returncode == 1
    assert b"error: the input is an audio file: bare 16-bit samples are wanted" in result.stderr
    assert b"Traceback" not in result.stderr
    with pytest.raises(ValueError, match="was cut after 0 frames"):  # not the stream of an empty clip
        decode_pipe(io.BytesIO(result.stdout), io.BytesIO(), CodecModel.from_pretrained(model_dir))


def test_a_reader_that_leaves_is_said_in_one_sentence(model_dir):
    process = subprocess.Popen(
        [*COMMAND, "encode", "-m", model_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(PCM)
    process.stdin.flush()
    assert process.stdout.read(len(FORMAT)) == FORMAT
    process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.write(PCM)
        process.stdin.close()
    stderr = process.stderr.read().decode()
    assert process.wait(timeout=300) == 1
    assert "error: the program that reads the output has ended, after about" in stderr
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


def test_codes_come_while_samples_come_and_ctrl_c_completes_the_stream(model_dir, codec):
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job's children ignore it
    process = subprocess.Popen(
        [*COMMAND, "encode", "-m", model_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        preexec_fn=listen,
    )
    process.stdin.write(PCM[:16000])
    process.stdin.flush()
    expected = StreamingEncoder(codec).push(np.zeros(8000, dtype=np.float32)).shape[-1]
    tokens = process.stdout.readline() + process.stdout.readline()
    head = process.stdout.read(2)  # it comes although the input has not ended
    assert 0 < int.from_bytes(head, "little") <= expected
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    samples = io.BytesIO()
    decode_pipe(io.BytesIO(tokens + head + rest), samples, codec)
    assert len(samples.getvalue()) == 16000


def test_ctrl_c_on_a_pipe_ends_the_clip_and_loses_nothing(model_dir, tmp_path):
    """A terminal sends it to both programs; the second one waits for what the first has to say."""
    stream = f"{sys.executable} -m fsqcodec stream"
    line = f"trap : INT; {stream} encode -m {model_dir} | {stream} decode -m {model_dir} > out.raw"
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job's children ignore it
    process = subprocess.Popen(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[@]}} > status"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        preexec_fn=listen,
    )
    process.stdin.write(PCM)
    while not (tmp_path / "out.raw").exists() or not (tmp_path / "out.raw").stat().st_size:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert (tmp_path / "status").read_text() == "0 0\n", stderr
    assert (tmp_path / "out.raw").stat().st_size == len(PCM)


@pytest.mark.parametrize(("closed", "message"), [("<&-", "nothing is piped in"), (">&-", "the output is closed")])
def test_what_is_closed_is_said(model_dir, closed, message):
    line = f"{sys.executable} -m fsqcodec stream encode -m {model_dir} < /dev/null {closed}"
    result = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, timeout=600)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr


def test_the_microphone_says_what_it_needs(model_dir):
    code = (
        "import sys; sys.modules['sounddevice'] = None; from fsqcodec_cli import app; "
        f"app(['stream', 'encode', '--microphone', '-m', {os.fspath(model_dir)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    assert "error: the microphone needs sounddevice: pip install 'fsqcodec[microphone]'" in result.stderr


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_help_has_an_example(command):
    from typer.testing import CliRunner

    from fsqcodec_cli import app

    assert "Example: " in CliRunner().invoke(app, ["stream", command, "--help"]).stdout
