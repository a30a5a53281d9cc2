"""DistillNeuCodecModel: a small encoder for NeuCodec's quantizer and decoder.

waveform -> DistilHuBERT -> adapter \
                                      scalar quantizer -> NeuCodec's decoder -> waveform
waveform -> CodecEncoder -> linear  /
"""

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.neucodec.modeling_neucodec import NeuCodecDecoder, NeuCodecPreTrainedModel, NeuCodecQuantizer
from transformers.utils import can_return_tuple

from .configuration_distill_neucodec import DistillNeuCodecConfig
from .modeling_codec import CodecEncoder
from .neucodec_parts import (
    NeuCodecDecodingMixin,
    adapt_semantics,
    masked_group_norm,
)
from .outputs import CodecEncoderOutput, CodecOutput
from .padding import right_padding_mask, zero_padding
from .pretrained import PreTrainedCodec, check_finite, check_tensor


class DistillSemanticAdapter(nn.Module):
    """NeuCodec's semantic adapter with a width of its own inside."""

    def __init__(self, channels: int, hidden_size: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, hidden_size, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, padding=1)
        self.conv3 = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, padding=1)
        self.conv4 = nn.Conv1d(hidden_size, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, num_frames, channels)` to the same shape."""
        return adapt_semantics(self, x, mask)


class DistillNeuCodecModel(NeuCodecDecodingMixin, PreTrainedCodec, NeuCodecPreTrainedModel):
    """distill-NeuCodec (https://huggingface.co/neuphonic/distill-neucodec): speech at 16 kHz to 50 tokens a second, in
    NeuCodec's codebook, and back at 24 kHz.

    A clip's tokens and its audio do not depend on the batch it is in.
    """

    config: DistillNeuCodecConfig
    base_model_prefix = "neucodec"
    token_parts = ("semantic_encoder", "semantic_adapter", "acoustic_encoder", "fc_acoustic", "fc_encoder", "quantizer")
    _no_split_modules = [
        "HubertEncoderLayer",
        "ParametrizedConv1d",
        "TrendStem",
        "ConvUnit",
        "LocalTransformer",
        "EncoderStage",
        "NeuCodecResNetBlock",
        "NeuCodecDecoderLayer",
    ]

    def __init__(self, config: DistillNeuCodecConfig):
        super().__init__(config)
        semantic_size = config.semantic_model_config.hidden_size
        self.semantic_encoder = AutoModel.from_config(config.semantic_model_config)
        self.semantic_adapter = DistillSemanticAdapter(semantic_size, config.semantic_adapter_size)
        self.acoustic_encoder = CodecEncoder(config.acoustic_encoder_config)
        self.fc_acoustic = nn.Linear(config.encoder_latent_dim, config.acoustic_hidden_size)
        self.fc_encoder = nn.Linear(semantic_size + config.acoustic_hidden_size, config.quantization_dim)
        self.quantizer = NeuCodecQuantizer(config)
        self.acoustic_decoder = NeuCodecDecoder(config)
        self.acoustic_decoder.fc = nn.Linear(config.quantization_dim, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecEncoderOutput:
        """Audio to `num_samples // config.encoder_hop_length + 1` tokens.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): audio at
                `config.input_sampling_rate`.
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for audio, 0 for padding on the
                right; all audio if not given.
            output_latents (`bool`): return the latents too, `(batch, quantization_dim, num_frames)`.

        Raises:
            ValueError: no tensor, integers, another shape, no samples, NaN or infinity, a clip that is all padding,
                padding on the left. Values are not checked under `torch.compile`.
        """
        latents, mask = self._encode_latents(input_values, padding_mask)
        return self._encoded(latents, mask, output_latents)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecOutput:
        """Audio to tokens to audio of the same duration. Arguments and errors are those of `encode`."""
        latents, mask = self._encode_latents(input_values, padding_mask)
        return self._reconstructed(latents, mask, input_values.shape[-1], output_latents)

    def _encode_latents(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents `(batch, num_frames, quantization_dim)` and the mask of their frames, `(batch, num_frames, 1)`."""
        check_tensor(input_values, "input_values", 1, "num_samples", is_float=True)
        batch_size, _, num_samples = input_values.shape
        hop_length = self.config.encoder_hop_length
        num_frames = num_samples // hop_length + 1
        waveform = input_values[:, 0].to(self.dtype)
        mask = right_padding_mask(padding_mask, (batch_size, num_samples), "padding_mask", "sample")
        if mask is not None:
            waveform = zero_padding(waveform, mask[..., 0])
            clip_frames = mask.sum(dim=1, keepdim=True) // hop_length + 1
            mask = torch.arange(num_frames, device=mask.device)[None, :, None] < clip_frames
        check_finite(waveform, "input_values")
        waveform = nn.functional.pad(waveform, (0, num_frames * hop_length - num_samples))

        semantic = self.semantic_adapter(self._semantic_features(waveform, mask), mask)
        sample_mask = None if mask is None else mask.repeat_interleave(hop_length, dim=1)
        acoustic = self.fc_acoustic(self.acoustic_encoder(waveform.unsqueeze(-1), sample_mask))
        return self.fc_encoder(torch.cat([semantic, acoustic], dim=-1)), mask

    def _semantic_features(self, waveform: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, num_frames * encoder_hop_length)` to `(batch, num_frames, hidden_size)`.

        HuBERT's own forward with the first layer's group norm over the clip alone: its attention mask reaches all else.
        The convolutions that follow have no padding, so what a clip's frames hear is the clip.
        """
        hubert, margin = self.semantic_encoder, self.config.encoder_hop_length // 2
        first, *others = hubert.feature_extractor.conv_layers
        x = first.conv(nn.functional.pad(waveform, (margin, margin)).unsqueeze(1))
        step_mask = frame_mask = None
        if mask is not None:
            frame_mask = mask[..., 0]
            clip_samples = frame_mask.sum(dim=1)[:, None, None] * self.config.encoder_hop_length + 2 * margin
            clip_steps = (clip_samples - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
            step_mask = torch.arange(x.shape[-1], device=x.device) < clip_steps
        x = first.activation(masked_group_norm(first.layer_norm, x, step_mask))
        for layer in others:
            x = layer(x)
        x = hubert.feature_projection(x.transpose(1, 2))
        return hubert.encoder(x, attention_mask=frame_mask).last_hidden_state


DistillNeuCodecModel.register_for_auto_class("AutoModel")

__all__ = ["DistillNeuCodecModel"]
