"""Discriminators that tell decoded audio from recorded, and the losses of the two sides.

The networks are those of DAC (Kumar et al. 2023, arXiv:2306.06546, section 3.4;
https://github.com/descriptinc/descript-audio-codec, dac/model/discriminator.py), with the windows of L3AC
(https://github.com/zhai-lw/L3AC, branch `train`). What they make of a clip does not depend on the batch it is padded
into: after every layer all that is no audio is 0 again, as beyond the end of the batch. Where a clip ends there is
silence; DAC reflects the audio.

    discriminator = Discriminator()
    real = discriminator(input_values, padding_mask)
    fake = discriminator(audio_values.detach(), padding_mask)
    loss = batch_mean(discriminator_loss(real, fake), padding_mask, padding_mask.sum())
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ..models.precision import at_least_float32
from .losses import silence_padding, spectrum

PERIODS = (2, 3, 5, 7, 11)  # samples
PERIOD_CHANNELS = (32, 128, 512, 1024, 1024)
WINDOW_LENGTHS = (126, 542, 1418, 2296)  # samples
BANDS = ((0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1))  # of half the sampling rate
BAND_CHANNELS = 32
LEAKY_SLOPE = 0.1
PEAK = 0.8
QUIETEST_PEAK = 1e-3


class Features(NamedTuple):
    """What one layer made of a batch.

    Attributes:
        values: float `(batch, channels, num_steps, width)`, 0 where the mask is; `width` counts phases of a period or
            frequencies.
        mask: bool `(batch, 1, num_steps, width or 1)`, true where a value belongs to audio.
    """

    values: torch.Tensor
    mask: torch.Tensor

    def mean_over_clips(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of each clip's `values`, of the shape of `self.values`, where the mask is true: `(batch,)`, at least in
        float32, 0 where it is nowhere."""
        mask = self.mask.expand_as(values)
        total = at_least_float32(values).masked_fill(~mask, 0).sum(dim=(1, 2, 3))
        return total / mask.sum(dim=(1, 2, 3)).clamp(min=1)


class Discriminator(nn.Module):
    """Several networks that judge the same audio: a `PeriodDiscriminator` for each of `periods`, in samples, and a
    `BandDiscriminator` for each of `window_lengths`, in samples."""

    def __init__(
        self,
        periods: Sequence[int] = PERIODS,
        window_lengths: Sequence[int] = WINDOW_LENGTHS,
        period_channels: Sequence[int] = PERIOD_CHANNELS,
        band_channels: int = BAND_CHANNELS,
    ):
        super().__init__()
        self.networks = nn.ModuleList(
            [PeriodDiscriminator(period, period_channels) for period in periods]
            + [BandDiscriminator(window_length, band_channels) for window_length in window_lengths]
        )

    def forward(self, audio: torch.Tensor, padding_mask: torch.Tensor) -> list[list[Features]]:
        """The layers of every network, the last of which is its verdict: 1 for recorded, 0 for decoded.

        On CPUs it runs in float32 also under autocast: bf16 convolutions of torch 2.13 there, with inputs of one or two
        frequencies, give NaN.

        Args:
            audio: float `(batch, 1, num_samples)`.
            padding_mask: `(batch, num_samples)`, 1 for audio, then 0 to the end. `ValueError` for other shapes.
        """
        audio = leveled(silence_padding(audio, padding_mask, "audio"), padding_mask)
        with torch.autocast("cpu", enabled=False):
            return [network(audio, padding_mask) for network in self.networks]


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample, each phase on its own (Kong et al. 2020, HiFi-GAN, arXiv:2010.05646, section 2.3).
    `channels` are those of the layers before the verdict; all but the last of them keep one step of three."""

    def __init__(self, period: int, channels: Sequence[int] = PERIOD_CHANNELS):
        super().__init__()
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.layers = nn.ModuleList(
            MaskedConvolution(num_inputs, num_outputs, (5, 1), (stride, 1))
            for num_inputs, num_outputs, stride in zip([1, *channels], channels, strides)
        )
        self.verdict = MaskedConvolution(channels[-1], 1, (3, 1))

    def forward(self, audio: torch.Tensor, padding_mask: torch.Tensor) -> list[Features]:
        """The layers for audio `(batch, num_samples)`, silent where `padding_mask`, of that shape, is 0."""
        to_whole_period = (0, -audio.shape[-1] % self.period)
        features = Features(
            *(F.pad(x, to_whole_period).unflatten(-1, (-1, self.period))[:, None] for x in (audio, padding_mask.bool()))
        )
        outputs = []
        for layer in self.layers:
            features = leaky_relu(layer(features))
            outputs.append(features)
        return [*outputs, self.verdict(features)]


class BandDiscriminator(nn.Module):
    """Sees the complex STFT of windows of `window_length` samples, hop a quarter, in five bands of its own layers each,
    of `num_channels`, whose ends are judged together. As in DAC the window is the square root of Hann's."""

    def __init__(self, window_length: int, num_channels: int = BAND_CHANNELS):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window_length).sqrt(), persistent=False)
        num_bins = window_length // 2 + 1
        self.bands = [slice(int(low * num_bins), int(high * num_bins)) for low, high in BANDS]
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [
                    MaskedConvolution(2, num_channels, (3, 9)),
                    MaskedConvolution(num_channels, num_channels, (3, 9), (1, 2)),
                    MaskedConvolution(num_channels, num_channels, (3, 9), (1, 2)),
                    MaskedConvolution(num_channels, num_channels, (3, 9), (1, 2)),
                    MaskedConvolution(num_channels, num_channels, (3, 3)),
                ]
            )
            for _ in BANDS
        )
        self.verdict = MaskedConvolution(num_channels, 1, (3, 3))

    def forward(self, audio: torch.Tensor, padding_mask: torch.Tensor) -> list[Features]:
        """The layers for audio `(batch, num_samples)`, silent where `padding_mask`, of that shape, is 0."""
        window_length = len(self.window)
        frames = spectrum(audio, window_length, window_length // 4, self.window)
        mask = padding_mask[:, None, :: window_length // 4, None].bool()
        real_and_imaginary = torch.view_as_real(frames).permute(0, 3, 2, 1).masked_fill(~mask, 0)
        outputs, ends = [], []
        for band, stack in zip(self.bands, self.stacks):
            features = Features(real_and_imaginary[..., band], mask)
            for layer in stack:
                features = leaky_relu(layer(features))
                outputs.append(features)
            ends.append(features.values)
        return [*outputs, self.verdict(Features(torch.cat(ends, dim=-1), mask))]


class MaskedConvolution(nn.Module):
    """A convolution with weight norm whose outputs are centred on every `stride`-th input and belong to audio where
    that input does; the others are 0, as beyond the ends of a clip."""

    def __init__(
        self, num_inputs: int, num_outputs: int, kernel_size: tuple[int, int], stride: tuple[int, int] = (1, 1)
    ):
        super().__init__()
        padding = tuple(size // 2 for size in kernel_size)
        self.convolution = weight_norm(nn.Conv2d(num_inputs, num_outputs, kernel_size, stride, padding))

    def forward(self, features: Features) -> Features:
        """`features` of `num_inputs` channels to those of `num_outputs`."""
        mask = features.mask[:, :, :: self.convolution.stride[0]]
        return Features(self.convolution(features.values).masked_fill(~mask, 0), mask)


def leaky_relu(features: Features) -> Features:
    """Values below 0 times 0.1."""
    return features._replace(values=F.leaky_relu(features.values, LEAKY_SLOPE))


def leveled(audio: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
    """Audio `(batch, num_samples)`, 0 outside `padding_mask`, each clip without its mean and with a peak of 0.8, as in
    DAC; but clips whose peak is below 0.001 are made 800 times louder, not more, as that is also what multiplies their
    gradient."""
    means = audio.sum(dim=-1, keepdim=True) / padding_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    centred = (audio - means).masked_fill(~padding_mask.bool(), 0)
    return PEAK * centred / centred.abs().amax(dim=-1, keepdim=True).clamp(min=QUIETEST_PEAK)


def discriminator_loss(real: list[list[Features]], fake: list[list[Features]]) -> torch.Tensor:
    """Least squares (Mao et al. 2017, arXiv:1611.04076, equation 9, without its halves): the mean of (1 - verdict on
    recorded audio)^2 plus that of (verdict on decoded audio)^2, summed over the networks: `(batch,)`.

    `real` and `fake` are what `Discriminator` makes of recorded and decoded audio; detach the latter before.
    """
    verdicts = [(a[-1], b[-1]) for a, b in zip(real, fake)]
    return sum(a.mean_over_clips((1 - a.values).square()) + b.mean_over_clips(b.values.square()) for a, b in verdicts)


def adversarial_loss(fake: list[list[Features]]) -> torch.Tensor:
    """The mean of (1 - verdict on decoded audio)^2, summed over the networks (arXiv:1611.04076, equation 9,
    without its half): `(batch,)`."""
    verdicts = [layers[-1] for layers in fake]
    return sum(verdict.mean_over_clips((1 - verdict.values).square()) for verdict in verdicts)


def feature_matching_loss(real: list[list[Features]], fake: list[list[Features]]) -> torch.Tensor:
    """The mean absolute difference of what each layer but the last makes of recorded and of decoded audio, summed over
    layers and networks (Kumar et al. 2019, MelGAN, arXiv:1910.06711, section 2.3): `(batch,)`. `real` gets no
    gradient."""
    pairs = [pair for networks in zip(real, fake) for pair in list(zip(*networks))[:-1]]
    return sum(b.mean_over_clips((a.values.detach() - b.values).abs()) for a, b in pairs)
