"""What NeuCodec and distill-NeuCodec share: Transformers' modules, run so that padding does not reach a clip.

`mask` is bool `(batch, num_frames, 1)`, True where a frame belongs to a clip, or `None` where every one does. The
modules hold the weights and stay as Transformers has them; only the order of their steps is written here, with padding
zeroed before every layer that mixes frames and left out of every statistic. Where Transformers does this itself,
calling the module is enough; tests/test_neucodec.py tells when.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.neucodec.modeling_neucodec import (
    NeuCodecDecoder,
    NeuCodecISTFTHead,
    NeuCodecPreTrainedModel,
    NeuCodecResNetBlock,
)
from transformers.utils import can_return_tuple

from .outputs import CodecDecoderOutput, CodecEncoderOutput, CodecOutput
from .padding import right_padding_mask, zero_padding
from .precision import at_least_float32
from .pretrained import check_code_range, check_num_samples, check_tensor

MAX_MAGNITUDE = 100.0  # of the spectrum, as in the original
SMALLEST_ENVELOPE = 1e-11


class NeuCodecDecodingMixin:
    """From the two branches' features on, both models are the same: quantizer and decoder. To be inherited first."""

    def _init_weights(self, module: nn.Module):
        """Transformers' own initialisation, which also computes the constants that no checkpoint holds."""
        NeuCodecPreTrainedModel._init_weights(self, module)

    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.Tensor | None = None,
        *,
        audio_codes_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        num_samples: int | None = None,
        return_dict: bool | None = None,
    ) -> CodecDecoderOutput:
        """Tokens, or latents, to audio at `config.output_sampling_rate`.

        Args:
            audio_codes (`torch.LongTensor` of shape `(batch, 1, num_frames)`, *optional*): tokens from anywhere.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): 1 for frames, 0 for padding on
                the right, whose codes are not looked at; all frames if not given.
            latents (`torch.FloatTensor` of shape `(batch, quantization_dim, num_frames)`, *optional*): instead of
                `audio_codes`; decoded without being quantized. Transformers' `NeuCodecModel` calls the quantizer's
                output so, these go into the quantizer.
            num_samples (`int`, *optional*): cut the audio to this length at `config.output_sampling_rate`. Up to one
                frame more than there is changes nothing, as NeuCodec drops what follows the last whole frame.

        Raises:
            ValueError: both or none of `audio_codes` and `latents`, another type or shape, codes out of range, a
                `num_samples` that the frames and one more do not hold.
        """
        if (audio_codes is None) == (latents is None):
            raise ValueError("decode takes either audio_codes or latents")
        if latents is None:
            check_tensor(audio_codes, "audio_codes", 1, "num_frames", is_float=False)
        else:
            check_tensor(latents, "latents", self.config.quantization_dim, "num_frames", is_float=True)
        given = audio_codes if latents is None else latents
        shape = given.shape[0], given.shape[-1]
        check_num_samples(num_samples, shape[1] + 1, self.config.decoder_hop_length)
        mask = right_padding_mask(audio_codes_mask, shape, "audio_codes_mask", "frame")
        if latents is None:
            indices = audio_codes[:, 0].to(torch.int64)
            indices = indices if mask is None else zero_padding(indices, mask[..., 0])
            check_code_range(indices, self.config.codebook_size)
            values = self.quantizer.quantizer.codebook[indices].to(self.quantizer.project_out.weight.dtype)
            features = self.quantizer.project_out(values)
        else:
            features = self._latents_to_features(latents.transpose(1, 2))
        audio_values = decode_features(self.acoustic_decoder, features, mask, self.config)
        return CodecDecoderOutput(audio_values[..., :num_samples])

    def _encoded(self, latents: torch.Tensor, mask: torch.Tensor | None, output_latents: bool) -> CodecEncoderOutput:
        """The output of `encode` from what `fc_encoder` makes, `(batch, num_frames, quantization_dim)`."""
        _, indices = self.quantizer(latents)
        return CodecEncoderOutput(**self._code_outputs(indices, latents, mask, output_latents))

    def _reconstructed(
        self, latents: torch.Tensor, mask: torch.Tensor | None, num_samples: int, output_latents: bool
    ) -> CodecOutput:
        """The output of `forward` for an input of `num_samples`; gradients pass the quantizer."""
        features, indices = self.quantizer(latents)
        audio_values = decode_features(self.acoustic_decoder, features, mask, self.config)
        num_samples = num_samples * self.config.output_sampling_rate // self.config.input_sampling_rate
        return CodecOutput(
            audio_values[..., :num_samples], **self._code_outputs(indices, latents, mask, output_latents)
        )

    def _code_outputs(
        self, indices: torch.Tensor, latents: torch.Tensor, mask: torch.Tensor | None, output_latents: bool
    ) -> dict:
        """`audio_codes`, `audio_codes_mask` and `latents` as the outputs hold them."""
        frame_mask = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask
        return {
            "audio_codes": zero_padding(indices.to(torch.int64), frame_mask).transpose(1, 2),
            "audio_codes_mask": frame_mask[..., 0].to(torch.int64),
            "latents": zero_padding(latents, mask).transpose(1, 2) if output_latents else None,
        }

    def _latents_to_features(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `(batch, num_frames, quantization_dim)` to what the quantizer makes of them, less the rounding. It
        bounds them twice, as the original does."""
        projected = self.quantizer.project_in(latents)
        levels = self.quantizer.quantizer
        bounded = levels.bound(levels.bound(projected).to(torch.float32))
        return self.quantizer.project_out((bounded / (levels.levels // 2)).to(projected.dtype))


def adapt_semantics(adapter: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The semantic adapter, four convolutions: `(batch, num_frames, channels)` to as many frames."""
    row_mask = _rows(mask)
    x = adapter.conv1(zero_padding(x.transpose(1, 2), row_mask))
    residual = x = F.relu(x)
    x = F.relu(adapter.conv2(zero_padding(x, row_mask)))
    x = adapter.conv3(zero_padding(x, row_mask)) + residual
    return adapter.conv4(zero_padding(x, row_mask)).transpose(1, 2)


def masked_group_norm(norm: nn.GroupNorm, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Group norm of `(batch, channels, num_steps)` whose statistics, in float32, are those of a clip's own steps.
    `mask` is `(batch, 1, num_steps)`. One computation with and without a mask: torch's own rounds differently, which a
    variance close to zero, as of a single frame, would magnify."""
    groups = at_least_float32(x).unflatten(1, (norm.num_groups, -1))
    mask = None if mask is None else mask.unsqueeze(1)
    num_steps = groups.shape[3] if mask is None else mask.sum(dim=-1, keepdim=True)
    count = num_steps * groups.shape[2]
    mean = zero_padding(groups, mask).sum(dim=(2, 3), keepdim=True) / count
    variance = zero_padding(groups - mean, mask).square().sum(dim=(2, 3), keepdim=True) / count
    normalized = ((groups - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2).to(x.dtype)
    return normalized * norm.weight[:, None] + norm.bias[:, None]


def decode_features(decoder: NeuCodecDecoder, x: torch.Tensor, mask: torch.Tensor | None, config) -> torch.Tensor:
    """The quantizer's output `(batch, num_frames, quantization_dim)` to audio
    `(batch, 1, num_frames * decoder_hop_length)`, zero in padding."""
    row_mask = _rows(mask)
    x = decoder.embed(zero_padding(decoder.fc(x).transpose(1, 2), row_mask))
    for block in decoder.prior_net:
        x = _resnet_block(block, x, row_mask)
    x = x.transpose(1, 2)
    # the angle depends on the head alone, the same for all frames, as in the original: see `NeuCodecDecoder.forward`
    heads = torch.arange(decoder.num_attention_heads, device=x.device).unsqueeze(0)
    position_embeddings = decoder.rotary_emb(x, heads)
    frame_mask = None if mask is None else mask[..., 0]
    attention_mask = create_bidirectional_mask(config=config, inputs_embeds=x, attention_mask=frame_mask)
    for layer in decoder.layers:
        x = layer(x, attention_mask=attention_mask, position_embeddings=position_embeddings)
    x = x.transpose(1, 2)
    for block in decoder.post_net:
        x = _resnet_block(block, x, row_mask)
    return _inverse_stft(decoder.head, decoder.norm(x.transpose(1, 2)), mask)


def _resnet_block(block: NeuCodecResNetBlock, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`(batch, channels, num_frames)` to the same shape."""
    y = block.activation1(masked_group_norm(block.norm1, x, mask))
    y = block.conv1(zero_padding(y, mask))
    y = block.activation2(masked_group_norm(block.norm2, y, mask))
    y = F.dropout(y, p=block.activation_dropout, training=block.training)
    return x + block.conv2(zero_padding(y, mask))


def _inverse_stft(head: NeuCodecISTFTHead, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`(batch, num_frames, channels)` to audio `(batch, 1, num_frames * hop_length)`: magnitudes and phases to
    overlapping frames, whose sum is divided by that of their squared windows. Frames of padding are in neither sum."""
    log_magnitude, phase = at_least_float32(head.linear(x)).chunk(2, dim=-1)
    spectrum = torch.polar(torch.exp(log_magnitude).clamp(max=MAX_MAGNITUDE), phase)
    window = head.window.to(log_magnitude.dtype)
    frames = zero_padding(torch.fft.irfft(spectrum, head.n_fft, dim=-1) * window, mask)
    envelopes = zero_padding(window.square().expand(frames.shape), mask)
    audio = _overlap_add(frames, head) / _overlap_add(envelopes, head).clamp(min=SMALLEST_ENVELOPE)
    sample_mask = None if mask is None else mask.repeat_interleave(head.hop_length, dim=1).transpose(1, 2)
    return zero_padding(audio, sample_mask)


def _overlap_add(frames: torch.Tensor, head: NeuCodecISTFTHead) -> torch.Tensor:
    """`(batch, num_frames, n_fft)` to `(batch, 1, num_frames * hop_length)`, what reaches over the ends cut off."""
    num_samples = (frames.shape[1] - 1) * head.hop_length + head.n_fft
    shape = {"output_size": (1, num_samples), "kernel_size": (1, head.n_fft), "stride": (1, head.hop_length)}
    return F.fold(frames.transpose(1, 2), **shape)[:, 0, :, head.padding : -head.padding]


def _rows(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.transpose(1, 2)
