"""DistillNeuCodecConfig: sizes of distill-NeuCodec."""

from types import SimpleNamespace

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.neucodec.configuration_neucodec import NeuCodecConfig

from .configuration_neucodec import NeuCodecRates


@strict
class DistillNeuCodecConfig(NeuCodecRates, NeuCodecConfig):
    r"""
    Configuration of [`DistillNeuCodecModel`] (https://huggingface.co/neuphonic/distill-neucodec). The defaults are the
    published model's.

    Quantizer and decoder have the fields of Transformers' `NeuCodecConfig`; `encoder_hidden_size` of it has no meaning
    here.

    Args:
        semantic_model_config (`dict` or `HubertConfig`): DistilHuBERT.
        semantic_adapter_size (`int`): channels inside the semantic adapter.
        downsampling_ratios (`list[int]`): strides of the acoustic encoder's convolutions.
        encoder_hidden_sizes, encoder_depths, encoder_transformer_depths, transformer_downsampling_ratio,
        attention_window_size: of the acoustic encoder, as in [`CodecConfig`].
        encoder_latent_dim (`int`): channels of the acoustic encoder's transformer and of its output.
        encoder_num_attention_heads, encoder_head_dim (`int`): of the acoustic encoder's transformer layers.
        acoustic_hidden_size (`int`): channels that the acoustic encoder's output is projected to.
    """

    model_type = "distill_neucodec"
    token_fields = (  # what tokens depend on, beside the weights of the model's `token_parts`
        "input_sampling_rate",
        "downsampling_ratios",
        "transformer_downsampling_ratio",
        "attention_window_size",
        "encoder_num_attention_heads",
        "quantization_levels",
    )
    sub_configs_defaults = {
        "semantic_model_config": SubConfigSpec(
            config_class=AutoConfig, model_type="hubert", init_kwargs={"num_hidden_layers": 2}
        ),
    }

    semantic_adapter_size: int = 1024
    downsampling_ratios: list[int] | tuple[int, ...] = (4, 4, 4)
    encoder_hidden_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256)
    encoder_depths: list[int] | tuple[int, ...] = (1, 1, 1, 2)
    encoder_latent_dim: int = 512
    encoder_transformer_depths: list[int] | tuple[int, ...] = (2, 3)
    transformer_downsampling_ratio: int = 5
    attention_window_size: int = 300
    encoder_num_attention_heads: int = 6
    encoder_head_dim: int = 128
    acoustic_hidden_size: int = 768

    @property
    def encoder_hop_length(self) -> int:
        """Samples of one frame at `input_sampling_rate`."""
        return super().encoder_hop_length * self.transformer_downsampling_ratio

    def num_frames(self, num_samples: int) -> int:
        """Frames that a clip of `num_samples` at `input_sampling_rate` is encoded to: one more than the whole ones in
        it."""
        return num_samples // self.encoder_hop_length + 1

    @property
    def acoustic_encoder_config(self) -> SimpleNamespace:
        """What [`CodecEncoder`] reads of a [`CodecConfig`]; there are no norms between its convolutions."""
        return SimpleNamespace(
            encoder_stem="trend",
            downsampling_ratios=self.downsampling_ratios,
            encoder_hidden_sizes=self.encoder_hidden_sizes,
            encoder_depths=self.encoder_depths,
            norm_eps=None,
            latent_dim=self.encoder_latent_dim,
            encoder_transformer_depths=self.encoder_transformer_depths,
            transformer_downsampling_ratio=self.transformer_downsampling_ratio,
            attention_window_size=self.attention_window_size,
            num_attention_heads=self.encoder_num_attention_heads,
            head_dim=self.encoder_head_dim,
        )


DistillNeuCodecConfig.register_for_auto_class()

__all__ = ["DistillNeuCodecConfig"]
