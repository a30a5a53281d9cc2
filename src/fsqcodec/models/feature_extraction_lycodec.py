"""LycodecFeatureExtractor: stereo waveforms -> padded batch and mask."""

import numpy as np

from .feature_extraction_codec import CodecFeatureExtractor


class LycodecFeatureExtractor(CodecFeatureExtractor):
    """Prepares stereo audio for [`LycodecModel`]: as [`CodecFeatureExtractor`], with two channels.

    A clip is `(num_samples, 2)`, left and right, as extractors of Transformers and `soundfile.read` have it; mono,
    `(num_samples,)` or `(num_samples, 1)`, becomes two equal channels. `input_values` are `(batch, 2, num_samples)`.

    Args:
        feature_size (`int`): channels; 2.
        sampling_rate (`int`): Hz the model works at; audio at another rate is refused, not resampled.
        padding_value (`float`): 0.0, silence.
    """

    num_channels = 2

    def __init__(self, feature_size: int = 2, sampling_rate: int = 48000, padding_value: float = 0.0, **kwargs):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)

    def _with_channels(self, clip: np.ndarray, name: str) -> np.ndarray:
        if clip.ndim == 1:
            clip = clip[:, np.newaxis]
        if clip.ndim != 2 or clip.shape[1] not in (1, 2):
            raise ValueError(
                f"{name} has shape {clip.shape}: (num_samples, 2), or mono (num_samples,), is wanted. Transpose audio "
                "whose channels come first, audio.T; mix audio of more channels; pass a batch as a list of clips"
            )
        return np.repeat(clip, 2 // clip.shape[1], axis=1)


LycodecFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["LycodecFeatureExtractor"]
