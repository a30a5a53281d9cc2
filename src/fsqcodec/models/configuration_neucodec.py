"""FsqNeuCodecConfig: Transformers' NeuCodecConfig with its rates, under a model_type of our own."""

from transformers.models.neucodec.configuration_neucodec import NeuCodecConfig

from .token_rates import TokenRates


class NeuCodecRates(TokenRates):
    """What follows from the fields of a NeuCodec: to be inherited before `NeuCodecConfig`."""

    @property
    def decoder_hop_length(self) -> int:
        """Samples of one frame at `output_sampling_rate`."""
        return self.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames (tokens) per second, Hz, not rounded."""
        return self.input_sampling_rate / self.encoder_hop_length


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


FsqNeuCodecConfig.register_for_auto_class()

__all__ = ["FsqNeuCodecConfig", "NeuCodecRates"]
