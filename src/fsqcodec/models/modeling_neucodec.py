"""FsqNeuCodecModel: Transformers' NeuCodecModel whose clips do not hear the batch they are in."""

import torch
from torch import nn
from transformers.models.neucodec.modeling_neucodec import NeuCodecModel
from transformers.utils import can_return_tuple

from .configuration_neucodec import FsqNeuCodecConfig
from .neucodec_parts import NeuCodecDecodingMixin, adapt_semantics
from .outputs import CodecEncoderOutput, CodecOutput
from .padding import right_padding_mask, zero_padding
from .pretrained import PreTrainedCodec, check_finite, check_tensor


class FsqNeuCodecModel(NeuCodecDecodingMixin, PreTrainedCodec, NeuCodecModel):
    """NeuCodec (https://huggingface.co/neuphonic/neucodec): speech at 16 kHz to 50 tokens a second, and back at 24 kHz.

    Architecture and weights are those of Transformers' `NeuCodecModel`. Here a clip's tokens and its audio do not
    depend on the batch it is padded into, `audio_codes_mask` is right, and codes are int64.
    """

    config: FsqNeuCodecConfig
    base_model_prefix = "neucodec"
    token_parts = ("semantic_encoder", "semantic_adapter", "acoustic_encoder", "fc_encoder", "quantizer")
    _no_split_modules = [
        "Wav2Vec2BertEncoderLayer",
        "NeuCodecEncoderBlock",
        "NeuCodecResNetBlock",
        "NeuCodecDecoderLayer",
    ]

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        input_features: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecEncoderOutput:
        """Audio to tokens, one for each of the features' frames: `num_samples // config.encoder_hop_length`.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): audio at
                `config.input_sampling_rate`.
            input_features (`torch.FloatTensor` of shape `(batch, num_frames, num_mel_bins)`): log-mel features of it,
                as the feature extractor makes them.
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for audio, 0 for padding on the
                right; all audio if not given.
            input_features_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): 1 for frames of a clip; all
                if not given.
            output_latents (`bool`): return the latents too, `(batch, quantization_dim, num_frames)`.

        Raises:
            ValueError: no tensor, integers, another shape, NaN or infinity, a clip that is all padding, padding on the
                left, features that are not as long as the audio. Values are not checked under `torch.compile`.
        """
        latents, mask = self._encode_latents(input_values, input_features, padding_mask, input_features_mask)
        return self._encoded(latents, mask, output_latents)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        input_features: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecOutput:
        """Audio to tokens to audio of the same duration, or less by the samples after the last whole frame. Arguments
        and errors are those of `encode`."""
        latents, mask = self._encode_latents(input_values, input_features, padding_mask, input_features_mask)
        return self._reconstructed(latents, mask, input_values.shape[-1], output_latents)

    def _encode_latents(
        self,
        input_values: torch.Tensor,
        input_features: torch.Tensor,
        padding_mask: torch.Tensor | None,
        input_features_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents `(batch, num_frames, quantization_dim)` and the mask of their frames, `(batch, num_frames, 1)`."""
        hop_length = self.config.encoder_hop_length
        check_tensor(input_values, "input_values", 1, "num_samples", is_float=True)
        batch_size, _, num_samples = input_values.shape
        self._check_features(input_features, batch_size)
        num_frames = input_features.shape[1]
        if num_frames not in (num_samples // hop_length, num_samples // hop_length - 1):
            raise ValueError(
                f"input_features have {num_frames} frames, input_values {num_samples} samples: there is one frame for "
                f"each {hop_length} samples"
            )
        sample_mask = right_padding_mask(padding_mask, (batch_size, num_samples), "padding_mask", "sample")
        mask = right_padding_mask(input_features_mask, (batch_size, num_frames), "input_features_mask", "frame")

        if sample_mask is not None:
            input_values = zero_padding(input_values, sample_mask.transpose(1, 2))
        check_finite(input_values, "input_values")
        semantic = self.semantic_encoder(
            input_features.to(self.dtype), attention_mask=None if mask is None else mask[..., 0].long()
        ).last_hidden_state
        semantic = adapt_semantics(self.semantic_adapter, semantic, mask)
        acoustic = self._acoustic_features(input_values.to(self.dtype), mask, num_frames)
        return self.fc_encoder(torch.cat([semantic, acoustic], dim=-1)), mask

    def _check_features(self, input_features: torch.Tensor, batch_size: int):
        if not isinstance(input_features, torch.Tensor):
            raise ValueError(f"input_features are a {type(input_features).__name__}: a tensor is wanted")
        num_mel_bins = self.semantic_encoder.config.feature_projection_input_dim
        shape = tuple(input_features.shape)
        if len(shape) != 3 or shape[0] != batch_size or shape[2] != num_mel_bins:
            raise ValueError(f"input_features have shape {shape}: ({batch_size}, num_frames, {num_mel_bins}) is wanted")
        if not input_features.is_floating_point():
            raise ValueError(f"input_features hold {input_features.dtype}: floats are wanted")

    def _acoustic_features(
        self, input_values: torch.Tensor, mask: torch.Tensor | None, num_frames: int
    ) -> torch.Tensor:
        """`(batch, 1, num_samples)` to `(batch, num_frames, hidden_size)`; each clip ends as it does alone, with zeros
        to a whole frame after its last token.

        Clips of one length run together. The convolutions run at the rate of the samples, so one clip of seconds fills
        a device, and their anti-aliased activations repeat the last value at the end, which no zeroed padding imitates.
        """
        lengths = [num_frames] * len(input_values) if mask is None else mask.sum(dim=(1, 2)).tolist()
        features = input_values.new_zeros(len(input_values), num_frames, self.config.hidden_size)
        for length in sorted(set(lengths)):
            rows = [row for row, found in enumerate(lengths) if found == length]
            num_samples = (length + 1) * self.config.encoder_hop_length
            clips = input_values[rows, :, :num_samples]
            clips = nn.functional.pad(clips, (0, num_samples - clips.shape[-1]))
            features[rows, :length] = self.acoustic_encoder(clips).transpose(1, 2)[:, :length]
        return features


FsqNeuCodecModel.register_for_auto_class("AutoModel")

__all__ = ["FsqNeuCodecModel"]
