"""Clips are found wherever they lie, and what is wrong with a source is said."""

import shutil

import datasets
import numpy as np
import pytest

from clips import CLIP_DIR, ENGLISH, GERMAN
from fsqcodec.audio import read_audio
from fsqcodec.data import find_clips


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def assert_is(clip, path):
    audio, sampling_rate = clip.read()
    assert sampling_rate == 16000 and np.array_equal(audio, read_audio(path, 16000))
    assert clip.seconds == len(audio) / sampling_rate


def test_files_folders_and_globs():
    assert [clip.name for clip in find_clips([ENGLISH])] == [ENGLISH.name]
    folder = find_clips([CLIP_DIR])
    assert [clip.name for clip in folder] == ["audio/lj_gutenberg.flac", "audio/thorsten_eurasien.flac"]
    assert_is(folder[1], GERMAN)
    assert [clip.name for clip in find_clips([f"{CLIP_DIR}/lj*"])] == [ENGLISH.name]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_manifests(suffix, tmp_path):
    shutil.copy(GERMAN, tmp_path / "clip.flac")
    columns = {"path": "clip.flac", "speaker": "t", "transcript": "Eurasien", "locale": "de"}
    rows = datasets.Dataset.from_dict({name: [value] for name, value in columns.items()})
    path = tmp_path / f"manifest.{suffix}"
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](path)
    (clip,) = find_clips([path])
    assert (clip.name, clip.transcript, clip.speaker, clip.language) == ("clip.flac", "Eurasien", "t", "de")
    assert_is(clip, GERMAN)


def test_a_part_of_a_manifest(tmp_path):
    manifest = tmp_path / "all.csv"
    manifest.write_text("path,speaker_id\ntrain/a.wav,1\neval/b.wav,2\ntrain/c.wav,1\n")
    assert [(clip.name, clip.speaker) for clip in find_clips([f"{manifest}:train/"])] == [
        ("train/a.wav", "1"),
        ("train/c.wav", "1"),
    ]
    assert len(find_clips([manifest])) == 3
    with pytest.raises(ValueError, match="has no row whose name starts with 'test/'"):
        find_clips([f"{manifest}:test/"])


@pytest.mark.parametrize("embedded", [False, True])
def test_data_sets_with_audio_as_path_or_bytes(embedded, tmp_path):
    audio = {"path": "clip.flac", "bytes": GERMAN.read_bytes()} if embedded else str(GERMAN)
    rows = datasets.Dataset.from_dict({"id": [7], "audio": [audio], "text": ["Eurasien"]})
    rows = rows.cast_column("audio", datasets.Audio())
    rows.to_parquet(tmp_path / "test.parquet")
    (clip,) = find_clips([tmp_path / "test.parquet"])
    assert (clip.name, clip.transcript) == ("7", "Eurasien")
    assert_is(clip, GERMAN)


def test_a_data_set_by_name_and_split(tmp_path, monkeypatch):
    folder = tmp_path / "org" / "set"
    folder.mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"path": [str(GERMAN)]})
    rows.to_parquet(folder / "train-0.parquet")
    rows.to_parquet(folder / "test-0.parquet")
    monkeypatch.chdir(tmp_path)
    (clip,) = find_clips(["org/set:test"])
    assert_is(clip, GERMAN)


def test_files_of_one_name_in_two_folders_keep_apart(tmp_path):
    for folder, source in (("x", ENGLISH), ("y", GERMAN)):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "clip.flac")
    first, second = find_clips([tmp_path / "x" / "clip.flac", tmp_path / "y" / "clip.flac"])
    assert (first.name, second.name) == ("clip.flac", str(tmp_path / "y" / "clip.flac"))
    assert_is(first, ENGLISH)
    assert_is(second, GERMAN)


@pytest.mark.parametrize("content", ["", "no JSON", '{"path": null}'])
def test_a_damaged_manifest_is_named(content, tmp_path):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"m.jsonl (is no manifest that can be read|has a row without path)"):
        find_clips([tmp_path / "m.jsonl"])


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no file, folder, glob, manifest"):
        find_clips(["nowhere"])
    with pytest.raises(FileNotFoundError, match="no data set that loads"):
        find_clips(["nobody/nothing:test"])
    with pytest.raises(ValueError, match="two clips are named lj_gutenberg.flac"):
        find_clips([ENGLISH, ENGLISH])
    (tmp_path / "m.csv").write_text("sound,speaker\na,b\n")
    with pytest.raises(ValueError, match="has the columns sound, speaker: one of path"):
        find_clips([tmp_path / "m.csv"])
