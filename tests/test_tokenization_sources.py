"""Clips are the same rows wherever they lie, and what is wrong with a source is said."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest

from fsqcodec.audio import read_audio_and_rate
from fsqcodec.tokenization.encoding import row_seconds
from fsqcodec.tokenization.sources import open_source
from recordings import write_recordings

NUM_CLIPS = 7


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def corpus(tmp_path):
    return tmp_path / "corpus", write_recordings(tmp_path / "corpus", NUM_CLIPS)


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def all_rows(source):
    return [row for part in source.parts for row in part.read()]


def assert_has(source, clips, key=lambda row: row.columns["path"]):
    """All clips in their order, twice the same, in parts that know their number of rows, with columns of the schema."""
    rows = all_rows(source)
    assert [key(row) for row in rows] == list(clips)
    for row, clip in zip(rows, clips.values()):
        read_row, seconds = row_seconds(row)
        audio, sampling_rate = read_audio_and_rate(read_row.audio)
        assert np.array_equal(audio, np.round(clip * 32768) / 32768) and sampling_rate == 16000
        assert seconds == len(clip) / 16000
        assert set(row.columns) <= set(source.schema.names)
    for part in source.parts:
        assert part.num_rows in (None, len(list(part.read())))
    assert all_rows(source) == rows


def rows_of(folder, embedded: bool) -> datasets.Dataset:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    table = datasets.Dataset.from_list(rows)
    if embedded:
        audio = [{"path": row["path"], "bytes": (folder / row["path"]).read_bytes()} for row in rows]
        table = table.remove_columns("path").add_column("audio", audio).cast_column("audio", datasets.Audio())
        table = table.rename_column("words", "id")
    return table


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_folders_globs_and_manifests(corpus, shard_size):
    folder, clips = corpus
    rows_of(folder, embedded=False).to_csv(folder / "manifest.csv")
    rows_of(folder, embedded=False).to_parquet(folder / "manifest.parquet", batch_size=4)
    for name in ("jsonl", "csv", "parquet"):
        source = open_source(f"{folder}/manifest.{name}", shard_size)
        assert_has(source, clips)
        assert source.schema.names == ["path", "speaker", "words"]
        assert all_rows(source)[4].columns == {"path": "0004.flac", "speaker": "s1", "words": 4}
        assert len(source.parts) == -(-NUM_CLIPS // shard_size)
    assert_has(open_source(f"{folder}/*.flac", shard_size), clips)
    (folder / "manifest.parquet").unlink()
    named = {f"corpus/{name}": clip for name, clip in clips.items()}
    assert_has(open_source(str(folder), shard_size), named)


def test_a_part_of_a_manifest(corpus):
    folder, clips = corpus
    first = {name: clip for name, clip in clips.items() if name == "0003.flac"}
    assert_has(open_source(f"{folder}/manifest.jsonl:0003", 10), first)
    with pytest.raises(ValueError, match="has no rows whose name starts with 'x'"):
        open_source(f"{folder}/manifest.jsonl:x", 10)


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_parquet_that_holds_the_audio(corpus, tmp_path, shard_size):
    folder, clips = corpus
    (tmp_path / "set").mkdir()
    rows = rows_of(folder, embedded=True)
    rows.select(range(3)).to_parquet(tmp_path / "set" / "0.parquet")
    rows.select(range(3, NUM_CLIPS)).to_parquet(tmp_path / "set" / "1.parquet", batch_size=2)
    source = open_source(str(tmp_path / "set"), shard_size)
    assert_has(source, clips, key=lambda row: f"{row.columns['id']:04}.flac")
    assert source.schema.names == ["speaker", "id"]


def test_a_streamed_data_set(corpus, tmp_path, monkeypatch):
    folder, clips = corpus
    (tmp_path / "org" / "set").mkdir(parents=True)
    rows = rows_of(folder, embedded=True)
    rows.select(range(3)).to_parquet(tmp_path / "org" / "set" / "train-0.parquet")
    rows.select(range(3, NUM_CLIPS)).to_parquet(tmp_path / "org" / "set" / "train-1.parquet")
    rows.select(range(1)).to_parquet(tmp_path / "org" / "set" / "test-0.parquet")
    monkeypatch.chdir(tmp_path)
    source = open_source("org/set:train", 2)
    assert len(source.parts) == 2
    assert_has(source, clips, key=lambda row: f"{row.columns['id']:04}.flac")
    assert len(all_rows(open_source("org/set:test", 2))) == 1


@pytest.mark.parametrize("suffix", ["tar", "tgz"])
def test_webdataset_tars(corpus, tmp_path, suffix):
    folder, clips = corpus
    names = list(clips)
    for number, part in enumerate((names[:3], names[3:])):
        members = {}
        for name in part:
            members[f"x/{name}"] = (folder / name).read_bytes()
            members[f"x/{name[:4]}.json"] = json.dumps({"name": name}).encode()
            members[f"x/{name[:4]}.npy"] = b"\xff\x00" * 3
        write_tar(tmp_path / f"{number}.{suffix}", members)
    source = open_source(f"{tmp_path}/*.{suffix}", 2)
    assert len(source.parts) == 2
    assert_has(source, clips, key=lambda row: json.loads(row.columns["json"])["name"])
    assert all_rows(source)[5].columns == {"id": "x/0005", "json": '{"name": "0005.flac"}', "npy": b"\xff\x00" * 3}


def test_what_is_wrong_in_a_tar_is_said_of_its_sample(corpus, tmp_path):
    audio = (corpus[0] / "0000.flac").read_bytes()
    members = {"a.flac": audio, "a.txt": b"first", "b.txt": b"no audio", "c.l.flac": audio, "c.r.flac": audio}
    members |= {"d.flac": audio, "d.txt": b"\xff", "e.flac": audio, "e.lab": b"new", "f.FLAC": audio, "f.txt": b"last"}
    write_tar(tmp_path / "t.tar", members)
    rows = all_rows(open_source(str(tmp_path / "t.tar"), 10))
    errors = {row.columns["id"]: row.error for row in rows}
    assert errors["a"] is errors["f"] is None
    assert "has 0 audio files" in errors["b"] and "has 2 audio files" in errors["c"]
    assert "d.txt is not UTF-8" in errors["d"] and "e.lab is a file that the first sample" in errors["e"]
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: whole.index(b"last") - 2000])
    rows = all_rows(open_source(str(tmp_path / "t.tar"), 10))
    assert rows[0].error is None
    assert "the rest of" in rows[-1].error


def test_audio_behind_a_url(corpus):
    folder, clips = corpus
    lines = [json.dumps({"path": (folder / name).as_uri()}) + "\n" for name in clips]
    (folder / "urls.jsonl").write_text("".join(lines))
    assert_has(open_source(f"{folder}/urls.jsonl", 10), clips, key=lambda row: row.name.rpartition("/")[2])


def test_rows_without_audio_or_name(tmp_path, corpus):
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav"}\n{"path": null}\n')
    errors = [row.error for row in all_rows(open_source(f"{tmp_path}/m.jsonl", 10))]
    assert errors[0] is None and "has no path" in errors[1]
    unnamed = rows_of(corpus[0], embedded=True).select_columns(["audio"])
    unnamed.to_parquet(tmp_path / "u.parquet")
    assert [row.columns["id"] for row in all_rows(open_source(f"{tmp_path}/u.parquet", 3))] == list(corpus[1])


def test_what_is_wrong_is_said(corpus, tmp_path):
    folder, _ = corpus
    with pytest.raises(FileNotFoundError, match="no data set that loads"):
        open_source("nobody/nothing:test", 10)
    for name in ("x.parquet", "x.tar"):
        (tmp_path / name).write_text("nothing of that kind")
        with pytest.raises(ValueError, match=f"{name} is no .* that can be read"):
            open_source(str(tmp_path / name), 10)
    (tmp_path / "m.csv").write_text("sound,speaker\na,b\n")
    with pytest.raises(ValueError, match="m.csv has the columns sound, speaker: one of path"):
        open_source(str(tmp_path / "m.csv"), 10)
    write_tar(folder / "t.tar", {})
    with pytest.raises(ValueError, match="files of several kinds"):
        open_source(str(folder), 10)
    datasets.Dataset.from_dict({"path": ["a"]}).to_parquet(tmp_path / "p.parquet")
    datasets.Dataset.from_dict({"path": ["a"], "b": [1]}).to_parquet(tmp_path / "q.parquet")
    with pytest.raises(ValueError, match="q.parquet has other columns than"):
        open_source(f"{tmp_path}/[pq].parquet", 10)
