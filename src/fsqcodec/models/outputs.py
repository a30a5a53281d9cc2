"""What `encode`, `decode` and `forward` of every model return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class CodecEncoderOutput(ModelOutput):
    """Output of `encode`.

    Args:
        audio_codes (`torch.LongTensor` of shape `(batch, num_codebooks, num_frames)`): tokens in [0, codebook_size); 0
            in padding.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): 1 where a frame holds audio, for all
            frames of a crop that holds audio where the codec has crops; 0 in padding.
        latents (`torch.FloatTensor` of shape `(batch, latent_dim, num_frames)`, with `output_latents=True`): the
            encoder's output, before quantization; 0 in padding.
    """

    audio_codes: torch.LongTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None


@dataclass
class CodecDecoderOutput(ModelOutput):
    """Output of `decode`.

    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, num_channels, num_samples)`): audio at
            `config.output_sampling_rate`; 0 after a clip's last frame. That of [`CodecModel`] lies in (-1, 1), that of
            the other models may exceed it.
    """

    audio_values: torch.FloatTensor | None = None


@dataclass
class CodecOutput(ModelOutput):
    """Output of `forward`.

    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, num_channels, num_samples)`): as `decode` returns it, cut to
            the input's duration.
        audio_codes (`torch.LongTensor` of shape `(batch, num_codebooks, num_frames)`): as `encode` returns them.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): as `encode` returns it.
        latents (`torch.FloatTensor` of shape `(batch, latent_dim, num_frames)`, with `output_latents=True`): as
            `encode` returns them.
    """

    audio_values: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
