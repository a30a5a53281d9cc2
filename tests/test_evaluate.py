"""`fsqcodec evaluate`: its numbers are those of the packages called by hand, and no interruption changes them."""

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
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
from fsqcodec.batches import batches_by_length
from fsqcodec.codecs import load_codec, model_digest
from fsqcodec.evaluation.recognition import (
    ErrorCounts,
    bootstrap_interval,
    character_errors,
    load_recognizer,
    recognize,
    word_errors,
)
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
        patch.setattr("fsqcodec.evaluation.run.batches_by_length", partial(batches_by_length, max_batch_size=2))
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
        "import functools, fsqcodec.evaluation.run as run;"
        "run.batches_by_length = functools.partial(run.batches_by_length, max_batch_size=2);"
        f"run.evaluate(run.Settings(({str(recordings)!r},), ({str(folder)!r},), {METRICS}), {str(tmp_path)!r},"
        "command='fsqcodec ...')"
    )

    def num_lines() -> int:
        try:
            return (tmp_path / "journal.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:  # not there yet, or removed at the end
            return 0

    kills = 0
    while True:
        lines_before = num_lines()
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if num_lines() > lines_before:
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


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return save_small_recognizer(tmp_path_factory.mktemp("recognizer"))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A manifest of four clips: German with transcript, English with and without, one of an unknown language."""
    folder = tmp_path_factory.mktemp("spoken")
    english, german = (read_audio(path, 16000) for path in (ENGLISH, GERMAN))
    clips = {
        "de": (german[:32000], {"language": "de", "transcript": "Der Kontinent Eurasien"}),
        "en": (english[:32000], {"language": "en", "transcript": "the earliest book"}),
        "en-silent": (english[32000:56000], {"language": "en", "transcript": None}),
        "unknown": (english[56000:80000], {"language": None, "transcript": "Bible"}),
    }
    rows = []
    for name, (audio, facts) in clips.items():
        soundfile.write(folder / f"{name}.wav", audio, 16000)
        rows.append(json.dumps({"path": f"{name}.wav", **facts}))
    (folder / "clips.jsonl").write_text("\n".join(rows))
    return folder / "clips.jsonl"


@pytest.fixture(scope="module")
def recognized(folder, spoken, recognizer, tmp_path_factory):
    output = tmp_path_factory.mktemp("recognized")
    settings = Settings((str(spoken),), (str(folder),), ("stoi",), recognizer=str(recognizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsqcodec.evaluation.run.batches_by_length", partial(batches_by_length, max_batch_size=2))
        summary = evaluate(settings, output)
    write_reports(output)
    return settings, output, summary


def counts_of(row: dict, rate: str) -> ErrorCounts | None:
    names = [f"{rate}_{name}" for name in ("hits", "substitutions", "deletions", "insertions")]
    return None if row[names[0]] is None else ErrorCounts(*(row[name] for name in names))


def test_words_are_counted_where_a_recognizer_is_named(recognized, folder, spoken, recognizer):
    _, output, summary = recognized
    codec, pipeline = load_codec(folder), load_recognizer(recognizer)
    rows = {row["clip"]: row for row in rows_of(output)}
    for name, row in rows.items():
        clip = read_audio(spoken.parent / name, 16000)
        (decoded,) = codec.decode(codec.encode([clip]))
        assert row["recognized_original"] == recognize(clip, 16000, pipeline)
        assert row["recognized"] == recognize(decoded, 16000, pipeline)
        assert counts_of(row, "dwer") == word_errors([row["recognized_original"]], [row["recognized"]])
        assert counts_of(row, "dcer") == character_errors([row["recognized_original"]], [row["recognized"]])
        if row["transcript"] is not None:
            assert counts_of(row, "wer") == word_errors([row["transcript"]], [row["recognized"]])
            assert counts_of(row, "cer") == character_errors([row["transcript"]], [row["recognized"]])
    assert counts_of(rows["en-silent.wav"], "wer") is counts_of(rows["en-silent.wav"], "cer") is None
    recognition = summary["codecs"][str(folder)]["recognition"]
    for rate, num_clips in (("wer", 3), ("cer", 3), ("dwer", 4), ("dcer", 4)):
        counts = [counts_of(row, rate) for row in rows.values() if counts_of(row, rate)]
        total = sum(counts, ErrorCounts())
        expected = {"rate": total.rate, "interval": bootstrap_interval(counts), "num_clips": num_clips, **vars(total)}
        assert recognition[rate] == expected


def test_the_recordings_are_the_reference(recognized, recognizer):
    """They have no errors against themselves; a transcript is not needed for that."""
    _, _, summary = recognized
    original = summary["recognition"]["original"]
    assert (summary["recognition"]["model"], summary["recognition"]["revision"]) == (str(recognizer), None)
    assert summary["recognition"]["digest"] == model_digest(load_recognizer(recognizer).model)
    assert (original["dwer"]["rate"], original["dcer"]["rate"]) == (0, 0)
    assert (original["dwer"]["num_clips"], original["wer"]["num_clips"]) == (4, 3)
    assert original["wer"]["hits"] + original["wer"]["substitutions"] + original["wer"]["deletions"] == 3 + 3 + 1


def test_languages_are_told_apart(recognized, folder):
    _, _, summary = recognized
    by_language = summary["codecs"][str(folder)]["recognition"]["by_language"]
    assert {name: errors["dwer"]["num_clips"] for name, errors in by_language.items()} == {"de": 1, "en": 2}
    assert by_language["en"]["wer"]["num_clips"] == 1


def test_reports_have_the_words(recognized, folder):
    _, output, summary = recognized
    rate = f"{100 * summary['codecs'][str(folder)]['recognition']['wer']['rate']:.1f} %"
    markdown, page = (output / "report.md").read_text(), (output / "report.html").read_text()
    assert markdown.count(rate) == 2 and page.count(rate) == 2  # among the metrics, among the words
    for report in (markdown, page):
        assert "de: 1 clips, 3 words" in report and "3 transcripts" in report and "the 4 recordings" in report


def test_words_do_not_depend_on_the_batches(recognized, tmp_path, monkeypatch):
    settings, output, summary = recognized
    monkeypatch.setattr("fsqcodec.evaluation.run.batches_by_length", partial(batches_by_length, max_batch_size=1))
    alone = evaluate(settings, tmp_path)
    assert [row["recognized"] for row in rows_of(tmp_path)] == [row["recognized"] for row in rows_of(output)]
    assert alone["recognition"] == summary["recognition"]
    for name, codec in alone["codecs"].items():
        assert codec["recognition"] == summary["codecs"][name]["recognition"]


def test_an_interrupted_run_recognizes_no_clip_twice(recognized, tmp_path, monkeypatch):
    settings, output, summary = recognized
    monkeypatch.setattr("fsqcodec.evaluation.run.batches_by_length", partial(batches_by_length, max_batch_size=2))
    num_recognized = []

    def recognize_until(stop: int):
        def recognize_or_stop(*arguments):
            if len(num_recognized) == stop:
                raise KeyboardInterrupt
            num_recognized.append(1)
            return recognize(*arguments)

        return recognize_or_stop

    for stop in (2, 6):  # after the first batch of the recordings, after the first of the codec
        monkeypatch.setattr("fsqcodec.evaluation.run.recognize", recognize_until(stop))
        with pytest.raises(KeyboardInterrupt):
            evaluate(settings, tmp_path)
    monkeypatch.setattr("fsqcodec.evaluation.run.recognize", recognize_until(8))
    assert evaluate(settings, tmp_path) == summary
    assert len(num_recognized) == 2 * 4
    assert (tmp_path / "clips.parquet").read_bytes() == (output / "clips.parquet").read_bytes()


def test_a_clip_that_the_recognizer_fails_on_is_left_out(recognized, folder, tmp_path, monkeypatch):
    settings, _, summary = recognized

    def fail_on_german(audio, sampling_rate, recognizer, language):
        if language == "de":
            raise RuntimeError("too short")
        return recognize(audio, sampling_rate, recognizer, language)

    monkeypatch.setattr("fsqcodec.evaluation.run.recognize", fail_on_german)
    failed = evaluate(settings, tmp_path)["codecs"][str(folder)]
    rows = {row["clip"]: row for row in rows_of(tmp_path)}
    assert rows["de.wav"]["recognized"] is rows["de.wav"]["dwer_hits"] is None
    assert rows["de.wav"]["recognition_failure"] == "too short" and rows["en.wav"]["recognition_failure"] is None
    assert failed["recognition"]["num_failed"] == 1 and failed["recognition"]["wer"]["num_clips"] == 2
    assert failed["recognition"]["by_language"]["de"]["wer"] is None
    assert failed["metrics"] == summary["codecs"][str(folder)]["metrics"]
    markdown, _ = write_reports(tmp_path)
    assert "(1 clips failed)" in markdown.read_text()


def test_clips_without_any_transcript_have_differences(folder, recognizer, tmp_path):
    settings = Settings((str(GERMAN),), (str(folder), "speech-3kbps"), ("stoi",), recognizer=str(recognizer))
    summary = evaluate(settings, tmp_path)
    for codec in summary["codecs"].values():
        assert codec["recognition"]["wer"] is None and codec["recognition"]["dcer"]["num_clips"] == 1
    markdown, _ = write_reports(tmp_path)
    assert "against 0 transcripts" in markdown.read_text()


def test_a_run_without_recognizer_says_nothing_of_words(finished, folder):
    output, summary = finished
    assert summary["recognition"] is summary["codecs"][str(folder)]["recognition"] is None
    assert not {"language", "recognized_original", "wer_hits"} & set(rows_of(output)[0])
    assert "WER ↓" not in (output / "report.md").read_text() + (output / "report.html").read_text()


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
        ([GERMAN, "-c", "opus:6", "--recognizer", "nobody"], "no speech recognition model 'nobody'"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, complaint, tmp_path):
    if shutil.which("opusenc") is None:
        pytest.skip("needs opus-tools")
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "-o", str(tmp_path)])
    assert result.exit_code == 1 and complaint in result.stderr
    assert not list(tmp_path.iterdir())  # nothing in the way of the corrected command
