"""Lycodec's decoder: a frame's features and noise to a spectrogram, by one evaluation of a consistency function.

It is preconditioned as in "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022,
https://arxiv.org/abs/2206.00364), table 1: skip, output and input are scaled by what follows from the noise level.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lycodec import NORM_GROUPS, LycodecConfig
from .encoder_lycodec import SPECTROGRAM_CHANNELS
from .layers_lycodec import MLP_RATIO, LycodecAttention, LycodecMLP, interpolate_steps
from .precision import at_least_float32

CONDITIONER_NOISE_CHANNELS = 128
NETWORK_NOISE_CHANNELS = 256
BAND_CHANNELS = 32
BAND_CONDITION_CHANNELS = 16
POSITION_DEVIATION = 0.02  # of position embeddings at the start of training


class LycodecDecoder(nn.Module):
    """A noisy spectrogram to one without noise, as the frames' features say.

    With the boundary "original" the head for two bands comes after the skip connection, so a spectrogram is not
    returned as it is where the noise level goes to 0, and the network is told the level itself. With "exact" the head
    is a part of the network, which is told the level's logarithm, and scales are those of "Consistency Models" (Song et
    al. 2023, https://arxiv.org/abs/2303.01469), appendix C: at the lowest level the input is returned.
    """

    def __init__(self, config: LycodecConfig):
        super().__init__()
        self.sigma_data = config.sigma_data
        self.is_exact = config.boundary == "exact"
        self.min_noise_level = config.min_noise_level
        self.conditioner = LycodecConditioner(config)
        self.network = LycodecNetwork(config)
        self.band_head = LycodecBandHead(config)

    def forward(self, features: torch.Tensor, noisy: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
        """Features `(batch, frames_per_crop, latent_dim)`, a spectrogram `(batch, 4, stft_bins, stft_frames)` and the
        deviation of its noise `(batch,)` to a spectrogram, float32."""
        condition = self.conditioner(features, noise_level)
        sigma = at_least_float32(noise_level)[:, None, None, None]
        variance = sigma**2 + self.sigma_data**2
        scaled = noisy * variance**-0.5
        if self.is_exact:
            excess = sigma - self.min_noise_level
            network_output = self.band_head(self.network(scaled, condition, features, _logarithm(noise_level)))
            skipped = self.sigma_data**2 / (excess**2 + self.sigma_data**2) * noisy
            return skipped + excess * self.sigma_data * variance**-0.5 * network_output
        network_output = self.network(scaled, condition, features, noise_level)
        skipped = self.sigma_data**2 / variance * noisy
        return self.band_head(skipped + sigma * self.sigma_data * variance**-0.5 * network_output)


class LycodecConditioner(nn.Module):
    """Features at the rate of the spectrogram's columns, and the noise level: what the network reads beside it."""

    def __init__(self, config: LycodecConfig):
        super().__init__()
        channels = config.conditioner_channels
        self.num_columns = config.stft_frames
        self.token_proj = nn.Linear(config.latent_dim, channels)
        self.noise_mlp = LycodecNoiseMLP(CONDITIONER_NOISE_CHANNELS, channels)
        self.output_proj = nn.Conv1d(channels, channels, 1)

    def forward(self, features: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
        """`(batch, frames_per_crop, latent_dim)` and `(batch,)` to `(batch, conditioner_channels, stft_frames)`."""
        x = interpolate_steps(self.token_proj(features).transpose(1, 2), self.num_columns)
        return self.output_proj(x + self.noise_mlp(_logarithm(noise_level))[..., None])


class LycodecNetwork(nn.Module):
    """Patches of the noisy spectrogram through a transformer that looks at the features, and back up."""

    def __init__(self, config: LycodecConfig):
        super().__init__()
        channels, patch_size = config.decoder_hidden_size, config.decoder_patch_size
        self.grid = config.patch_grid
        self.noise_mlp = LycodecNoiseMLP(NETWORK_NOISE_CHANNELS, channels)
        self.patch_embedding = nn.Conv2d(
            SPECTROGRAM_CHANNELS + config.conditioner_channels, channels, patch_size, stride=patch_size
        )
        self.patch_position_embedding = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], channels))
        self.token_proj = nn.Linear(config.latent_dim, channels)
        self.token_position_embedding = nn.Parameter(torch.empty(1, config.frames_per_crop, channels))
        self.layers = nn.ModuleList(LycodecDecoderLayer(config) for _ in range(config.decoder_num_layers))
        self.norm = nn.LayerNorm(channels)
        stages = [channels, *config.upsampling_channels]
        self.upsampler = nn.ModuleList(LycodecUpsampling(*pair) for pair in zip(stages[:-1], stages[1:]))
        self.output_conv = nn.Conv2d(stages[-1], SPECTROGRAM_CHANNELS, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self):
        """As the original, for training from the start: Xavier for matrices, Kaiming for convolutions."""
        for position_embedding in (self.patch_position_embedding, self.token_position_embedding):
            nn.init.normal_(position_embedding, std=POSITION_DEVIATION)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            layer.self_attn.reset_parameters()
            layer.cross_attn.reset_parameters()

    def forward(
        self, noisy: torch.Tensor, condition: torch.Tensor, features: torch.Tensor, noise_level: torch.Tensor
    ) -> torch.Tensor:
        """`(batch, 4, stft_bins, stft_frames)`, `(batch, conditioner_channels, stft_frames)`, `(batch,
        frames_per_crop, latent_dim)` and `(batch,)`, noise levels or their logarithms, to `(batch, 4, stft_bins,
        stft_frames)`.

        Bins and columns that fill no patch are not looked at."""
        condition = condition[:, :, None].expand(-1, -1, noisy.shape[2], -1)
        x = self.patch_embedding(torch.cat([noisy.to(condition.dtype), condition], dim=1))
        x = x.flatten(2).transpose(1, 2) + self.patch_position_embedding
        context = self.token_proj(features) + self.token_position_embedding
        noise = F.silu(self.noise_mlp(noise_level))
        for layer in self.layers:
            x = layer(x, context, noise)
        x = self.norm(x).transpose(1, 2).unflatten(2, self.grid)
        for stage in self.upsampler:
            x = stage(x)
        if x.shape[2:] != noisy.shape[2:]:
            x = F.interpolate(x, noisy.shape[2:], mode="bilinear", align_corners=False)
        return self.output_conv(x)


class LycodecDecoderLayer(GradientCheckpointingLayer):
    """Attention among patches, attention to the features, and an MLP; the noise level scales and shifts what they
    read."""

    def __init__(self, config: LycodecConfig):
        super().__init__()
        channels, num_heads = config.decoder_hidden_size, config.decoder_num_heads
        self.self_attn_norm = LycodecNoiseNorm(channels)
        self.self_attn = LycodecAttention(channels, num_heads)
        self.cross_attn_norm = LycodecNoiseNorm(channels)
        self.cross_attn = LycodecAttention(channels, num_heads)
        self.mlp_norm = LycodecNoiseNorm(channels)
        self.mlp = LycodecMLP(channels, MLP_RATIO * channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`(batch, num_patches, channels)`, `(batch, frames_per_crop, channels)` and `(batch, channels)` to `x`'s
        shape."""
        normalized = self.self_attn_norm(x, noise)
        x = x + self.self_attn(normalized, normalized, normalized)
        x = x + self.cross_attn(self.cross_attn_norm(x, noise), context, context)
        return x + self.mlp(self.mlp_norm(x, noise))


class LycodecNoiseNorm(nn.Module):
    """A layer norm whose scale and shift follow from the noise level."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.modulation = nn.Linear(channels, 2 * channels)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`(batch, num_steps, channels)` and `(batch, channels)` to `x`'s shape."""
        scale, shift = self.modulation(noise)[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, (self.channels,)) * (1 + scale) + shift


class LycodecNoiseMLP(nn.Module):
    """A number for each crop to a vector."""

    def __init__(self, hidden_channels: int, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(1, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch,)` to `(batch, channels)`."""
        return self.fc2(F.silu(self.fc1(x[:, None].to(self.fc1.weight.dtype))))


class LycodecUpsampling(GradientCheckpointingLayer):
    """To twice the resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.norm(self.conv(x)))


class LycodecBandHead(nn.Module):
    """The spectrogram's bins up to a frequency through one head, those above through another.

    The high head sees the low band through zeros but at the bin that follows it; the weights of the bands, meant to
    blend them, are one gain for each. Both are so in the original, and its weights depend on it.
    """

    def __init__(self, config: LycodecConfig):
        super().__init__()
        highest = config.stft_bins - 1
        self.num_low_bins = 1 + min(highest, int(config.band_split_hz * highest / (config.sampling_rate / 2)))
        self.low = LycodecHead(SPECTROGRAM_CHANNELS)
        self.condition = LycodecBandCondition()
        self.high = LycodecHead(SPECTROGRAM_CHANNELS + BAND_CONDITION_CHANNELS)
        self.band_logits = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self):
        """Both bands alike."""
        nn.init.constant_(self.band_logits, 0.5)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """`(batch, 4, stft_bins, stft_frames)` to the same shape, float32."""
        x = spectrogram.to(self.band_logits.dtype)
        is_low = torch.arange(x.shape[2], device=x.device)[:, None] < self.num_low_bins
        low = self.low(x).masked_fill(~is_low, 0)
        high = self.high(torch.cat([x, self.condition(low)], dim=1)).masked_fill(is_low, 0)
        low_gain, high_gain = at_least_float32(self.band_logits).softmax(dim=0)
        return low_gain * low + high_gain * high


class LycodecHead(GradientCheckpointingLayer):
    """A convolution, normalised, and a mixture of its channels."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, BAND_CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, BAND_CHANNELS)
        self.conv2 = nn.Conv2d(BAND_CHANNELS, SPECTROGRAM_CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.silu(self.norm(self.conv1(x))))


class LycodecBandCondition(nn.Module):
    """What the high band's head is told about the low band."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(SPECTROGRAM_CHANNELS, BAND_CONDITION_CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(BAND_CONDITION_CHANNELS, BAND_CONDITION_CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.silu(self.conv1(x)))


def _logarithm(noise_level: torch.Tensor) -> torch.Tensor:
    """Of levels `(batch,)`, as a network is told them."""
    return 0.25 * at_least_float32(noise_level).log()
