"""Clips from wherever audio lies: files, folders, globs, manifests, data sets.

A source is one of
    a file, a folder (searched for audio), or a glob;
    a manifest: .jsonl, .csv or .parquet with a column `path` or `file_name` (relative to the manifest) or `audio`, and
    perhaps `transcript` or `text`, `speaker`, `source`, `license` and `language`, and `segments`, a list of [start,
    length, path, speaker] for a file that several recordings were joined to; `manifest.jsonl:speech/` takes the rows
    whose names start so;
    a data set of the Hub, or one that `datasets.load_dataset` knows: `org/name`, `org/name:split`,
    `org/name:config:split`, with an audio column.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from .audio import AUDIO_SUFFIXES, audio_seconds, read_audio_and_rate
from .paths import resolve_files

MANIFEST_SUFFIXES = (".jsonl", ".csv", ".parquet")
FACT_COLUMNS = (  # of a clip: each fact's possible columns, the facts in the order of `Clip`
    ("transcript", "text", "transcription", "sentence"),
    ("speaker", "speaker_id"),
    ("source",),
    ("license",),
    ("language", "lang", "locale"),
)
NAME_COLUMNS = ("id", "path", "file")
PATH_COLUMNS = ("path", "file_name", "audio")


@dataclass(frozen=True)
class Clip:
    """One recording that has not been read yet.

    Args:
        name: its path or id, unique within its data.
        audio: the file, or a function that returns it or what it holds.
        transcript: what is said, where the data tells.
        speaker: who says it, where the data tells.
        source: the corpus it comes from, where the data tells.
        license: of this corpus, where the data tells.
        language: what is spoken, a tag or a name such as "en" or "German", where the data tells.
        segment_speakers: who says each of the recordings that the file was joined from, where the data lists them.
    """

    name: str
    audio: Path | Callable[[], Path | bytes]
    transcript: str | None = None
    speaker: str | None = None
    source: str | None = None
    license: str | None = None
    language: str | None = None
    segment_speakers: tuple[str | None, ...] = ()

    @property
    def speakers(self) -> frozenset[str]:
        """All who speak: those of the segments where the data lists them, else the one speaker; empty where one of them
        is unknown."""
        speakers = frozenset(self.segment_speakers or [self.speaker])
        return frozenset() if None in speakers else speakers

    @property
    def seconds(self) -> float:
        """Duration by the header. Raises as `read` does."""
        return audio_seconds(self._source())

    def read(self, channels: str = "refuse", num_channels: int = 1) -> tuple[np.ndarray, int]:
        """Float32 audio, mono `(num_samples,)` or of two channels `(2, num_samples)`, and its sampling rate in Hz;
        arguments and errors are those of `fsqcodec.audio.read_audio`."""
        return read_audio_and_rate(self._source(), channels, num_channels)

    def _source(self) -> Path | bytes:
        return self.audio() if callable(self.audio) else self.audio


def find_clips(sources: Iterable[str | os.PathLike]) -> list[Clip]:
    """The clips of all sources, in the order given; folders are searched in the order of their paths.

    Raises:
        FileNotFoundError: a source that is nothing of what the module's docstring lists.
        ValueError: a manifest that can't be read, one without the columns or without rows that start as asked, or two
            clips with one name.
    """
    clips = {}
    for source in map(os.fspath, sources):
        for clip in _clips_of(source):
            if clip.name in clips and isinstance(clip.audio, Path) and clip.audio != clips[clip.name].audio:
                clip = replace(clip, name=os.fspath(clip.audio))  # the same name in another folder
            if clip.name in clips:
                raise ValueError(f"two clips are named {clip.name}: give each source once")
            clips[clip.name] = clip
    return list(clips.values())


def source_kind(source: str) -> Literal["manifest", "files", "data set"]:
    """Which of the kinds of the module's docstring `source` is. Raises `FileNotFoundError` where it is none."""
    if not source:
        raise FileNotFoundError("the source is empty: a file, folder, glob, manifest, or data set like org/name:split")
    manifest, _ = split_manifest(source)
    if manifest.lower().endswith(MANIFEST_SUFFIXES) and os.path.isfile(manifest):
        return "manifest"
    if Path(source).exists() or any(mark in source for mark in "*?["):
        return "files"
    if 1 <= source.count("/") + source.count(":") <= 3 and not source.startswith((".", "/")):
        return "data set"
    raise FileNotFoundError(f"{source} is no file, folder, glob, manifest, or data set like org/name:split")


def split_manifest(source: str) -> tuple[str, str]:
    """The file of a manifest, and what the names of the wanted rows start with, empty for all."""
    manifest, _, name_start = source.partition(":")
    return manifest, name_start


def split_data_set(source: str, default_split: str) -> tuple[list[str], str]:
    """The arguments of `datasets.load_dataset` and the split in `org/name[:config][:split]`."""
    name, *config_and_split = source.split(":")
    *config, split = config_and_split or [default_split]
    return [name, *config], split


def load_manifest(path: Path):
    """The rows of a manifest as a `datasets.Dataset`. Raises `ValueError` where it can't be read."""
    import datasets

    kind = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}[path.suffix.lower()]
    try:
        return datasets.load_dataset(kind, data_files=os.fspath(path), split="train")
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error.__cause__ or error) or "it holds no rows"
        raise ValueError(f"{path} is no manifest that can be read: {reason.splitlines()[0]}") from error


def _clips_of(source: str) -> list[Clip]:
    kind = source_kind(source)
    if kind == "manifest":
        return _clips_of_manifest(*split_manifest(source))
    if kind == "data set":
        return _clips_of_data_set(source)
    path = Path(source)
    folder = path.resolve().name if path.is_dir() else ""
    return [Clip(os.path.join(folder, name), file) for file, name in resolve_files(source, AUDIO_SUFFIXES)]


def _clips_of_manifest(manifest: str, name_start: str) -> list[Clip]:
    path = Path(manifest)
    rows = load_manifest(path)
    clips = [clip for clip in _clips_of_rows(rows, path.name, path.parent) if clip.name.startswith(name_start)]
    if name_start and not clips:
        raise ValueError(f"{path} has no row whose name starts with {name_start!r}: what follows the colon is compared")
    return clips


def _clips_of_data_set(source: str) -> list[Clip]:
    import datasets

    name_and_config, split = split_data_set(source, "test")
    try:
        rows = datasets.load_dataset(*name_and_config, split=split)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{source} is no file here and no data set that loads: {error}") from error
    return _clips_of_rows(rows, source, Path())


def _clips_of_rows(rows, source: str, folder: Path) -> list[Clip]:
    import datasets

    columns = rows.column_names
    facts = list(zip(*(_first_column(rows, names) for names in FACT_COLUMNS), _segment_speakers(rows, source)))
    if "audio" in columns and not isinstance(rows.features["audio"], datasets.Value):
        name_column = next((column for column in NAME_COLUMNS if column in columns), None)
        names = rows[name_column] if name_column else [f"{source}#{number}" for number in range(len(rows))]
        audio = rows.cast_column("audio", datasets.Audio(decode=False)).select_columns("audio")

        def load(number: int) -> Path | bytes:
            held = audio[number]["audio"]
            return held["bytes"] or folder / held["path"]

        return [
            Clip(str(name), partial(load, number), *of_row) for number, (name, of_row) in enumerate(zip(names, facts))
        ]
    path_column = next((column for column in PATH_COLUMNS if column in columns), None)
    if path_column is None:
        raise ValueError(f"{source} has the columns {', '.join(columns)}: one of {', '.join(PATH_COLUMNS)} is wanted")
    if None in rows[path_column]:
        raise ValueError(f"{source} has a row without {path_column}: every row needs one")
    return [Clip(path, folder / path, *of_row) for path, of_row in zip(rows[path_column], facts)]


def _segment_speakers(rows, source: str) -> list[tuple[str | None, ...]]:
    segments = rows["segments"] if "segments" in rows.column_names else [None] * len(rows)
    try:
        return [tuple(speaker for _, _, _, speaker in of_row or ()) for of_row in segments]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: expected segments of [start, length, path, speaker], got other ones: rename or mend the column"
        ) from error


def _first_column(rows, names: tuple[str, ...]) -> list[str | None]:
    """The first column that is there, as text, else `None` for each row."""
    column = next((name for name in names if name in rows.column_names), None)
    values = rows[column] if column else [None] * len(rows)
    return [None if value is None else str(value) for value in values]
