"""FsqNeuCodecConfig: Transformers' NeuCodecConfig with its rates, under a model_type of our own."""

from transformers.models.neucodec.configuration_neucodec import NeuCodecConfig

from .codec_facts import CodecFacts


class NeuCodecRates(CodecFacts):
    """What follows from the fields of a NeuCodec: to be inherited before `NeuCodecConfig`."""

    @property
    def decoder_hop_length(self) -> int:
        """Samples of one frame at `output_sampling_rate`."""
        return self.hop_length

    @property
    def hears_whole_clip(self) -> bool:
        """Always: encoder and decoder attend to all frames."""
        return True


class FsqNeuCodecConfig(NeuCodecRates, NeuCodecConfig):
    """Configuration of [`FsqNeuCodecModel`]: the fields are those of Transformers' `NeuCodecConfig`.

    Its model_type differs, so that importing this package leaves Transformers' own registration of "neucodec" alone.
    """

    model_type = "fsq_neucodec"
    token_fields = (  # what tokens depend on, beside the weights of the model's `token_parts`
        "input_sampling_rate",
        "downsampling_ratios",
        "quantization_levels",
    )

    def num_frames(self, num_samples: int) -> int:
        """Frames that a clip of `num_samples` at `input_sampling_rate` is encoded to: the whole ones in it."""
        return num_samples // self.encoder_hop_length


FsqNeuCodecConfig.register_for_auto_class()

__all__ = ["FsqNeuCodecConfig", "NeuCodecRates"]
