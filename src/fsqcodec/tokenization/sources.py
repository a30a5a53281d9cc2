"""What is to be tokenized, as parts that are each read on their own and each become one shard of the output.

files, folders, globs    slices of `shard_size` files, in the order of their paths
manifests                slices of `shard_size` rows
parquet                  slices of `shard_size` rows of each file, with audio as paths, or as bytes as `datasets` has it
WebDataset tars          each tar
data sets of the Hub     each of their files, streamed; `org/name:split`, by default the split `train`

Audio may also be a URL that fsspec opens. Which rows are in which part depends on nothing else.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from ..audio import AUDIO_SUFFIXES
from ..data import (
    NAME_COLUMNS,
    PATH_COLUMNS,
    find_clips,
    load_manifest,
    source_kind,
    split_data_set,
    split_manifest,
)
from ..paths import resolve_files

TAR_SUFFIXES = (".tar", ".tgz")
ROWS_AT_ONCE = 16  # of a parquet file, which may hold the audio


@dataclass(frozen=True)
class Row:
    """One clip that has not been read yet.

    Args:
        name: its id or path, for messages.
        audio: its file, URL, or what the file holds; `None` where there is none.
        columns: what else the source says of it, by name of the source's schema.
        error: why there is no audio.
    """

    name: str
    audio: Path | str | bytes | None
    columns: dict
    error: str | None = None


@dataclass(frozen=True)
class Part:
    """Rows that become one shard; `num_rows` is `None` where it takes reading them to know."""

    num_rows: int | None
    read: Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """All parts, the columns that their rows have beside the audio, and a digest of which rows these are."""

    parts: list[Part]
    schema: pa.Schema
    digest: str


def open_source(source: str, shard_size: int) -> Source:
    """The parts of a source, of which no audio is read yet.

    Every row has a column `path` or `id`: where the source has neither, `id` is what names the row.

    Raises:
        FileNotFoundError: a source that is nothing of what the module's docstring lists.
        ValueError: a damaged manifest, parquet file or first tar; one without audio; a folder with several kinds.
    """
    kind = source_kind(source)
    if kind == "data set":
        return _open_data_set(source)
    if kind == "manifest" and not source.lower().endswith(".parquet"):
        return _open_manifest(source, shard_size)
    files = [file for file, _ in resolve_files(source, (*AUDIO_SUFFIXES, *TAR_SUFFIXES, ".parquet"))]
    is_tar = [file.suffix.lower() in TAR_SUFFIXES for file in files]
    is_parquet = [file.suffix.lower() == ".parquet" for file in files]
    if all(is_tar):
        return _open_tars(files)
    if all(is_parquet):
        return _open_parquet(files, shard_size)
    if any(is_tar) or any(is_parquet):
        raise ValueError(f"{source} has files of several kinds, audio, tars or parquet: name one kind, as '*.tar' does")
    return _open_files(source, shard_size)


def _open_files(source: str, shard_size: int) -> Source:
    clips = find_clips([source])

    def read(start: int) -> Iterator[Row]:
        for clip in clips[start : start + shard_size]:
            yield Row(clip.name, clip.audio, {"path": clip.name})

    parts = [
        Part(min(shard_size, len(clips) - start), partial(read, start)) for start in range(0, len(clips), shard_size)
    ]
    return Source(parts, pa.schema({"path": pa.string()}), _digest([clip.name for clip in clips]))


def _open_manifest(source: str, shard_size: int) -> Source:
    manifest, name_start = split_manifest(source)
    path = Path(manifest)
    rows = _undecoded(load_manifest(path))
    columns = _Columns(rows.features.arrow_schema, path.name)
    if name_start and columns.name:
        rows = rows.select([n for n, name in enumerate(rows[columns.name]) if str(name).startswith(name_start)])
    if not len(rows):
        raise ValueError(f"{source} has no rows{f' whose name starts with {name_start!r}' if name_start else ''}")

    def read(start: int) -> Iterator[Row]:
        for number in range(start, min(start + shard_size, len(rows))):
            yield columns.row(rows[number], number, path.parent)

    parts = [
        Part(min(shard_size, len(rows) - start), partial(read, start)) for start in range(0, len(rows), shard_size)
    ]
    return Source(parts, columns.kept, _digest([name_start, list(rows[columns.name]) if columns.name else len(rows)]))


def _open_parquet(files: list[Path], shard_size: int) -> Source:
    schema, parts = None, []
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                own_schema, num_rows = opened.schema_arrow.remove_metadata(), opened.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is no parquet file that can be read: {str(error).splitlines()[0]}") from error
        schema = schema or own_schema
        if own_schema != schema:
            raise ValueError(f"{file} has other columns than {files[0]}: tokenize them apart")
        columns = _Columns(schema, file.name)
        for start in range(0, num_rows, shard_size):
            stop = min(start + shard_size, num_rows)
            parts.append(Part(stop - start, partial(_read_parquet, file, start, stop, columns)))
    if not parts:
        raise ValueError(f"{files[0]} has no rows")
    return Source(parts, columns.kept, _digest([[file.name for file in files], [part.num_rows for part in parts]]))


def _read_parquet(file: Path, start: int, stop: int, columns: "_Columns") -> Iterator[Row]:
    position = 0  # of the first row of a row group
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            end = position + opened.metadata.row_group(group).num_rows
            if position < stop and end > start:
                number = position
                for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group]):
                    for offset in range(max(0, start - number), min(batch.num_rows, stop - number)):
                        (values,) = batch.slice(offset, 1).to_pylist()
                        yield columns.row(values, number + offset, file.parent)
                    number += batch.num_rows
            position = end


def _open_tars(files: list[Path]) -> Source:
    try:
        first = next(_tar_samples(files[0]), None)
    except tarfile.TarError as error:
        raise ValueError(f"{files[0]} is no tar that can be read: {error}") from error
    if first is None:
        raise ValueError(f"{files[0]} has no files")
    others = {suffix: content for suffix, content in first[1] if not _is_audio(suffix)}
    kinds = {suffix: pa.string() if _is_text(content) else pa.binary() for suffix, content in others.items()}
    schema = pa.schema({"id": pa.string(), **kinds})
    parts = [Part(None, partial(_read_tar, file, schema)) for file in files]
    return Source(parts, schema, _digest([file.name for file in files]))


def _read_tar(file: Path, schema: pa.Schema) -> Iterator[Row]:
    try:
        for key, members in _tar_samples(file):
            yield _tar_row(file, key, members, schema)
    except (tarfile.TarError, OSError, EOFError) as error:
        yield Row(str(file), None, {}, f"the rest of {file} can't be read: {error}")


def _tar_row(file: Path, key: str, members: list[tuple[str, bytes]], schema: pa.Schema) -> Row:
    name = f"{file.name}/{key}"
    audio = [content for suffix, content in members if _is_audio(suffix)]
    columns = {"id": key}
    if len(audio) != 1:
        return Row(name, None, columns, f"{name} has {len(audio)} audio files: one is wanted")
    for suffix, content in members:
        if _is_audio(suffix):
            continue
        if suffix not in schema.names:
            return Row(name, None, columns, f"{name}.{suffix} is a file that the first sample of the first tar lacks")
        if suffix in columns:
            return Row(name, None, columns, f"{name}.{suffix} is there twice")
        is_text = schema.field(suffix).type == pa.string()
        if is_text and not _is_text(content):
            return Row(name, None, columns, f"{name}.{suffix} is not UTF-8, as it is in the first sample")
        columns[suffix] = content.decode() if is_text else content
    return Row(name, audio[0], columns)


def _tar_samples(file: Path) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Consecutive files with one path up to the first dot of their names: it, and (the rest, content) of each."""

    def contents() -> Iterator[tuple[str, str, bytes]]:
        with tarfile.open(file, "r|*") as tar:
            for member in tar:
                folder, name = os.path.split(member.name)
                if member.isfile() and not name.startswith("."):
                    stem, _, suffix = name.partition(".")
                    yield os.path.join(folder, stem), suffix, tar.extractfile(member).read()

    for key, members in groupby(contents(), key=lambda member: member[0]):
        yield key, [(suffix, content) for _, suffix, content in members]


def _is_audio(suffix: str) -> bool:
    return Path(f"name.{suffix}").suffix.lower() in AUDIO_SUFFIXES


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _open_data_set(source: str) -> Source:
    name_and_config, split = split_data_set(source, "train")
    try:
        builder = datasets.load_dataset_builder(*name_and_config)
        rows = builder.as_streaming_dataset(split=split)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{source} is no file here and no data set that loads: {error}") from error
    rows = _undecoded(rows if rows.features else rows._resolve_features())  # of a data set that does not declare them
    columns = _Columns(rows.features.arrow_schema, source)

    def read(number: int) -> Iterator[Row]:
        for position, values in enumerate(rows.shard(rows.num_shards, number)):
            yield columns.row(values, f"{number}-{position}", Path())

    parts = [Part(None, partial(read, number)) for number in range(rows.num_shards)]
    return Source(parts, columns.kept, _digest([str(builder.config.data_files), rows.num_shards]))


def _undecoded(rows):
    """A data set whose audio columns give files as they are."""
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(column, datasets.Audio(decode=False))
    return rows


class _Columns:
    """Which columns of rows are audio, their name, and kept."""

    def __init__(self, schema: pa.Schema, source: str):
        self.source = source
        held = [field.name for field in schema if _holds_audio(field.type)]
        texts = {
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        }
        paths = [column for column in PATH_COLUMNS if column in texts]
        if not held and not paths:
            names = ", ".join(schema.names)
            raise ValueError(f"{source} has the columns {names}: one of {', '.join(PATH_COLUMNS)} is wanted")
        self.audio = "audio" if "audio" in held else (held or paths)[0]
        names = NAME_COLUMNS if self.audio in held else (self.audio,)
        self.name = next((column for column in names if column in schema.names), None)
        self._adds_id = not {"id", "path"} & set(schema.names)
        fields = [field for field in schema.remove_metadata() if field.name not in held]
        self.kept = pa.schema([*([pa.field("id", pa.string())] if self._adds_id else []), *fields])

    def row(self, values: dict, number: int | str, folder: Path) -> Row:
        audio = values[self.audio]
        path = audio.get("path") if isinstance(audio, dict) else audio
        content = audio.get("bytes") if isinstance(audio, dict) else None
        name = str(values[self.name] if self.name else path or f"{self.source}#{number}")
        columns = {column: values[column] for column in self.kept.names if column in values}
        if self._adds_id:
            columns["id"] = name
        if content is None and not path:
            return Row(name, None, columns, f"{name} has no {self.audio}")
        if content is None:
            content = path if "://" in path else folder / path
        return Row(name, content, columns)


def _holds_audio(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _digest(names: list) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
