"""`fsqcodec evaluate`: its numbers are those of the packages called by hand, and no interruption changes them."""

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from pesq import pesq
from pystoi import stoi
from typer.testing import CliRunner

from clips import CLIP_DIR, ENGLISH, GERMAN
from fsqcodec import CodecFeatureExtractor
from fsqcodec.audio import read_audio
from fsqcodec.codecs import load_codec
from fsqcodec.evaluation.recognition import character_errors, load_recognizer, recognize, word_errors
from fsqcodec.evaluation.report import write_reports
from fsqcodec.evaluation.run import Settings, evaluate
from fsqcodec_cli import app
from small_configs import small_model
from small_recognizer import save_small_recognizer

METRICS = ("pesq_wb", "stoi", "estoi", "mel_distance")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small codec with random weights."""
    folder = tmp_path_factory.mktemp("codec")
    small_model("sqcodec-fine").save_pretrained(folder)
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Five clips of one to two seconds, one of them not audio."""
    folder = tmp_path_factory.mktemp("recordings")
    english = read_audio(ENGLISH, 16000)
    for number, seconds in enumerate((1.0, 2.0, 1.5, 1.25)):
        start = 20000 * number
        soundfile.write(folder / f"clip{number}.wav", english[start : start + int(16000 * seconds)], 16000)
    (folder / "broken.wav").write_bytes(b"RIFF, but no more")
    return folder


@pytest.fixture(scope="module")
def finished(folder, recordings, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsqcodec.batches.MAX_BATCH_SIZE", 2)
        summary = evaluate(Settings((str(recordings),), (str(folder),), METRICS), output, command="fsqcodec ...")
    write_reports(output)
    return output, summary


def rows_of(output: Path) -> list[dict]:
    return pyarrow.parquet.read_table(output / "clips.parquet").to_pylist()


def test_numbers_are_those_of_the_packages_by_hand(finished, folder, recordings):
    output, summary = finished
    codec = load_codec(folder)
    row = next(row for row in rows_of(output) if row["clip"].endswith("clip1.wav"))
    reference = read_audio(recordings / "clip1.wav", 16000)
    (codes,) = codec.encode([reference])
    (estimate,) = codec.decode([codes], [len(reference)])
    assert row["audio_codes"] == codes.tolist()
    assert row["payload_bits"] == pytest.approx(codes.shape[1] * np.log2(9 * 7 * 5))
    assert (row["delay_seconds"], row["error"], row["failures"]) == (0, None, "{}")
    assert row["length_difference"] == codes.shape[1] * codec.model.config.hop_length - len(reference)
    assert row["pesq_wb"] == pytest.approx(pesq(16000, reference, estimate, "wb"), abs=1e-4)
    assert row["stoi"] == pytest.approx(stoi(reference, estimate, 16000), abs=1e-5)


def test_summary_holds_the_means_and_says_what_was_left_out(finished, folder):
    output, summary = finished
    assert json.loads((output / "summary.json").read_text()) == summary
    rows = rows_of(output)
    entry = summary["codecs"][str(folder)]
    for metric in METRICS:
        values = np.array([row[metric] for row in rows])
        assert entry["metrics"][metric]["mean"] == pytest.approx(values.mean())
        assert entry["metrics"][metric]["standard_error"] == pytest.approx(values.std(ddof=1) / 2)
    assert entry["num_clips"] == summary["data"]["num_clips"] == 4
    assert entry["measured_bitrate"] == pytest.approx(entry["nominal_bitrate"], rel=0.01)
    ((bad, reason),) = summary["data"]["bad_clips"].items()
    assert bad.endswith("broken.wav") and "not an audio file" in reason
    assert entry["tokens"]["num_frames"] == sum(len(row["audio_codes"][0]) for row in rows)
    assert 0 <= entry["robustness"]["reencoding"]["tokens_changed_share"] <= 1
    assert not (output / "journal.jsonl").exists()


def test_random_weights_are_called_so(finished):
    output, summary = finished
    (entry,) = summary["codecs"].values()
    assert "as with random or foreign weights" in entry["warnings"][0]
    for report in ("report.md", "report.html"):
        assert "as with random or foreign weights" in (output / report).read_text()


def test_the_page_holds_what_it_shows(finished, folder):
    output, _ = finished
    page = (output / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    players = re.findall(r"<figcaption>([^<]*)</figcaption><audio[^>]* src=\"data:audio/flac;base64,([^\"]*)", page)
    assert len(players) == 4 * 2
    assert [title for title, _ in players[:2]] == ["original", str(folder)]
    heard = output / "heard.flac"
    heard.write_bytes(base64.b64decode(players[0][1]))
    first = read_audio(heard, 16000)
    assert np.array_equal(first, read_audio(output / "audio" / "0" / "original.flac", 16000))


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_tables(finished, folder, recordings, tmp_path):
    """SIGKILL as soon as the journal has grown by a line, until a run comes through."""
    output, summary = finished
    program = (
        "import fsqcodec.evaluation.run as run, fsqcodec.batches as batches; batches.MAX_BATCH_SIZE = 2;"
        f"run.evaluate(run.Settings(({str(recordings)!r},), ({str(folder)!r},), {METRICS}), {str(tmp_path)!r},"
        "command='fsqcodec ...')"
    )
    journal, kills = tmp_path / "journal.jsonl", 0
    while True:
        lines_before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > lines_before:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        assert kills < 20
    assert kills >= 2
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "clips.parquet").read_bytes() == (output / "clips.parquet").read_bytes()


def test_an_unfinished_run_of_something_else_is_kept(folder, recordings, tmp_path):
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"settings": "others"}\n')
    with pytest.raises(ValueError, match="asked for something else"):
        evaluate(Settings((str(recordings),), (str(folder),), METRICS), tmp_path)
    assert journal.read_text() == '{"settings": "others"}\n'


def test_other_rates_and_failing_metrics(folder, tmp_path):
    english = read_audio(ENGLISH, 24000)[24000:60000]
    soundfile.write(tmp_path / "a.wav", english, 24000)
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "narrow.wav", read_audio(ENGLISH, 8000)[8000:16000], 8000)
    summary = evaluate(Settings((str(tmp_path),), (str(folder),), METRICS), tmp_path / "out")
    rows = {row["clip"].rpartition("/")[2]: row for row in rows_of(tmp_path / "out")}
    assert rows["a.wav"]["sampling_rate"] == 24000 and rows["a.wav"]["pesq_wb"] > 1
    assert rows["silence.wav"]["pesq_wb"] is None and "pesq_wb" in json.loads(rows["silence.wav"]["failures"])
    assert "at least 16000 Hz" in json.loads(rows["narrow.wav"]["failures"])["pesq_wb"]
    pesq_wb = summary["codecs"][str(folder)]["metrics"]["pesq_wb"]
    assert (pesq_wb["num_clips"], pesq_wb["num_failed"]) == (1, 2)
    assert pesq_wb["mean"] == rows["a.wav"]["pesq_wb"]
    assert any("leave out clips" in warning for warning in summary["codecs"][str(folder)]["warnings"])


def test_words_are_counted_where_a_recognizer_is_named(folder, tmp_path):
    recognizer = save_small_recognizer(tmp_path / "recognizer")
    shutil.copy(GERMAN, tmp_path / "clip.flac")
    (tmp_path / "clips.jsonl").write_text('{"path": "clip.flac", "transcript": "Der Kontinent Eurasien"}\n')
    settings = Settings((str(tmp_path / "clips.jsonl"),), (str(folder),), ("stoi",), recognizer=str(recognizer))
    summary = evaluate(settings, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    codec = load_codec(folder)
    clip = read_audio(GERMAN, 16000)
    (decoded,) = codec.decode(codec.encode([clip]), [len(clip)])
    pipeline = load_recognizer(recognizer)
    assert row["recognized"] == recognize(decoded, 16000, pipeline)
    wer, cer = (errors([row["transcript"]], [row["recognized"]]).rate for errors in (word_errors, character_errors))
    assert summary["codecs"][str(folder)]["recognition"] == {"wer": wer, "cer": cer, "num_clips": 1}
    original = character_errors([row["transcript"]], [recognize(clip, 16000, pipeline)])
    assert summary["recognition"]["model"] == str(recognizer)
    assert summary["recognition"]["original"]["cer"] == original.rate


def test_nothing_of_an_earlier_run_is_shown(folder, tmp_path):
    """A clip that the codec could take, and then one of the same name that it can't: its player goes."""
    (tmp_path / "clips").mkdir()
    clip, output = tmp_path / "clips" / "дом.wav", tmp_path / "out"
    settings = Settings((str(clip.parent),), (str(folder),), ("si_sdr_db",))
    soundfile.write(clip, read_audio(ENGLISH, 16000)[8000:24000], 16000)
    (output / "audio").mkdir(parents=True)
    (output / "audio" / "mine.wav").touch()
    assert list(evaluate(settings, output)["examples"][0]["decoded"]) == [str(folder)]
    soundfile.write(clip, 20 * read_audio(ENGLISH, 16000)[8000:24000], 16000, subtype="FLOAT")
    summary = evaluate(settings, output)
    assert summary["examples"] == [{"clip": "clips/дом.wav", "original": "audio/0/original.flac", "decoded": {}}]
    assert "[-1, 1]" in summary["codecs"][str(folder)]["failed_clips"]["clips/дом.wav"]
    left = sorted(str(path.relative_to(output / "audio")) for path in (output / "audio").rglob("*.*"))
    assert left == ["0/original.flac", "mine.wav"]
    _, page = write_reports(output)  # though nothing could be measured
    assert page.read_text().count("<audio") == 1 and "Quality over rate" not in page.read_text()


def test_a_codec_that_decodes_nan_is_reported_and_the_others_go_on(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    model = small_model("sqcodec-fine")
    with torch.no_grad():
        model.decoder.to_waveform.bias.fill_(torch.nan)
    model.save_pretrained(broken)
    summary = evaluate(Settings((str(GERMAN),), (str(broken), str(folder)), ("stoi",)), tmp_path / "out")
    ((reason, *_),) = [tuple(summary["codecs"][str(broken)]["failed_clips"].values())]
    assert "NaN" in reason
    assert summary["codecs"][str(folder)]["num_clips"] == 1
    write_reports(tmp_path / "out")


@pytest.mark.skipif(shutil.which("opusenc") is None or shutil.which("c2enc") is None, reason="needs opus-tools, codec2")
def test_the_command_compares_with_classical_codecs(folder, tmp_path):
    output = tmp_path / "out"
    arguments = [
        "evaluate",
        CLIP_DIR,
        "-c",
        folder,
        "-c",
        "opus:6",
        "-c",
        "codec2:3200",
        "--metric",
        "stoi",
        "-o",
        output,
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    summary = json.loads((output / "summary.json").read_text())
    ours, opus, codec2 = (entry["metrics"]["stoi"]["mean"] for entry in summary["codecs"].values())
    assert ours < 0.5 < codec2 < opus
    assert summary["codecs"]["codec2:3200"]["measured_bitrate"] == pytest.approx(3200)
    assert f"| opus:6 | {summary['codecs']['opus:6']['measured_bitrate'] / 1000:.2f} |" in result.stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nowhere", "-c", "opus:6"], "nowhere is no file"),
        ([GERMAN, "-c", "opus:loud"], "after the colon comes a bit rate"),
        ([GERMAN, "-c", "opus:6", "--metric", "mos"], "there is no metric 'mos'"),
        ([GERMAN, "-c", "opus:6", "-c", "nobody/nothing"], "no model 'nobody/nothing'"),
        ([GERMAN, "-c", "opus:6", "--recognizer", "nobody"], "no clip has a transcript"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, complaint, tmp_path):
    if shutil.which("opusenc") is None:
        pytest.skip("needs opus-tools")
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "-o", str(tmp_path)])
    assert result.exit_code == 1 and complaint in result.stderr
    assert not list(tmp_path.iterdir())  # nothing in the way of the corrected command
