"""CodecFeatureExtractor: waveforms -> padded batch and mask."""

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType, logging

logger = logging.get_logger(__name__)

LOUDEST_SENSIBLE_PEAK = 8.0  # a float peak above this is audio that was not scaled to [-1, 1]


class CodecFeatureExtractor(SequenceFeatureExtractor):
    """Prepares mono audio for [`CodecModel`]: checks it, pads a batch on the right and says what is padding.

    Args:
        feature_size (`int`): channels; 1.
        sampling_rate (`int`): Hz the model works at; audio at another rate is refused, not resampled.
        padding_value (`float`): 0.0, silence.
    """

    model_input_names = ["input_values", "padding_mask"]
    num_channels = 1

    def __init__(self, feature_size: int = 1, sampling_rate: int = 16000, padding_value: float = 0.0, **kwargs):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if feature_size != self.num_channels:
            kind = "mono" if self.num_channels == 1 else "stereo"
            raise ValueError(f"feature_size is {feature_size}: the codec is {kind}, {self.num_channels} is wanted")
        if self.padding_side != "right":
            raise ValueError(f"padding_side is {self.padding_side!r}: the codec wants its padding on the right")

    def __call__(
        self,
        audio,
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """One clip or a list of clips to `input_values` and `padding_mask`.

        Args:
            audio: a clip is a numpy array, a torch tensor or a list of floats, `(num_samples,)`, mono; floats in
                [-1, 1], or int16, which is divided by 32768. A list of clips is a batch.
            sampling_rate (`int`, *optional*): Hz of `audio`; a warning reminds of it if it is not given.
            padding: `True` or `"longest"` pads to the longest clip, `"max_length"` to `max_length`, `False` not at all.
            max_length (`int`, *optional*): samples.
            truncation (`bool`): cut clips to `max_length`.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; numpy arrays if not given.

        Returns:
            `input_values`, float32 `(batch, 1, num_samples)`, and `padding_mask`, int32 `(batch, num_samples)`, 1 for
            audio and 0 for padding; lists of arrays with `padding=False` and without `return_tensors`.

        Raises:
            ValueError: another sampling rate; no clip or an empty one; more than one channel; integers other than
                int16; NaN or infinite samples; a peak that shows samples outside of [-1, 1] by their scale.
        """
        if sampling_rate is None:
            logger.warning(
                f"pass sampling_rate to {type(self).__name__}: audio that is not at {self.sampling_rate} Hz "
                "would give wrong tokens without an error"
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"audio is at {sampling_rate!r} Hz, the model needs {self.sampling_rate} Hz: resample it first, for "
                f"example with soxr.resample(audio, {sampling_rate}, {self.sampling_rate})"
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}: at least one sample is wanted")
        is_batch = isinstance(audio, (list, tuple)) and len(audio) > 0 and not np.isscalar(audio[0])
        clips = [
            self._checked_clip(clip, f"audio[{i}]" if is_batch else "audio")
            for i, clip in enumerate(audio if is_batch else [audio])
        ]
        batch = self.pad(
            BatchFeature({"input_values": clips}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            return_attention_mask=True,
        )
        values, masks = batch["input_values"], batch["attention_mask"]
        features = BatchFeature(
            {"input_values": [np.atleast_2d(value.T) for value in values], "padding_mask": list(masks)}
        )
        if padding or return_tensors is not None:
            features = features.convert_to_tensors(return_tensors or "np")
        return features

    def _checked_clip(self, clip, name: str) -> np.ndarray:
        """The clip as float32, or a ValueError that says what is wrong with it."""
        return _checked_samples(self._with_channels(_as_array(clip, name), name), name)

    def _with_channels(self, clip: np.ndarray, name: str) -> np.ndarray:
        """The clip with as many channels as the codec has; `ValueError` for a shape it can't have."""
        if clip.ndim != 1:
            raise ValueError(
                f"{name} has shape {clip.shape}: mono audio (num_samples,) is wanted. Take one channel or the mean of "
                "them (audio.mean(axis=0) where channels come first); pass a batch as a list of clips"
            )
        return clip


def _as_array(clip, name: str) -> np.ndarray:
    if hasattr(clip, "detach"):
        clip = clip.detach().cpu()
        clip = (clip.float() if clip.is_floating_point() else clip).numpy()
    elif not isinstance(clip, (np.ndarray, list, tuple)):
        raise ValueError(
            f"{name} is a {type(clip).__name__}: a numpy array, a torch tensor or a list of floats is wanted"
        )
    return np.asarray(clip)


def _checked_samples(clip: np.ndarray, name: str) -> np.ndarray:
    if clip.size == 0:
        raise ValueError(f"{name} is empty: at least one sample is wanted")
    if clip.dtype.kind == "i" and clip.dtype.itemsize == 2:
        return clip.astype(np.float32) / 32768
    if clip.dtype.kind != "f":
        raise ValueError(
            f"{name} holds {clip.dtype}: floats in [-1, 1] or int16 are wanted. Divide integers by their full scale"
        )
    if not np.isfinite(clip).all():
        first = int(np.argwhere(~np.isfinite(clip))[0][0])
        raise ValueError(f"{name} has NaN or infinite samples, the first at index {first}: repair or drop the clip")
    peak = float(np.abs(clip).max())
    if peak > LOUDEST_SENSIBLE_PEAK:
        raise ValueError(f"{name} peaks at {peak:g}: samples in [-1, 1] are wanted. Divide 16-bit samples by 32768")
    return clip.astype(np.float32)


CodecFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["CodecFeatureExtractor"]
