"""The command line as a user types it: real files, real processes where exit codes and signals matter."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import AutoModel
from typer.testing import CliRunner

from clips import ENGLISH, GERMAN
from fsqcodec import CodecFeatureExtractor, CodecModel, list_presets
from fsqcodec.audio import read_audio
from fsqcodec.batches import batches_by_length
from fsqcodec.packing import read_tokens, token_digest
from fsqcodec_cli import app
from small_configs import small_model


def run(*arguments) -> "subprocess.CompletedProcess[str]":
    """One command, in this process: its output, and its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_model("l3ac-coarse").save_pretrained(folder)
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return folder


def test_files_folders_and_globs_become_tokens_and_audio_of_the_same_length(model_dir, tmp_path):
    recordings = tmp_path / "recordings"
    (recordings / "deep").mkdir(parents=True)
    lengths = {"a": 5000, "b": 4999, "deep/c": 17}
    for name, num_samples in lengths.items():
        soundfile.write(recordings / f"{name}.wav", read_audio(ENGLISH, 16000)[8000:][:num_samples], 16000)
    result = run("encode", recordings, GERMAN, "-m", model_dir, "-o", tmp_path / "tokens")
    assert result.exit_code == 0, result.stderr
    assert "4 written" in result.stdout
    written = sorted(str(path.relative_to(tmp_path / "tokens")) for path in (tmp_path / "tokens").rglob("*.*"))
    assert written == ["a.safetensors", "b.safetensors", "deep/c.safetensors", "thorsten_eurasien.safetensors"]

    model = AutoModel.from_pretrained(model_dir)
    tokens = read_tokens(tmp_path / "tokens" / "b.safetensors", model.config)
    assert (tokens.num_samples, tokens.sampling_rate) == (4999, 16000)
    assert tokens.codes.shape == (1, -(-4999 // model.config.hop_length))
    assert tokens.token_digest == token_digest(model)

    result = run("decode", tmp_path / "tokens", "-m", model_dir, "-o", tmp_path / "out", "--format", "flac")
    assert result.exit_code == 0, result.stderr
    for name, num_samples in {**lengths, "thorsten_eurasien": len(read_audio(GERMAN, 16000))}.items():
        audio, sampling_rate = soundfile.read(tmp_path / "out" / f"{name}.flac")
        assert (len(audio), sampling_rate) == (num_samples, 16000)

    result = run("decode", f"{tmp_path}/tokens/?.safetensors", "-m", model_dir, "-o", tmp_path / "out2")
    assert sorted(path.name for path in (tmp_path / "out2").iterdir()) == ["a.wav", "b.wav"]


def test_a_file_at_another_rate_is_resampled(model_dir, tmp_path):
    soundfile.write(tmp_path / "high.wav", read_audio(GERMAN, 44100), 44100)
    assert run("encode", tmp_path / "high.wav", "-m", model_dir, "-o", tmp_path).exit_code == 0
    tokens = read_tokens(tmp_path / "high.safetensors", AutoModel.from_pretrained(model_dir).config)
    assert tokens.sampling_rate == 16000
    assert abs(tokens.num_samples - len(read_audio(GERMAN, 16000))) <= 1


def test_existing_outputs_are_kept_unless_told(model_dir, tmp_path):
    assert run("encode", GERMAN, "-m", model_dir, "-o", tmp_path).exit_code == 0
    path = tmp_path / "thorsten_eurasien.safetensors"
    path.write_text("precious")
    result = run("encode", GERMAN, "-m", model_dir, "-o", tmp_path)
    assert result.exit_code == 0
    assert "1 existed and were kept" in result.stdout
    assert path.read_text() == "precious"
    assert run("encode", GERMAN, "-m", model_dir, "-o", tmp_path, "--overwrite").exit_code == 0
    assert path.stat().st_size > 1000


def test_bad_files_are_reported_and_do_not_stop_the_others(model_dir, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "text.wav").write_text("hello")
    soundfile.write(folder / "stereo.wav", np.zeros((800, 2)), 16000)
    soundfile.write(folder / "nan.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", np.full(800, 19.7), 16000, subtype="FLOAT")
    soundfile.write(folder / "good.wav", np.zeros(800), 16000)
    (folder / "._good.wav").write_text("what some systems leave beside a file")
    result = run("encode", folder, "-m", model_dir, "-o", tmp_path / "tokens")
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["good.safetensors"]
    failures = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 4
    assert any("text.wav is not an audio file" in line for line in failures)
    assert any("stereo.wav has 2 channels" in line and "--channels mix" in line for line in failures)
    assert any("nan.wav has NaN" in line for line in failures)
    assert any("loud.wav: audio peaks at 19.7" in line for line in failures)
    assert run("encode", folder / "stereo.wav", "-m", model_dir, "-o", tmp_path, "--channels", "mix").exit_code == 0


@pytest.mark.parametrize("kind", ["l3ac-coarse", "sqcodec-fine"], ids=["same sizes", "another codebook"])
def test_tokens_of_another_codec_are_refused_with_both_names(model_dir, tmp_path, kind):
    other = tmp_path / "other"
    small_model(kind, seed=5).save_pretrained(other)
    run("encode", GERMAN, "-m", model_dir, "-o", tmp_path / "tokens")
    result = run("decode", tmp_path / "tokens", "-m", other, "-o", tmp_path / "out")
    assert result.exit_code == 1
    for digest_or_name in (
        token_digest(AutoModel.from_pretrained(model_dir)),
        token_digest(AutoModel.from_pretrained(other)),
        str(model_dir),
        str(other),
    ):
        assert digest_or_name in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nothing-here.wav", "-m", "MODEL", "-o", "out"], "nothing-here.wav is no file, no folder"),
        (["encode", "EMPTY", "-m", "MODEL", "-o", "out"], "has no file that ends in .wav"),
        (["encode", ENGLISH, "-m", "EMPTY", "-o", "out"], "the folder EMPTY holds no model: it has no config.json"),
        (["encode", ENGLISH, "-m", "l3ac-1kbps", "-o", "out"], "l3ac-1kbps is a preset, sizes without weights"),
        (["encode", ENGLISH, "-m", ENGLISH, "-o", "out"], "lj_gutenberg.flac is no model"),
        (["encode", ENGLISH, "-m", "MODEL", "-o", "FILE"], "FILE is a file: a folder for the outputs is wanted"),
        (["encode", ENGLISH, "-m", "MODEL", "-o", "out", "--device", "abacus"], "device 'abacus' can't be used"),
        (["decode", ENGLISH, "-m", "MODEL", "-o", "out"], "truncated, damaged or not a token file"),
        (["convert", "l3ac", "EMPTY", "--preset", "l3ac-1kbps", "-o", "out"], "has no encoder.pt"),
        (["convert", "l3ac", "EMPTY", "-o", "out"], "give either --preset NAME"),
        (["convert", "l3ac", "EMPTY", "-o", "out", "--config", "FILE"], "FILE is not JSON"),
        (["convert", "l3ac", "EMPTY", "-o", "out", "--config", "BAD_CONFIG"], "error: latent_dim is 0"),
        (["convert", "l3ac", "EMPTY", "--preset", "1kbps", "-o", "out"], "the presets are: l3ac-0k75bps"),
        (["info", "EMPTY"], "the folder EMPTY holds no model: it has no config.json"),
    ],
)
def test_wrong_input_ends_in_one_sentence(model_dir, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("no JSON")
    (tmp_path / "BAD_CONFIG").write_text('{"latent_dim": 0}')
    result = run(*(model_dir if argument == "MODEL" else argument for argument in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_one_file_named_twice_is_encoded_once(model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", np.zeros(100), 16000)
    result = run("encode", "clip.wav", "./clip.wav", str(tmp_path / "c*"), "-m", model_dir, "-o", ".")
    assert result.exit_code == 0, result.stderr
    assert "1 written" in result.stdout
    assert run("encode", "c*", "-m", model_dir, "-o", ".").exit_code == 0, "its own outputs are no audio"


def test_names_may_be_long_and_odd(model_dir, tmp_path):
    source = tmp_path / f"{'ä ' * 78}[1].WAV"
    soundfile.write(source, np.zeros(100), 16000, format="WAV")
    assert run("encode", source, "-m", model_dir, "-o", tmp_path / "out").exit_code == 0
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [source.stem]


def test_batches_hold_files_of_similar_length_and_stay_small():
    durations = {Path(f"{i}"): seconds for i, seconds in enumerate([1.0] * 40 + [30.0] * 5 + [500.0])}
    batches = list(batches_by_length(durations))
    assert sorted(source for batch in batches for source in batch) == sorted(durations)
    assert all(len(batch) <= 16 for batch in batches)
    for batch in batches:
        longest = max(durations[source] for source in batch)
        assert len(batch) == 1 or len(batch) * longest <= 64
    assert len(batches) < 10


def test_running_out_of_memory_fails_the_files_of_a_batch_and_no_other(model_dir, tmp_path, monkeypatch):
    def encode_unless_long(self, input_values, **kwargs):
        if input_values.shape[-1] > 1000:
            raise RuntimeError("not enough memory")
        return encode(self, input_values, **kwargs)

    encode = CodecModel.encode
    monkeypatch.setattr(CodecModel, "encode", encode_unless_long)
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 40), 16000)
    soundfile.write(tmp_path / "short.wav", np.zeros(500), 16000)
    monkeypatch.setattr("fsqcodec.batches.BATCH_SECONDS_PER_CLIP", 1 / 16)
    result = run("encode", tmp_path / "long.wav", tmp_path / "short.wav", "-m", model_dir, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "long.wav: not enough memory" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["short.safetensors"]


def test_two_inputs_with_one_output_are_refused(model_dir, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "clip.wav", np.zeros(100), 16000)
    result = run("encode", tmp_path / "x/clip.wav", tmp_path / "y/clip.wav", "-m", model_dir, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "would both be written to" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_is_an_error(model_dir, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model_dir.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = run("encode", GERMAN, "-m", broken, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"error: the weights of {broken} can't be read" in result.stderr


def test_info_shows_presets_models_and_token_files(model_dir, tmp_path):
    assert len(run("info").stdout.splitlines()) == len(list_presets())
    preset = run("info", "sqcodec-24kbps-24khz").stdout
    assert "24000 Hz" in preset
    assert "1333.33" in preset
    run("encode", GERMAN, "-m", model_dir, "-o", tmp_path)
    digest = token_digest(AutoModel.from_pretrained(model_dir))
    assert digest in run("info", model_dir).stdout
    file_info = run("info", tmp_path / "thorsten_eurasien.safetensors").stdout
    assert digest in file_info
    assert "4.930" in file_info


@pytest.mark.parametrize("command", ["info", "convert", "encode", "decode"])
def test_help_has_an_example(command):
    assert f"Example: fsqcodec {command}" in run(command, "--help").stdout


def test_the_commands_come_from_the_source_tree():
    """An editable install must not hold a copy."""
    import fsqcodec
    import fsqcodec_cli

    assert Path(fsqcodec_cli.__file__).parent == Path(fsqcodec.__file__).parent.parent


def test_help_does_not_import_torch():
    check = "import sys, fsqcodec_cli; assert 'torch' not in sys.modules and 'fsqcodec' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_ctrl_c_leaves_only_complete_files(model_dir, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(300):
        soundfile.write(folder / f"{i:03}.wav", read_audio(ENGLISH, 16000)[:16000], 16000)
    command = [sys.executable, "-m", "fsqcodec", "encode", folder, "-m", model_dir, "-o", tmp_path / "tokens"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job's children ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "tokens").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    config = AutoModel.from_pretrained(model_dir).config
    files = list((tmp_path / "tokens").iterdir())
    assert 0 < len(files) < 300
    for path in files:
        assert read_tokens(path, config).num_samples == 16000

    result = run("encode", folder, "-m", model_dir, "-o", tmp_path / "tokens")
    assert result.exit_code == 0
    assert f"{len(files)} existed and were kept" in result.stdout
    assert len(list((tmp_path / "tokens").iterdir())) == 300
