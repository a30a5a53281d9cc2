"""DistillNeuCodecFeatureExtractor: waveforms -> padded batch and mask."""

from .feature_extraction_codec import CodecFeatureExtractor


class DistillNeuCodecFeatureExtractor(CodecFeatureExtractor):
    """Prepares mono audio at 16 kHz for [`DistillNeuCodecModel`], which hears the waveform as it is: checks it, pads a
    batch on the right and says what is padding. Arguments, result and errors are those of [`CodecFeatureExtractor`]."""


DistillNeuCodecFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["DistillNeuCodecFeatureExtractor"]
