"""Lycodec's encoder: a crop's spectrogram to the latents of its frames."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lycodec import NORM_GROUPS, LycodecConfig
from .layers_lycodec import DROPOUT, MLP_RATIO, LycodecAttention, LycodecMLP, interpolate_steps

SPECTROGRAM_CHANNELS = 4
BLOCK_STRIDES = ((2, 2), (2, 2), (2, 2), (2, 1))  # along frequency, along time
RESAMPLER_KERNEL_SIZE = 7
ROTARY_BASE = 10000.0


class LycodecEncoder(nn.Module):
    """Convolutions, the mean over frequency, as many columns as a crop has frames, and a transformer on these."""

    def __init__(self, config: LycodecConfig):
        super().__init__()
        channels = (SPECTROGRAM_CHANNELS, *config.encoder_channels)
        self.conv_blocks = nn.ModuleList(
            LycodecConvBlock(in_channels, out_channels, stride)
            for in_channels, out_channels, stride in zip(channels[:-1], channels[1:], BLOCK_STRIDES)
        )
        self.input_proj = nn.Conv2d(channels[-1], config.hidden_size, 1)
        self.resampler = LycodecResampler(config)
        self.layers = nn.ModuleList(LycodecEncoderLayer(config) for _ in range(config.num_layers))
        self.output_proj = nn.Linear(config.hidden_size, config.latent_dim)
        self.chunk_size = config.attention_chunk_size

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """`(batch, 4, stft_bins, stft_frames)` to latents `(batch, frames_per_crop, latent_dim)`."""
        x = spectrogram.to(self.input_proj.weight.dtype)
        for block in self.conv_blocks:
            x = block(x)
        x = self.resampler(self.input_proj(x).mean(dim=2))
        mask = first_chunk_mask(x.shape[1], self.chunk_size, x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.output_proj(x)


class LycodecConvBlock(GradientCheckpointingLayer):
    """Two convolutions, each normalised over the whole crop. The first one lowers the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(x)))


class LycodecResampler(nn.Module):
    """Columns of the convolutions to frames."""

    def __init__(self, config: LycodecConfig):
        super().__init__()
        self.num_frames = config.frames_per_crop
        self.conv = nn.Conv1d(
            config.hidden_size, config.hidden_size, RESAMPLER_KERNEL_SIZE, padding=RESAMPLER_KERNEL_SIZE // 2
        )
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, hidden_size, num_columns)` to `(batch, frames_per_crop, hidden_size)`."""
        return self.proj(interpolate_steps(self.conv(x), self.num_frames).transpose(1, 2))


class LycodecEncoderLayer(GradientCheckpointingLayer):
    """Attention and an MLP, normalised before. Queries and keys are rotated before their projections: scores do not
    depend on relative position only."""

    def __init__(self, config: LycodecConfig):
        super().__init__()
        self.use_rotary_embedding = config.use_rotary_embedding
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.self_attn = LycodecAttention(config.hidden_size, config.num_heads, DROPOUT)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.mlp = LycodecMLP(config.hidden_size, MLP_RATIO * config.hidden_size, DROPOUT)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(batch, num_frames, hidden_size)` and a mask `(num_frames, num_frames)` to `x`'s shape."""
        normalized = self.input_layernorm(x)
        rotated = rotate(normalized) if self.use_rotary_embedding else normalized
        x = x + self.self_attn(rotated, rotated, normalized, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


def first_chunk_mask(num_frames: int, chunk_size: int, device) -> torch.Tensor:
    """Bool `(num_frames, num_frames)`: the first `chunk_size` frames don't see the later ones, all else is seen."""
    is_late = torch.arange(num_frames, device=device) >= chunk_size
    return is_late[:, None] | ~is_late


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Turn each pair (j, j + channels / 2) of a frame's vector by the angle frame * 10000^(-2 j / channels)."""
    num_frames, channels = x.shape[1:]
    frequencies = ROTARY_BASE ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=x.device) / channels)
    angles = torch.arange(num_frames, dtype=torch.float64, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
