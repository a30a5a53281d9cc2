"""The same tokens whatever the shards, batches, processes and interruptions; every clip is a row or an error."""

import json
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from fsqcodec.codecs import load_codec
from fsqcodec.files import load_fsq_codec
from fsqcodec.packing import token_digest
from fsqcodec.tokenization import Settings, tokenize
from fsqcodec.tokenization.estimate import estimate
from fsqcodec.tokenization.run import Run
from recordings import write_broken, write_codec, write_recordings, write_unusual
from test_cli import run as run_command

NUM_CLIPS = 23


@pytest.fixture(scope="module")
def codec_dir(tmp_path_factory):
    return str(write_codec(tmp_path_factory.mktemp("codec")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_recordings(folder, NUM_CLIPS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tokens_of(output) -> dict[str, list[int]]:
    """Codes by path or id; no clip may be there twice."""
    rows = [row for path in sorted((output / "data").glob("*")) for row in pq.read_table(path).to_pylist()]
    tokens = {row["path" if "path" in row else "id"]: row["audio_codes"] for row in rows}
    assert len(tokens) == len(rows)
    return tokens


def files_of(output) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_rows_are_the_codes_of_each_clip_alone_and_keep_what_the_source_has(codec_dir, corpus, tmp_path):
    folder, clips = corpus
    settings = Settings(str(folder / "manifest.jsonl"), codec_dir, shard_size=10)
    result = tokenize(settings, tmp_path / "out")
    assert (result.num_shards, result.num_missing_shards, result.num_rows, result.num_errors) == (3, 0, NUM_CLIPS, 0)
    assert result.seconds == pytest.approx(sum(map(len, clips.values())) / 16000)
    rows = datasets.load_dataset("parquet", data_files=f"{tmp_path}/out/data/*.parquet", split="train")
    assert rows.column_names == ["path", "speaker", "words", "audio_codes", "num_frames", "num_samples"]
    assert rows["path"] == list(clips) and rows["words"] == list(range(NUM_CLIPS))
    assert rows.features["audio_codes"] == datasets.List(datasets.Value("int32"))
    codec = load_codec(codec_dir)
    for row in rows:
        (codes,) = codec.encode([clips[row["path"]]])
        assert row["audio_codes"] == codes[0].tolist()
        assert (row["num_frames"], row["num_samples"]) == (codes.shape[-1], len(clips[row["path"]]))
    assert len({tuple(codes) for codes in rows["audio_codes"]}) == NUM_CLIPS  # they are not all alike


def test_the_folder_loads_by_its_card_and_says_what_the_tokens_mean(codec_dir, corpus, tmp_path):
    tokenize(Settings(str(corpus[0]), codec_dir, shard_size=20), tmp_path / "out")
    assert datasets.load_dataset(str(tmp_path / "out"))["train"].num_rows == NUM_CLIPS
    facts = json.loads(pq.read_schema(tmp_path / "out/data/train-00001-of-00002.parquet").metadata[b"fsqcodec"])
    assert facts["token_digest"] == token_digest(load_fsq_codec(codec_dir))
    assert facts["token_digest"] in (tmp_path / "out" / "README.md").read_text()
    assert (facts["sampling_rate"], facts["frame_rate"], facts["codebook_sizes"]) == (16000, 2000.0, [245])
    assert facts["versions"]["soundfile"]
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 0


def test_batches_and_shards_do_not_change_tokens(codec_dir, corpus, tmp_path):
    expected = None
    for number, (shard_size, batch_size) in enumerate([(1000, 16), (1, 16), (7, 1), (11, 3)]):
        output = tmp_path / str(number)
        tokenize(Settings(str(corpus[0]), codec_dir, shard_size=shard_size, batch_size=batch_size), output)
        expected = expected or tokens_of(output)
        assert tokens_of(output) == expected


def test_order_does_not_change_tokens(codec_dir, corpus, tmp_path):
    folder, clips = corpus
    lines = (folder / "manifest.jsonl").read_text().splitlines(keepends=True)
    (folder / "reversed.jsonl").write_text("".join(reversed(lines)))
    for name in ("manifest", "reversed"):
        tokenize(Settings(str(folder / f"{name}.jsonl"), codec_dir), tmp_path / name)
    assert tokens_of(tmp_path / "manifest") == tokens_of(tmp_path / "reversed")


def test_a_run_that_stopped_anywhere_ends_with_the_same_files(codec_dir, corpus, tmp_path):
    settings = Settings(str(corpus[0]), codec_dir, shard_size=5)
    tokenize(settings, tmp_path / "whole")
    for num_done in (0, 3, 12, NUM_CLIPS - 1):
        output = tmp_path / f"stopped{num_done}"
        run = Run(settings, output, None)
        rows = (row for part in run.missing_parts() for row in run.tokenize_part(part))
        for _ in range(num_done):
            next(rows)
        rows.close()
        finished = {path: path.stat().st_mtime_ns for path in (output / "data").glob("*.parquet")}
        assert tokenize(settings, output).num_rows == NUM_CLIPS
        assert files_of(output) == files_of(tmp_path / "whole")
        assert all(path.stat().st_mtime_ns == time for path, time in finished.items())  # not written again


def test_processes_share_the_shards_and_the_last_one_writes_the_rest(codec_dir, corpus, tmp_path, monkeypatch):
    settings = Settings(str(corpus[0]), codec_dir, shard_size=4)
    tokenize(settings, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, missing in ((2, 4), (0, 2), (1, 0)):
        assert not (tmp_path / "three" / "README.md").exists()
        monkeypatch.setenv("RANK", str(rank))
        assert tokenize(settings, tmp_path / "three").num_missing_shards == missing
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


def test_another_run_is_refused_and_left_alone(codec_dir, corpus, tmp_path):
    folder, _ = corpus
    output = tmp_path / "out"
    settings = Settings(str(folder / "manifest.jsonl"), codec_dir, shard_size=9)
    tokenize(settings, output)
    before = files_of(output)
    lines = (folder / "manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "manifest.jsonl").write_text("".join(lines[:5]))
    for other, difference in (
        (Settings(settings.source, codec_dir, shard_size=8), "its shard_size differ"),
        (Settings(settings.source, codec_dir, "mix", 9), "its channels differ"),
        (Settings(str(tmp_path / "manifest.jsonl"), codec_dir, shard_size=9), "its source, source_digest differ"),
    ):
        with pytest.raises(ValueError, match=difference):
            tokenize(other, output)
    (output / "run.json").unlink()
    with pytest.raises(ValueError, match="holds files that are not of this run"):
        tokenize(settings, output)
    del before["run.json"]
    assert files_of(output) == before


def test_every_file_is_a_row_or_an_error(codec_dir, corpus, tmp_path):
    folder = tmp_path / "recordings"
    clips = write_recordings(folder / "good", 10)
    lengths = write_unusual(folder / "unusual", long_minutes=0.2)
    reasons = write_broken(folder / "broken")
    output = tmp_path / "out"
    result = run_command("tokenize", folder, "-m", codec_dir, "-o", output, "--shard-size", 7)
    assert result.exit_code == 0
    assert "18 clips" in result.stdout and "12 clips failed" in result.stderr
    rows = datasets.load_dataset(str(output), split="train")
    found = dict(zip(rows["path"], rows["num_samples"]))
    assert found == {
        **{f"recordings/good/{name}": len(clip) for name, clip in clips.items()},
        **{f"recordings/unusual/{name}": length for name, length in lengths.items()},
    }
    errors = {row["name"]: row for row in pq.read_table(output / "errors.parquet").to_pylist()}
    assert set(errors) == {f"recordings/broken/{name}" for name in reasons}
    for name, reason in reasons.items():
        error = errors[f"recordings/broken/{name}"]
        assert reason in error["reason"] and str(tmp_path) not in error["reason"], error
        assert error["shard"] * 7 + error["row"] == sorted(errors).index(error["name"])  # where it lies in the source
    mixed = tokenize(Settings(str(folder / "broken"), codec_dir, channels="mix"), tmp_path / "mixed")
    assert (mixed.num_rows, mixed.num_errors) == (2, 10)


def test_a_link_to_nowhere_is_an_error(codec_dir, corpus, tmp_path):
    shutil.copytree(corpus[0], tmp_path / "recordings")
    (tmp_path / "recordings" / "lost.flac").symlink_to(tmp_path / "nowhere.flac")
    result = tokenize(Settings(str(tmp_path / "recordings"), codec_dir), tmp_path / "out")
    assert (result.num_rows, result.num_errors) == (NUM_CLIPS, 1)
    (error,) = pq.read_table(tmp_path / "out" / "errors.parquet").to_pylist()
    assert error["name"] == "recordings/lost.flac" and str(tmp_path) not in error["reason"]


def test_fail_fast_stops_at_the_first(codec_dir, corpus, tmp_path):
    folder = tmp_path / "recordings"
    shutil.copytree(corpus[0], folder)
    (folder / "0013.flac").write_text("no audio")
    arguments = ("tokenize", folder, "-m", codec_dir, "-o", tmp_path / "out", "--shard-size", 5)
    result = run_command(*arguments, "--fail-fast")
    assert result.exit_code == 1
    assert "0013.flac is not an audio file" in result.stderr
    assert len(tokens_of(tmp_path / "out")) == 10  # the shards before
    assert run_command(*arguments).exit_code == 0
    assert len(tokens_of(tmp_path / "out")) == NUM_CLIPS - 1


def test_nothing_but_errors_is_an_error(codec_dir, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    result = run_command("tokenize", tmp_path / "text.wav", "-m", codec_dir, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "not one of 1 clips could be encoded" in result.stderr
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 1


def test_a_device_that_fails_is_no_fault_of_the_clips(codec_dir, corpus, tmp_path, monkeypatch):
    from fsqcodec import CodecModel

    def encode(self, *_, **__):
        monkeypatch.setattr("torch.ones", encode)
        raise RuntimeError("device-side assert")

    with monkeypatch.context() as patches:
        patches.setattr(CodecModel, "encode", encode)
        with pytest.raises(RuntimeError, match="device-side assert"):
            tokenize(Settings(str(corpus[0]), codec_dir), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_dry_run_counts_what_a_run_gives(codec_dir, corpus, tmp_path):
    folder = tmp_path / "recordings"
    clips = write_recordings(folder, 12)
    (folder / "text.wav").write_text("no audio")
    settings = Settings(str(folder), codec_dir, shard_size=5)
    expected = estimate(settings)
    assert not (tmp_path / "out").exists()
    result = tokenize(settings, tmp_path / "out")
    assert (expected["shards"], expected["clips"], expected["unreadable"]) == (3, 13, 1)
    assert expected["hours"] == round(result.seconds / 3600, 3)
    frames = sum(len(codes) for codes in tokens_of(tmp_path / "out").values())
    assert expected["frames"] == pytest.approx(frames, abs=len(clips))  # the last frame of a clip is a part of one
    assert expected["bytes"] == pytest.approx(frames * np.log2(245) / 8, rel=0.01)
    printed = run_command("tokenize", folder, "-m", codec_dir, "-o", tmp_path / "never", "--dry-run")
    assert printed.exit_code == 0 and not (tmp_path / "never").exists()
    assert f"frames                      {expected['frames']:,}" in printed.stdout


def test_tokens_take_the_bits_they_need(tmp_path):
    """Of a codebook as large as the presets', with codes that nothing predicts."""
    import pyarrow as pa

    from fsqcodec.tokenization.encoding import EncodedRow
    from fsqcodec.tokenization.shards import shard_schema, write_shard
    from fsqcodec.tokenization.sources import Row

    random = np.random.default_rng(0)
    rows = [
        EncodedRow(number, Row("a", None, {"id": str(number)}), random.integers(0, 117649, (1, 600)), 1)
        for number in range(500)
    ]
    write_shard(
        tmp_path / "s.parquet", shard_schema(pa.schema({"id": pa.string()}), {"codebook_sizes": [117649]}), rows
    )
    bits = (tmp_path / "s.parquet").stat().st_size * 8 / (500 * 600)
    assert bits < 1.12 * np.log2(117649)
    assert pq.read_table(tmp_path / "s.parquet")["audio_codes"][499].as_py() == rows[499].codes[0].tolist()


def test_wrong_input_is_said(codec_dir, corpus, tmp_path):
    def message(*arguments) -> str:
        result = run_command("tokenize", *arguments, "-o", tmp_path / "out")
        assert result.exit_code == 1
        return result.stderr

    assert "is no file, folder, glob" in message(tmp_path / "nowhere", "-m", codec_dir)
    assert "the source is empty" in message("", "-m", codec_dir)
    assert "no model" in message(corpus[0], "-m", tmp_path / "nowhere")
    assert "address 'x' is of a Ray cluster" in message(corpus[0], "-m", codec_dir, "--address", "x")
    assert "shard_size is 0: at least 1" in message(corpus[0], "-m", codec_dir, "--shard-size", 0)
    (tmp_path / "m.csv").write_text("path,num_frames\na.wav,3\n")
    assert "has a column num_frames" in message(tmp_path / "m.csv", "-m", codec_dir)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    assert "is a file: a folder for the shards is wanted" in message(corpus[0], "-m", codec_dir)
