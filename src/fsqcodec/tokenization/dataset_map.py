"""Tokens as new columns of a data set: `dataset.map(TokenizeAudio(model, feature_extractor), batched=True)`."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import datasets
import numpy as np

from ..audio import mix_channels, read_audio, resample
from ..batches import batches_by_length
from ..codecs import codec_of


class TokenizeAudio:
    """A function for `map(batched=True)` of a `datasets.Dataset` or `IterableDataset`: adds `audio_codes`, `num_frames`
    and `num_samples` (at the codec's sampling rate) to every row and keeps what it has.

        dataset = dataset.map(TokenizeAudio(model, feature_extractor), batched=True, batch_size=16)

    Codes of a clip do not depend on its batch. Clips are resampled; of a batch, those of similar length are encoded
    together. `audio_codes` is a list of int32, of a codec with several codebooks a list of one list for each.

    An `Audio` column is decoded by torchcodec where it is installed, else files are read by soundfile. A streamed data
    set decodes before it maps: without torchcodec it needs `cast_column("audio", datasets.Audio(decode=False))`.

    Args:
        model: a codec of Transformers or of this package, on the device where it is to run.
        feature_extractor: the model's.
        audio_column: of paths, `{"path", "bytes"}`, `{"array", "sampling_rate"}`, or torchcodec's decoders.
        channels: of clips with more channels than the codec has, `"mix"` takes the mean, `"refuse"` raises.

    `map` raises `ValueError` for a clip that can't be read or encoded, with its path or its place in the batch.
    """

    def __init__(
        self, model, feature_extractor, audio_column: str = "audio", channels: Literal["mix", "refuse"] = "refuse"
    ):
        self.codec = codec_of(model, feature_extractor)
        self.audio_column, self.channels = audio_column, channels

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        if self.audio_column not in batch:
            raise ValueError(f"there is no column {self.audio_column!r} among {', '.join(batch)}: name it audio_column")
        clips = [self._read(held, number) for number, held in enumerate(self._column(batch))]
        codes = [None] * len(clips)
        seconds = {number: clip.shape[-1] / self.codec.input_sampling_rate for number, clip in enumerate(clips)}
        for positions in batches_by_length(seconds):
            for position, clip_codes in zip(positions, self.codec.encode([clips[position] for position in positions])):
                codes[position] = clip_codes.astype(np.int32)
        is_flat = len(self.codec.codebook_sizes) == 1
        return {
            "audio_codes": [clip_codes[0] if is_flat else list(clip_codes) for clip_codes in codes],
            "num_frames": [clip_codes.shape[-1] for clip_codes in codes],
            "num_samples": [clip.shape[-1] for clip in clips],
        }

    def _column(self, batch: Mapping[str, list]) -> list:
        """What the rows hold: not decoded where only torchcodec could, and it is not installed."""
        if hasattr(batch, "pa_table") and not datasets.config.TORCHCODEC_AVAILABLE:
            return batch.pa_table[self.audio_column].to_pylist()
        return batch[self.audio_column]

    def _read(self, held: Any, number: int) -> np.ndarray:
        """One clip `(num_samples,)`, or `(2, num_samples)`, at the codec's sampling rate."""
        name = f"clip {number} of the batch"
        try:
            if hasattr(held, "get_all_samples"):
                samples = held.get_all_samples()  # data (num_channels, num_samples)
                return self._resampled(samples.data.numpy().T, samples.sample_rate, name)
            if isinstance(held, Mapping) and "array" in held:
                return self._resampled(np.asarray(held["array"], np.float32).T, held["sampling_rate"], name)
            if isinstance(held, Mapping):
                name = held.get("path") or name
                held = held.get("bytes") or held.get("path")
            if not isinstance(held, (str, bytes, os.PathLike)):
                raise ValueError(f"a {type(held).__name__} is no audio: a file, its bytes, or an array with its rate")
            return read_audio(held, self.codec.input_sampling_rate, self.channels, self.codec.num_channels)
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error

    def _resampled(self, audio: np.ndarray, sampling_rate: int, name: str) -> np.ndarray:
        mixed = mix_channels(audio, self.channels, name, self.codec.num_channels)
        return resample(mixed, sampling_rate, self.codec.input_sampling_rate)
