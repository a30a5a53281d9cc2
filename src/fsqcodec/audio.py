"""Audio files: read, resample, write. The only module that touches them.

wav, flac, ogg, mp3 and what else libsndfile knows, through soundfile; resampling by soxr.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from .atomic import atomic_path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
WRITABLE_SUFFIXES = (".wav", ".flac")
MAX_WRITTEN_CHANNELS = 2
RESAMPLING_QUALITY = "VHQ"  # soxr's highest

# libsndfile reads what is left of a file without compression that was cut off, and says so in its log only
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
CUT_OGG = ("Ogg: Last page lacks an end-of-stream bit", "Ogg: Junk after the last page")  # a part of a page
UNKNOWN_LENGTH = 2**31 - 2**17  # bytes; what programs write that don't know the length yet is above

Source = str | os.PathLike | bytes  # a file, or what a file holds


def audio_seconds(source: Source) -> float:
    """Duration from the file's header, seconds. Raises as `read_audio` does."""
    with _open(source) as file:
        return file.frames / file.samplerate


def read_audio(
    source: Source, sampling_rate: int, channels: Literal["mix", "refuse"] = "refuse", num_channels: int = 1
) -> np.ndarray:
    """Read a file, or its bytes, as float32 in [-1, 1] at `sampling_rate` Hz, resampled if it has another rate: mono
    `(num_samples,)`, or with `num_channels=2` stereo `(2, num_samples)`, where mono becomes two equal channels.

    `channels` says what happens to files with more channels than that: `"mix"` takes the mean of the channels,
    `"refuse"` raises.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an audio file, a damaged or empty one, too many channels, another word for `channels`.
    """
    audio, file_rate = read_audio_and_rate(source, channels, num_channels)
    return resample(audio, file_rate, sampling_rate)


def read_audio_and_rate(
    source: Source, channels: Literal["mix", "refuse"] = "refuse", num_channels: int = 1
) -> tuple[np.ndarray, int]:
    """As `read_audio`, not resampled: the audio and the file's own sampling rate in Hz."""
    with _open(source) as file:
        (audio,) = _pieces(file, _name(source), channels, num_channels, piece_samples=-1)
        return audio, file.samplerate


def read_audio_pieces(
    source: Source, sampling_rate: int, channels: Literal["mix", "refuse"] = "refuse", piece_seconds: float = 5.0
) -> Iterator[np.ndarray]:
    """What `read_audio` returns of mono, to the bit, in pieces of about `piece_seconds` that are read as they are asked
    for.

    Raises as `read_audio` does, for damage when it gets there.
    """
    with _open(source) as file:
        file_rate = file.samplerate
        pieces = _pieces(file, _name(source), channels, 1, max(1, int(piece_seconds * file_rate)))
        if file_rate == sampling_rate:
            yield from pieces
            return
        resampler = soxr.ResampleStream(file_rate, sampling_rate, 1, dtype="float32", quality=RESAMPLING_QUALITY)
        num_samples, first_sample = 0, None
        for piece in pieces:
            first_sample = piece[:1] if first_sample is None else first_sample
            resampled = resampler.resample_chunk(piece)
            num_samples += len(resampled)
            yield resampled
        resampled = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        yield resampled if num_samples + len(resampled) else first_sample


def mix_channels(audio: np.ndarray, channels: Literal["mix", "refuse"], name: str, num_channels: int = 1) -> np.ndarray:
    """`(num_samples,)` or, channels last as files have them, `(num_samples, file_channels)` to what `read_audio`
    returns: `(num_samples,)`, or with `num_channels=2` `(2, num_samples)`. `name` is for messages.

    Raises `ValueError` for too many channels with `channels="refuse"`, for NaN and infinite samples and for none.
    """
    if channels not in ("mix", "refuse"):
        raise ValueError(f"channels is {channels!r}: 'mix' or 'refuse' is wanted")
    if audio.ndim == 1:
        audio = audio[:, np.newaxis]
    if audio.shape[1] > num_channels:
        if channels == "refuse":
            kind = "mono" if num_channels == 1 else "stereo"
            raise ValueError(
                f"{name} has {audio.shape[1]} channels, the codec is {kind}: --channels mix takes their mean"
            )
        audio = audio.mean(axis=1, keepdims=True)
    if len(audio) == 0:
        raise ValueError(f"{name} is empty: it holds no samples")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} has NaN or infinite samples")
    return audio[:, 0] if num_channels == 1 else np.repeat(audio.T, num_channels // audio.shape[1], axis=0)


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """`(num_samples,)` or `(num_channels, num_samples)` at `from_rate` Hz to `to_rate` Hz, float32, at soxr's very high
    quality; at least one sample."""
    if from_rate == to_rate:
        return audio
    resampled = soxr.resample(audio.T, from_rate, to_rate, quality=RESAMPLING_QUALITY).T
    return resampled if resampled.shape[-1] else audio[..., :1]


def write_audio(path: str | os.PathLike, audio: np.ndarray, sampling_rate: int):
    """Write float `(num_samples,)` or `(num_channels, num_samples)` in [-1, 1], clipped to that, as 16-bit wav or flac,
    by the suffix of `path`. The file appears when it is complete. Raises `ValueError` for another suffix or shape,
    integers, NaN and infinite samples, and `OSError` where it can't be written."""
    audio = np.asarray(audio)
    write_audio_pieces(path, [audio], sampling_rate, num_channels=_num_channels(audio))


def write_audio_pieces(
    path: str | os.PathLike, pieces: Iterable[np.ndarray], sampling_rate: int, num_channels: int = 1
):
    """As `write_audio`, one piece after the other, each of `num_channels`."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}: audio is written as {' or '.join(WRITABLE_SUFFIXES)}")
    if not 1 <= num_channels <= MAX_WRITTEN_CHANNELS:
        raise ValueError(
            f"audio of {num_channels} channels can't be written: (num_samples,) or (num_channels, num_samples), "
            f"channels first, at most {MAX_WRITTEN_CHANNELS} of them, is wanted"
        )
    file_format = path.suffix[1:].upper()
    with atomic_path(path) as unfinished:
        try:
            with soundfile.SoundFile(
                unfinished, "w", sampling_rate, num_channels, "PCM_16", format=file_format
            ) as file:
                for piece in pieces:
                    file.write(np.clip(_checked(piece, num_channels).T, -1, 1))
        except soundfile.LibsndfileError as error:
            raise OSError(f"{path} can't be written: {error.error_string}") from error


def _checked(audio, num_channels: int) -> np.ndarray:
    audio = np.asarray(audio)
    fits = audio.ndim in (1, 2) and _num_channels(audio) == num_channels
    if not fits or audio.dtype.kind != "f" or not np.isfinite(audio).all():
        wanted = "(num_samples,)" if num_channels == 1 else f"({num_channels}, num_samples)"
        raise ValueError(f"audio {audio.shape} of {audio.dtype} can't be written: {wanted}, finite floats, is wanted")
    return audio


def _num_channels(audio: np.ndarray) -> int:
    return len(audio) if audio.ndim == 2 else 1


def _pieces(
    file: soundfile.SoundFile, name: str, channels: str, num_channels: int, piece_samples: int
) -> Iterator[np.ndarray]:
    """The file's samples, `piece_samples` of them at a time; all at once for -1."""
    num_read = 0
    while True:
        try:
            audio = file.read(piece_samples, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{name} can't be decoded: {error.error_string}") from error
        if len(audio) == 0:
            break
        num_read += len(audio)
        yield mix_channels(audio, channels, name, num_channels)
    if num_read == 0:
        raise ValueError(f"{name} is empty: it holds no samples")
    if num_read < file.frames:
        raise ValueError(f"{name} is truncated: its header says {file.frames} samples, it holds {num_read}")


def _open(source: Source) -> soundfile.SoundFile:
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"{source} is not a file")
    try:
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{_name(source)} is not an audio file that can be read: {error.error_string}") from error
    if any(note in file.extra_info for note in CUT_OGG):
        file.close()
        raise ValueError(f"{_name(source)} is truncated: its last page is not the end of the stream")
    shortened = SHORTENED.search(file.extra_info)
    if shortened:
        said, found = map(int, shortened.groups())
        if found < said < UNKNOWN_LENGTH:
            file.close()
            raise ValueError(f"{_name(source)} is truncated: its header says {said} bytes, it holds {found}")
    return file


def _name(source: Source) -> str:
    return "audio" if isinstance(source, bytes) else os.fspath(source)
