"""Audio files: read, resample, write. The only module that touches them.

wav, flac, ogg, mp3 and what else libsndfile knows, through soundfile; resampling by soxr.
"""

import io
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from .atomic import atomic_path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
WRITABLE_SUFFIXES = (".wav", ".flac")

# libsndfile reads what is left of a file without compression that was cut off, and says so in its log only
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
UNKNOWN_LENGTH = 2**31 - 2**17  # bytes; what programs write that don't know the length yet is above

Source = str | os.PathLike | bytes  # a file, or what a file holds


def audio_seconds(source: Source) -> float:
    """Duration from the file's header, seconds. Raises as `read_audio` does."""
    with _open(source) as file:
        return file.frames / file.samplerate


def read_audio(source: Source, sampling_rate: int, channels: Literal["mix", "refuse"] = "refuse") -> np.ndarray:
    """Read a file, or its bytes, as mono float32 `(num_samples,)` in [-1, 1] at `sampling_rate` Hz, resampled if it has
    another rate.

    `channels` says what happens to stereo: `"mix"` takes the mean of the channels, `"refuse"` raises.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an audio file, a damaged or empty one, more than one channel, another word for `channels`.
    """
    audio, file_rate = read_audio_and_rate(source, channels)
    return resample(audio, file_rate, sampling_rate)


def read_audio_and_rate(source: Source, channels: Literal["mix", "refuse"] = "refuse") -> tuple[np.ndarray, int]:
    """As `read_audio`, not resampled: `(num_samples,)` and the file's own sampling rate in Hz."""
    if channels not in ("mix", "refuse"):
        raise ValueError(f"channels is {channels!r}: 'mix' or 'refuse' is wanted")
    with _open(source) as file:
        name = _name(source)
        try:
            audio = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{name} can't be decoded: {error.error_string}") from error
        if len(audio) < file.frames:
            raise ValueError(f"{name} is truncated: its header says {file.frames} samples, it holds {len(audio)}")
        file_rate = file.samplerate
    return to_mono(audio, channels, name), file_rate


def to_mono(audio: np.ndarray, channels: Literal["mix", "refuse"], name: str) -> np.ndarray:
    """`(num_samples,)` or `(num_samples, num_channels)` to `(num_samples,)`; `name` is for messages.

    Raises `ValueError` for several channels with `channels="refuse"`, for NaN and infinite samples and for none.
    """
    if audio.ndim == 2 and audio.shape[1] > 1 and channels == "refuse":
        raise ValueError(f"{name} has {audio.shape[1]} channels, the codec is mono: --channels mix takes their mean")
    if audio.ndim == 2:
        audio = audio[:, 0] if audio.shape[1] == 1 else audio.mean(axis=1)
    if len(audio) == 0:
        raise ValueError(f"{name} is empty: it holds no samples")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} has NaN or infinite samples")
    return audio


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """`(num_samples,)` at `from_rate` Hz to `to_rate` Hz, float32, at soxr's very high quality; at least one sample."""
    if from_rate == to_rate:
        return audio
    resampled = soxr.resample(audio, from_rate, to_rate, quality="VHQ")
    return resampled if len(resampled) else audio[:1]


def write_audio(path: str | os.PathLike, audio: np.ndarray, sampling_rate: int):
    """Write mono float `(num_samples,)` in [-1, 1] as 16-bit wav or flac, by the suffix of `path`. The file appears
    when it is complete. Raises `ValueError` for another suffix, another shape, integers, NaN and infinite samples, and
    `OSError` where it can't be written."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}: audio is written as {' or '.join(WRITABLE_SUFFIXES)}")
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f" or not np.isfinite(audio).all():
        raise ValueError(
            f"audio {audio.shape} of {audio.dtype} can't be written: (num_samples,), finite floats, is wanted"
        )
    with atomic_path(path) as unfinished:
        file_format = path.suffix[1:].upper()
        try:
            soundfile.write(unfinished, np.clip(audio, -1, 1), sampling_rate, format=file_format, subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            raise OSError(f"{path} can't be written: {error.error_string}") from error


def _open(source: Source) -> soundfile.SoundFile:
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"{source} is not a file")
    try:
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{_name(source)} is not an audio file that can be read: {error.error_string}") from error
    shortened = SHORTENED.search(file.extra_info)
    if shortened:
        said, found = map(int, shortened.groups())
        if found < said < UNKNOWN_LENGTH:
            file.close()
            raise ValueError(f"{_name(source)} is truncated: its header says {said} bytes, it holds {found}")
    return file


def _name(source: Source) -> str:
    return "audio" if isinstance(source, bytes) else os.fspath(source)
