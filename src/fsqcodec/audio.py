"""Audio files: read, resample, write. The only module that touches them.

wav, flac, ogg, mp3 and what else libsndfile knows, through soundfile; resampling by soxr.
"""

import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from .atomic import atomic_path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
WRITABLE_SUFFIXES = (".wav", ".flac")
MAX_WRITTEN_CHANNELS = 2


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
    if channels not in ("mix", "refuse"):
        raise ValueError(f"channels is {channels!r}: 'mix' or 'refuse' is wanted")
    with _open(source) as file:
        name = _name(source)
        try:
            audio = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{name} can't be decoded: {error.error_string}") from error
        if len(audio) == 0:
            raise ValueError(f"{name} is empty: it holds no samples")
        if len(audio) < file.frames:
            raise ValueError(f"{name} is truncated: its header says {file.frames} samples, it holds {len(audio)}")
        if audio.shape[1] > num_channels and channels == "refuse":
            kind = "mono" if num_channels == 1 else "stereo"
            raise ValueError(
                f"{name} has {audio.shape[1]} channels, the codec is {kind}: --channels mix takes their mean"
            )
        file_rate = file.samplerate
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} has NaN or infinite samples")
    if audio.shape[1] > num_channels:
        audio = audio.mean(axis=1, keepdims=True)
    if num_channels == 1:
        return audio[:, 0], file_rate
    return np.repeat(audio.T, num_channels // audio.shape[1], axis=0), file_rate


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """`(num_samples,)` or `(num_channels, num_samples)` at `from_rate` Hz to `to_rate` Hz, float32, at soxr's very high
    quality; at least one sample."""
    if from_rate == to_rate:
        return audio
    resampled = soxr.resample(audio.T, from_rate, to_rate, quality="VHQ").T
    return resampled if resampled.shape[-1] else audio[..., :1]


def write_audio(path: str | os.PathLike, audio: np.ndarray, sampling_rate: int):
    """Write float `(num_samples,)` or stereo `(2, num_samples)` in [-1, 1], clipped to that, as 16-bit wav or flac,
    by the suffix of `path`. The file appears when it is complete. Raises `ValueError` for another suffix or shape,
    integers, NaN and infinite samples, and `OSError` where it can't be written."""
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}: audio is written as {' or '.join(WRITABLE_SUFFIXES)}")
    audio = np.asarray(audio)
    num_channels = len(audio) if audio.ndim == 2 else 1
    too_wide = audio.ndim not in (1, 2) or num_channels > MAX_WRITTEN_CHANNELS
    if too_wide or audio.dtype.kind != "f" or not np.isfinite(audio).all():
        raise ValueError(
            f"audio {audio.shape} of {audio.dtype} can't be written: (num_samples,), or stereo (2, num_samples), "
            "finite floats, is wanted"
        )
    with atomic_path(path) as unfinished:
        file_format = path.suffix[1:].upper()
        try:
            soundfile.write(unfinished, np.clip(audio.T, -1, 1), sampling_rate, format=file_format, subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            raise OSError(f"{path} can't be written: {error.error_string}") from error


def _open(source: Source) -> soundfile.SoundFile:
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"{source} is not a file")
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{_name(source)} is not an audio file that can be read: {error.error_string}") from error


def _name(source: Source) -> str:
    return "audio" if isinstance(source, bytes) else os.fspath(source)
