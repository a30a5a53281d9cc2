"""Rows to codes: read by threads while the batch before is encoded, in batches of similar length.

A clip's codes do not depend on its batch. What goes wrong with one clip is said of this clip, and of no other.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np

from ..audio import audio_seconds, read_audio
from ..batches import batches_by_length, encode_each
from ..codecs import Codec
from .sources import Row

NUM_READERS = min(8, os.cpu_count() or 1)
MAX_WINDOW_ROWS = 512  # among which batches are formed
MAX_WINDOW_BYTES = 2**28  # of audio files that came with their rows


@dataclass(frozen=True)
class EncodedRow:
    """A row that was read and encoded, or why not.

    Args:
        position: within what was encoded, from 0.
        row: without its audio.
        codes: int64 `(num_codebooks, num_frames)`, `None` with an error.
        num_samples: of the audio at the codec's sampling rate, 0 with an error.
        error: the reason, `None` without.
    """

    position: int
    row: Row
    codes: np.ndarray | None = None
    num_samples: int = 0
    error: str | None = None


def encode_rows(codec: Codec, rows: Iterable[Row], channels: str, batch_size: int) -> Iterator[EncodedRow]:
    """Each row once, in any order: `position` says which it is.

    Args:
        codec: mono or stereo.
        rows: read ahead by some hundred.
        channels: of clips with more channels than the codec has, `"mix"` takes the mean, `"refuse"` is an error of the
            row.
        batch_size: clips that are encoded at once, at most; see `fsqcodec.batches.batches_by_length`.

    Raises `RuntimeError` where the device fails, which is no clip's fault.
    """
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for window in windows(enumerate(rows)):
            yield from _encode_window(codec, window, channels, batch_size, readers)


def row_seconds(row: Row) -> tuple[Row, float | None]:
    """The row, with the content of its URL and with what is wrong with it; its duration by the header, seconds."""
    if row.error is not None:
        return row, None
    try:
        if isinstance(row.audio, str):
            with fsspec.open(row.audio, "rb") as file:
                row = replace(row, audio=file.read())
        return row, audio_seconds(row.audio)
    except Exception as error:  # whatever a reader raises on one file must not end a run over millions
        return replace(row, error=_reason(row, error)), None


def _encode_window(
    codec: Codec, window: dict[int, Row], channels: str, batch_size: int, readers: ThreadPoolExecutor
) -> Iterator[EncodedRow]:
    durations = {}
    for position, (row, seconds) in zip(window, readers.map(row_seconds, window.values())):
        window[position] = row
        if seconds is None:
            yield EncodedRow(position, replace(row, audio=None), error=row.error)
        else:
            durations[position] = seconds

    def read(position: int) -> np.ndarray:
        return read_audio(window[position].audio, codec.input_sampling_rate, channels, codec.num_channels)

    for batch in _read_ahead(readers, batches_by_length(durations, batch_size), read):
        clips = {position: reading.result() for position, reading in batch.items() if not reading.exception()}
        results = {position: reading.exception() for position, reading in batch.items()}
        results.update(zip(clips, encode_each(codec, list(clips.values()))))
        for position, result in results.items():
            row = window.pop(position)  # and what it holds
            encoded = EncodedRow(position, replace(row, audio=None))
            if isinstance(result, BaseException):
                yield replace(encoded, error=_reason(row, result))
            else:
                yield replace(encoded, codes=result, num_samples=clips[position].shape[-1])


def windows(numbered: Iterator[tuple[int, Row]]) -> Iterator[dict[int, Row]]:
    window, num_bytes = {}, 0
    for position, row in numbered:
        window[position] = row
        num_bytes += len(row.audio) if isinstance(row.audio, bytes) else 0
        if len(window) == MAX_WINDOW_ROWS or num_bytes >= MAX_WINDOW_BYTES:
            yield window
            window, num_bytes = {}, 0
    if window:
        yield window


def _read_ahead(
    readers: ThreadPoolExecutor, batches: Iterable[list[int]], read: Callable[[int], np.ndarray]
) -> Iterator[dict[int, Future]]:
    """The clips of each batch, by position, while those of the next one are read."""
    ready = None
    for batch in batches:
        reading = {position: readers.submit(read, position) for position in batch}
        if ready:
            yield ready
        ready = reading
    if ready:
        yield ready


def _reason(row: Row, error: BaseException) -> str:
    """What is wrong, without the folder that the file lies in, which differs between machines."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return reason.replace(os.fspath(row.audio), row.name) if isinstance(row.audio, Path) else reason
