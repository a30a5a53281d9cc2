"""FsqNeuCodecFeatureExtractor: waveforms -> padded batch, log-mel features of each clip, and their masks."""

import functools

import numpy as np
from transformers import BatchFeature, SeamlessM4TFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType

from .feature_extraction_codec import CodecFeatureExtractor


class FsqNeuCodecFeatureExtractor(CodecFeatureExtractor):
    """Prepares mono audio for [`FsqNeuCodecModel`]. The log-mel features are those that the original package computes,
    by the same class of Transformers, in numpy: torchaudio is not needed.

    Args:
        feature_size, sampling_rate, padding_value: as in [`CodecFeatureExtractor`].
        hop_length (`int`): samples of one frame. A clip is followed by zeros up to a multiple of it, at least one.
    """

    model_input_names = ["input_values", "padding_mask", "input_features", "input_features_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        hop_length: int = 320,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = hop_length

    def __call__(
        self,
        audio,
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """One clip or a list of clips to `input_values`, `padding_mask`, and features with their mask.

        Arguments are those of [`CodecFeatureExtractor`]; `max_length` counts samples. Beside its results there are
        `input_features`, float32 `(batch, num_frames, 160)`, and `input_features_mask`, int32 `(batch, num_frames)`,
        with one frame for each whole `hop_length` samples.

        Raises:
            ValueError: what [`CodecFeatureExtractor`] raises; a clip shorter than one frame; `padding=False`.
        """
        if not padding:
            raise ValueError("padding is False: features of several lengths need a mask, pass padding=True")
        batch = super().__call__(audio, sampling_rate, padding, max_length, truncation, return_tensors="np")
        values, num_samples = batch["input_values"][:, 0], batch["padding_mask"].sum(axis=1)
        too_short = np.flatnonzero(num_samples < self.hop_length)
        if len(too_short):
            raise ValueError(
                f"clip {too_short[0]} has {num_samples[too_short[0]]} samples: the model makes one token of each "
                f"{self.hop_length}, so that many are needed at least"
            )
        features = [self._log_mel(clip[:length]) for clip, length in zip(values, num_samples)]
        num_frames = values.shape[1] // self.hop_length
        batch["input_features"] = np.stack([np.pad(clip, ((0, num_frames - len(clip)), (0, 0))) for clip in features])
        batch["input_features_mask"] = np.stack([np.arange(num_frames) < len(clip) for clip in features]).astype(
            np.int32
        )
        return batch.convert_to_tensors(return_tensors) if return_tensors is not None else batch

    def _log_mel(self, clip: np.ndarray) -> np.ndarray:
        """`(num_samples,)` to `(num_samples // hop_length, 160)`: two frames of 80 mel bins beside each other, each bin
        normalised over the clip."""
        padded = np.pad(clip, (0, self.hop_length - len(clip) % self.hop_length))
        features = _mel_extractor(self.sampling_rate)(
            padded, sampling_rate=self.sampling_rate, return_tensors="np", pad_to_multiple_of=None
        )
        return features["input_features"][0].astype(np.float32)


@functools.cache
def _mel_extractor(sampling_rate: int) -> SeamlessM4TFeatureExtractor:
    return SeamlessM4TFeatureExtractor(sampling_rate=sampling_rate)


FsqNeuCodecFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["FsqNeuCodecFeatureExtractor"]
