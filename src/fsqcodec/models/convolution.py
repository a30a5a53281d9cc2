"""The convolutional half of the codec, on `(batch, num_steps, channels)`: channels last, so that point-wise layers are
matrix products and depth-wise ones run on adjacent memory.

`mask` is bool `(batch, num_steps, 1)` at the rate of the data it comes with, True where a step belongs to a clip, or
`None` where every step does. Padding is zeroed before every layer that mixes steps, so a clip hears what it would hear
alone: zeros.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_codec import (
    ENHANCE_KERNEL_SIZES,
    TAIL_KERNEL_SIZE,
    TREND_CHANNELS,
    TREND_CONV_KERNEL_SIZE,
    TREND_KERNEL_SIZES,
    UNIT_KERNEL_SIZE,
    enhance_dilation,
)
from .padding import ceil_divide, zero_padding
from .precision import at_least_float32

TILE_BYTES = 2**19  # that a layer holds for a tile: they fit a second-level cache
SHORTEST_TILE = 256  # steps: matrix products of fewer rows take longer for each


def in_tiles(function, inputs: tuple, inner_size: int, context: int = 0, margin: int = 0, output=None) -> torch.Tensor:
    """`function(*inputs, inside)`, a tile of steps at a time where no gradient is needed, so that what it computes on
    the way stays in the processor's cache.

    `inputs` are `(batch, num_steps, ...)` or `None`. `function` returns what becomes of the steps `inside`, a slice of
    those it is given, one step or more for each. It looks at `context` steps around them, and holds `inner_size`
    numbers for each. `margin` steps at both ends of the inputs are only looked at. Tiles may be written to `output`,
    without `context` one of the inputs too: memory in use is faster than memory that is new.
    """
    batch_size, num_steps = inputs[0].shape[:2]
    first, last = margin, num_steps - margin
    most_steps = max(SHORTEST_TILE, TILE_BYTES // (inner_size * inputs[0].element_size()))
    in_whole = torch.is_grad_enabled() or inputs[0].device.type != "cpu" or torch.compiler.is_compiling()
    if in_whole or batch_size * num_steps <= most_steps:
        return function(*inputs, slice(first, last))
    tile_steps = ceil_divide(last - first, ceil_divide(last - first, most_steps))  # as even as they can be
    tile_clips = max(1, most_steps // num_steps)
    for clip in range(0, batch_size, tile_clips):
        clips = slice(clip, clip + tile_clips)
        for start in range(first, last, tile_steps):
            stop = min(start + tile_steps, last)
            window_start = max(start - context, 0)
            windows = (None if x is None else x[clips, window_start : stop + context] for x in inputs)
            tile = function(*windows, slice(start - window_start, stop - window_start))
            ratio = tile.shape[1] // (stop - start)
            if output is None:
                output = tile.new_empty(batch_size, ratio * (last - first), *tile.shape[2:])
            output[clips, ratio * (start - first) : ratio * (stop - first)] = tile
    return output


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` with an odd kernel and as many steps out as in."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1):
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, num_steps, in_channels)` to `(batch, num_steps, out_channels)`.

        As a two-dimensional convolution of height 1, which has a channels-last kernel; the one-dimensional has none.
        """
        image = x.transpose(1, 2).unsqueeze(2)
        weight = self.weight.unsqueeze(2)
        image = F.conv2d(image, weight, self.bias, 1, (0, *self.padding), (1, *self.dilation), self.groups)
        return image.squeeze(2).transpose(1, 2)


class DownsamplingConv1d(nn.Conv1d):
    """Convolution whose stride equals its kernel: a matrix product on groups of `ratio` steps."""

    def __init__(self, in_channels: int, out_channels: int, ratio: int):
        super().__init__(in_channels, out_channels, kernel_size=ratio, stride=ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, num_steps, in_channels)` to `(batch, num_steps / ratio, out_channels)`."""
        groups = x.reshape(x.shape[0], -1, self.kernel_size[0] * self.in_channels)
        return F.linear(groups, self.weight.transpose(1, 2).flatten(1), self.bias)


def upsample_linear(x: torch.Tensor, ratio: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Linear interpolation of `(batch, num_steps, channels)` to `ratio` times the steps, edges held; `mask` may have
    its padding on both sides.

    An integer ratio has `ratio` phases with constant weights, so the result does not drift with length as
    `F.interpolate(mode="linear")` does, whose positions are float32.
    """
    before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    after = torch.cat([x[:, 1:], x[:, -1:]], dim=1)
    if mask is not None:
        before = torch.where(F.pad(mask[:, :-1], (0, 0, 1, 0)), before, x)
        after = torch.where(F.pad(mask[:, 1:], (0, 0, 0, 1)), after, x)
    offsets = [(phase + 0.5) / ratio - 0.5 for phase in range(ratio)]
    phases = [torch.lerp(x, after if offset > 0 else before, abs(offset)) for offset in offsets]
    return torch.stack(phases, dim=2).flatten(1, 2)


def trend_pool(signal: torch.Tensor, kernel_size: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Smoothed envelope of `(batch, 1, num_steps)`: the mean of the maximum of the magnitude, both over `kernel_size`
    steps; the signal itself for `kernel_size` 1. `mask` is `(batch, 1, num_steps)`, and padding is zero in and out.
    """
    if kernel_size == 1:
        return signal
    peaks = _max_pool(signal.abs(), kernel_size)
    envelope = F.avg_pool1d(zero_padding(peaks, mask), kernel_size, stride=1, padding=kernel_size // 2)
    return zero_padding(envelope, mask)


def _max_pool(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Maximum over `kernel_size` steps, as many out as in. In a graph it is the two-dimensional one: the other, ten
    times as fast on a CPU, fixes the number of steps there."""
    if torch.compiler.is_compiling():
        return F.max_pool2d(x.unsqueeze(2), (1, kernel_size), stride=1, padding=(0, kernel_size // 2)).squeeze(2)
    return F.max_pool1d(x, kernel_size, stride=1, padding=kernel_size // 2)


class TrendStem(nn.Module):
    """The originals' first block: waveform and envelopes at five widths, mixed point by point."""

    def __init__(self, channels: int):
        super().__init__()
        num_trends = len(TREND_KERNEL_SIZES)
        trend_size = TREND_CHANNELS * num_trends
        self.trends = Conv1d(num_trends, trend_size, TREND_CONV_KERNEL_SIZE, groups=num_trends)
        self.expand = nn.Linear(trend_size, 4 * trend_size)
        self.contract = nn.Linear(4 * trend_size, channels)
        self.skip = nn.Linear(1, channels, bias=False)

    def forward(self, signal: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, num_samples, 1)` and its mask to `(batch, num_samples, channels)` and its mask."""
        row_mask = None if mask is None else mask.transpose(1, 2)
        row = signal.transpose(1, 2)
        rows = torch.cat([trend_pool(row, kernel_size, row_mask) for kernel_size in TREND_KERNEL_SIZES], dim=1)
        trends = self.trends(rows.transpose(1, 2).contiguous())
        return in_tiles(self._mix, (signal, trends), self.expand.out_features), mask

    def _mix(self, signal: torch.Tensor, trends: torch.Tensor, inside: slice) -> torch.Tensor:
        hidden = F.gelu(self.expand(trends[:, inside]))
        return self.contract(hidden) + self.skip(signal[:, inside])


class ClipNorm(nn.Module):
    """Instance norm of `(batch, channels, num_steps)`: each channel's mean and variance over the clip's own steps."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1))
        self.reset_parameters()

    def reset_parameters(self):
        init.ones_(self.weight)
        init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Normalised x; statistics are in float32. `mask` is `(batch, 1, num_steps)` here."""
        x = at_least_float32(x)
        return self.normalize(x, *self.statistics(x, mask))

    def normalize(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """x `(batch, channels, num_steps)` by statistics that broadcast to it."""
        x = (at_least_float32(x) - mean) * torch.rsqrt(variance + self.eps)
        return x.to(self.weight.dtype) * self.weight + self.bias

    def statistics(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance, `(batch, channels, 1)`."""
        num_steps = x.shape[-1] if mask is None else mask.sum(dim=-1, keepdim=True)
        mean = zero_padding(x, mask).sum(dim=-1, keepdim=True) / num_steps
        variance = zero_padding(x - mean, mask).square().sum(dim=-1, keepdim=True) / num_steps
        return mean, variance


class RunningNorm(ClipNorm):
    """Batch norm (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167) over the steps that belong to clips.

    In training the statistics are those of the batch, over all processes where `torch.distributed` is initialised, and
    follow into buffers. In evaluation mode they are these buffers: constants, so that nothing depends on the clip.
    The parameters are those of `ClipNorm`, which a model can be moved from: with `momentum` 1 a batch in training mode
    sets the buffers to its statistics.
    """

    momentum = 0.1  # weight of a batch in the buffers, that of torch's batch norms

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(channels, eps)
        self.register_buffer("running_mean", torch.zeros(channels, 1))
        self.register_buffer("running_variance", torch.ones(channels, 1))

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "running_mean"):
            init.zeros_(self.running_mean)
            init.ones_(self.running_variance)

    def statistics(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance, `(channels, 1)`."""
        if not self.training:
            return at_least_float32(self.running_mean), at_least_float32(self.running_variance)
        num_steps = x.shape[0] * x.shape[-1] if mask is None else mask.sum()
        num_steps = sum_over_processes(torch.as_tensor(num_steps, dtype=x.dtype, device=x.device))
        mean = sum_over_processes(zero_padding(x, mask).sum(dim=(0, 2)).unsqueeze(-1)) / num_steps
        variance = sum_over_processes(zero_padding(x - mean, mask).square().sum(dim=(0, 2)).unsqueeze(-1)) / num_steps
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_variance.lerp_(variance.to(self.running_variance.dtype), self.momentum)
        return mean, variance


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `x`, with gradients to all of them; `x` itself without `torch.distributed`."""
    return _AllReduce.apply(x) if dist.is_available() and dist.is_initialized() else x


class _AllReduce(torch.autograd.Function):
    """The sum over processes. Every process's result depends on every process's input, so gradients are summed too:
    they are those of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _AllReduce.apply(gradient.contiguous())


ENHANCE_NORMS = {"clip": ClipNorm, "running": RunningNorm}


class TrendEnhance(nn.Module):
    """The decoder's enhance block: scales every channel by what the envelopes of the first one say, normalised over the
    clip or by constants (`CodecConfig.enhance_normalization`)."""

    def __init__(self, channels: int, normalization: str):
        super().__init__()
        self.trends = nn.ModuleList(
            nn.Conv1d(1, 1, TREND_CONV_KERNEL_SIZE, padding="same", dilation=enhance_dilation(kernel_size))
            for kernel_size in ENHANCE_KERNEL_SIZES
        )
        self.norm = ENHANCE_NORMS[normalization](len(ENHANCE_KERNEL_SIZES))
        self.to_gain = nn.Linear(len(ENHANCE_KERNEL_SIZES), channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, num_steps, channels)` to normalised envelopes `(batch, num_steps, num_trends)`, for `scale`."""
        row_mask = None if mask is None else mask.transpose(1, 2)
        return self.norm(self.envelopes(x, mask), row_mask).transpose(1, 2)

    def envelopes(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, num_steps, channels)` to `(batch, num_trends, num_steps)`, of its first channel."""
        row_mask = None if mask is None else mask.transpose(1, 2)
        row = zero_padding(x[..., :1].transpose(1, 2).contiguous(), row_mask)
        trends = [
            conv(trend_pool(row, kernel_size, row_mask)) for conv, kernel_size in zip(self.trends, ENHANCE_KERNEL_SIZES)
        ]
        return torch.cat(trends, dim=1)

    def scale(self, x: torch.Tensor, envelopes: torch.Tensor) -> torch.Tensor:
        """x `(batch, num_steps, channels)` by what normalised envelopes `(batch, num_steps, num_trends)` say."""
        return torch.addcmul(x, x, self.to_gain(envelopes))


def layer_norm(channels: int, eps: float | None) -> nn.Module:
    """A layer norm, or nothing where `eps` is `None`."""
    return nn.Identity() if eps is None else nn.LayerNorm(channels, eps=eps)


class ScaledLinear(nn.Linear):
    """`nn.Linear` whose weights start at `gain` times those that torch starts with."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gain: float = 1.0):
        self.gain = gain
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self):
        limit = self.gain * self.in_features**-0.5
        for parameter in self.parameters():
            init.uniform_(parameter, -limit, limit)


class ConvUnit(GradientCheckpointingLayer):
    """Residual unit: depth-wise convolution over time, then an MLP over channels with u + sin(u)^2 between its layers.

    The originals have Snake (h + sin(a h)^2 / a) there, with a learned `a` for each hidden channel, followed by a GRN
    whose norm runs over time and channels together: its ratio of the norm to its own mean is 1 (up to 1e-7), which
    leaves the point-wise affine (1 + gamma) h + beta. `a`, gamma and beta are constants between two linear layers, and
    the conversion folds them into these.

    `start_gain` scales what a new unit adds to its input.
    """

    def __init__(self, channels: int, norm_eps: float | None, start_gain: float = 1.0):
        super().__init__()
        self.depthwise = Conv1d(channels, channels, UNIT_KERNEL_SIZE, groups=channels)
        self.norm = layer_norm(channels, norm_eps)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = ScaledLinear(4 * channels, channels, gain=start_gain)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, margin: int = 0) -> torch.Tensor:
        """`(batch, num_steps, channels)` to the same shape, without the `margin` steps at both ends."""
        y = self.depthwise(zero_padding(x, mask))
        inside = y[:, margin : y.shape[1] - margin]
        return in_tiles(self._add_mlp, (x, y), self.expand.out_features, margin=margin, output=inside)

    def _add_mlp(self, x: torch.Tensor, y: torch.Tensor, inside: slice) -> torch.Tensor:
        return x[:, inside] + self._mix(y[:, inside])

    def _mix(self, y: torch.Tensor) -> torch.Tensor:
        hidden = self.expand(self.norm(y))
        sine = torch.sin(hidden)
        if torch.is_grad_enabled():
            return self.contract(torch.addcmul(hidden, sine, sine))
        return self.contract(hidden.addcmul_(sine, sine))


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with a learned `a` for each channel (Ziyin et al. 2020, https://arxiv.org/abs/2006.08195)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self):
        init.ones_(self.alpha)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., channels)` to the same shape."""
        sine = torch.sin(x * self.alpha)
        scaled_sine = sine * (at_least_float32(self.alpha) + 1e-8).reciprocal()  # overflows in float16 for a small a
        return torch.addcmul(x, sine, scaled_sine.to(x.dtype))


class SnakeUnit(GradientCheckpointingLayer):
    """Residual unit of the full-rate tail: a dilated and a point-wise convolution, Snake before each."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake_in = Snake(channels)
        self.dilated = Conv1d(channels, channels, TAIL_KERNEL_SIZE, dilation=dilation)
        self.snake_out = Snake(channels)
        self.pointwise = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, num_samples, channels)` to the same shape."""
        y = self.dilated(zero_padding(self.snake_in(x), mask))
        return x + self.pointwise(self.snake_out(y))
