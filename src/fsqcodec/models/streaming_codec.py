"""Encoder and decoder a piece at a time: the modules of the whole clip, with what they remember between pieces.

Every layer that looks at the steps around it becomes a delay line. It remembers the last steps of its input, and gives
for every piece as many steps as came in, late by its look-ahead: those that are final. So the state of a stream has the
same shapes at all times, and streams that started at different times go through the model as one batch. What lies
before a clip's first and after its last step is told apart by its position (`Span`) and masked, as padding of a batch
is.

A state is a nested tuple of tensors; `None` is that of a stream that has not begun.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_codec import (
    ENHANCE_CONTEXT,
    LATENT_KERNEL_SIZE,
    TAIL_DILATIONS,
    TAIL_KERNEL_SIZE,
    TREND_CONTEXT,
    UNIT_KERNEL_SIZE,
)
from .convolution import ConvUnit, RunningNorm, TrendEnhance, upsample_linear
from .frames import FrameStem
from .local_attention import LocalAttention, tile_bias
from .modeling_codec import CodecDecoder, CodecEncoder
from .padding import zero_padding

UNIT_CONTEXT = UNIT_KERNEL_SIZE // 2
LATENT_CONTEXT = LATENT_KERNEL_SIZE // 2
TAIL_UNIT_CONTEXT = TAIL_KERNEL_SIZE // 2


@dataclass(frozen=True)
class Span:
    """Where a piece lies, for each stream of the batch.

    Args:
        starts: the clip's step that the piece begins with; negative before the clip.
        stops: how many steps the clip has; `None` while it goes on.
    """

    starts: tuple[int, ...]
    stops: tuple[int | None, ...]

    def delayed(self, num_steps: int) -> "Span":
        """The piece that begins `num_steps` earlier."""
        return replace(self, starts=tuple(start - num_steps for start in self.starts))

    def slower(self, ratio: int) -> "Span":
        """The same piece in steps of `ratio` steps."""
        return self._scaled(lambda steps: steps // ratio)

    def faster(self, ratio: int) -> "Span":
        """The same piece in steps of which `ratio` make one."""
        return self._scaled(lambda steps: steps * ratio)

    def mask(self, num_steps: int, device: torch.device) -> torch.Tensor | None:
        """Which of the piece's `num_steps` steps are the clip's, bool `(batch, num_steps, 1)`; `None` if all are."""
        ranges = [self.of_clip(row, num_steps) for row in range(len(self.starts))]
        if all(inside == range(num_steps) for inside in ranges):
            return None
        steps = torch.arange(num_steps)
        rows = [(steps >= inside.start) & (steps < inside.stop) for inside in ranges]
        return torch.stack(rows).unsqueeze(-1).to(device)

    def of_clip(self, row: int, num_steps: int) -> range:
        """Which of the piece's `num_steps` steps are the clip's."""
        start, stop = self.starts[row], self.stops[row]
        first = min(max(-start, 0), num_steps)
        return range(first, num_steps if stop is None else max(first, min(stop - start, num_steps)))

    def _scaled(self, scale: Callable[[int], int]) -> "Span":
        return Span(tuple(map(scale, self.starts)), tuple(None if stop is None else scale(stop) for stop in self.stops))


def stream_encoder(encoder: CodecEncoder, x: torch.Tensor, span: Span, state: tuple | None):
    """A piece of waveforms `(batch, num_frames * hop_length, 1)` to latents `(batch, num_frames, latent_dim)`, their
    span in frames, and the state after it.

    `span` is that of the samples. `starts` plus the encoder's look-ahead are whole frames; so the latents that come out
    are those that this piece makes final. Samples outside of the clip are zero.
    """
    walk = _Walk(span, state)
    if isinstance(encoder.stem, FrameStem):
        x = walk.around(lambda x, mask: encoder.stem(x, mask)[0], x, encoder.stem.hop, ratio=encoder.stem.hop)
    else:
        x = walk.around(lambda x, mask: encoder.stem(x, mask)[0], x, TREND_CONTEXT)
    for stage in encoder.stages:
        for unit in stage.units:
            x = walk.unit(unit, x)
        x = stage.norm(walk.down(stage.downsample, x, stage.ratio))
    for unit in encoder.units:
        x = walk.unit(unit, x)
    x = walk.around(lambda x, mask: encoder.to_latents(zero_padding(x, mask)), x, LATENT_CONTEXT)
    transformer = encoder.transformer
    x = walk.attention(transformer.fine_layers, x)
    if not isinstance(transformer.downsample, nn.Identity):
        x = walk.down(transformer.downsample, x, transformer.downsample.stride[0])
    return walk.attention(transformer.frame_layers, x), walk.span, walk.state


def stream_decoder(
    decoder: CodecDecoder,
    x: torch.Tensor,
    span: Span,
    state: tuple | None,
    statistics: list[torch.Tensor] | None = None,
    only_measure: bool = False,
):
    """A piece of the quantizer's output `(batch, num_frames, latent_dim)` to a waveform
    `(batch, num_frames * hop_length, 1)`, its span in samples, and the state after it.

    `span` is that of the frames. `statistics` are for the enhance blocks that normalise over the clip: mean and
    variance of its envelopes, `(2, batch, num_trends, 1)` for each stage from the first on. Stages for which there are
    none normalise by `statistics_so_far` of the new state; with `only_measure` the first of them is the last that is
    computed, and the waveform is `None`.
    """
    walk = _Walk(span, state)
    transformer = decoder.transformer
    x = walk.attention(transformer.frame_layers, x)
    if transformer.ratio > 1:
        x = walk.up(lambda x, mask: upsample_linear(x, transformer.ratio, mask), x, transformer.ratio)
    x = walk.attention(transformer.fine_layers, x)
    x = walk.around(lambda x, mask: decoder.from_latents(zero_padding(x, mask)), x, LATENT_CONTEXT)
    if decoder.on_frames:
        for unit in decoder.units:
            x = walk.unit(unit, x)
        x = walk.up(lambda x, mask: decoder.to_waveform(x, mask)[0], x, decoder.to_waveform.hop)
        return torch.tanh(x), walk.span, walk.state
    given = iter(statistics or ())
    for stage in decoder.stages:
        for unit in stage.units:
            x = walk.unit(unit, x)
        stage_statistics = next(given, None)
        x = stage.project(walk.enhance(stage.enhance, x, stage_statistics))
        if only_measure and stage_statistics is None:
            return None, walk.span, walk.state
        x = stage.norm(walk.up(lambda x, mask, ratio=stage.ratio: upsample_linear(x, ratio, mask), x, stage.ratio))
    for unit, dilation in zip(decoder.tail_units, TAIL_DILATIONS):
        x = walk.around(unit, x, TAIL_UNIT_CONTEXT * dilation)
    x = walk.around(
        lambda x, mask: decoder.to_waveform(zero_padding(decoder.tail_snake(x), mask)), x, TAIL_UNIT_CONTEXT
    )
    return torch.tanh(x), walk.span, walk.state


def statistics_so_far(state: tuple) -> list[torch.Tensor]:
    """Mean and variance, `(2, batch, num_trends, 1)`, of each stage that has measured them."""
    return [_mean_and_variance(moments) for moments in state[1]]


def join_states(states: list[tuple | None], sizes: list[int]) -> tuple | None:
    """The state of several batches of streams, of `sizes` streams each, as that of one batch."""
    begun = next((state for state in states if state is not None), None)
    if begun is None:
        return None
    states = [_fresh_state(begun, size) if state is None else state[:2] for state, size in zip(states, sizes)]
    memories, moments = (tuple(map(_join, zip(*parts))) for parts in zip(*states))
    return memories, moments, begun[2]


def split_state(state: tuple, sizes: list[int]) -> list[tuple]:
    """The inverse of `join_states`."""
    memories, moments = ([_split(layer, sizes) for layer in part] for part in state[:2])
    return [
        (tuple(layer[i] for layer in memories), tuple(layer[i] for layer in moments), state[2])
        for i in range(len(sizes))
    ]


def _fresh_state(state: tuple, size: int) -> tuple:
    """What `None` stands for, of `size` streams, with the shapes of `state`, without its biases."""
    return tuple(
        tuple(
            (layer[0][:, :, :0],) * size if isinstance(layer, tuple) else layer.new_zeros(size, *layer.shape[1:])
            for layer in part
        )
        for part in state[:2]
    )


def _join(layers):
    return sum(layers, start=()) if isinstance(layers[0], tuple) else torch.cat(layers)


def _split(layer, sizes: list[int]) -> list:
    if isinstance(layer, torch.Tensor):
        return [rows.clone() for rows in layer.split(sizes)]
    rows = iter(layer)
    return [tuple(next(rows) for _ in range(size)) for size in sizes]


class _Walk:
    """A piece's way through the layers: where it lies, what they remember before it and after it.

    A state has what layers remember, in the order they come in, a tensor `(batch, ...)` or a tuple of one tensor for
    each stream; the moments of those that normalise by statistics so far; and, the same for all streams, the position
    biases of the transformers, which take long to compute for a few steps.
    """

    def __init__(self, span: Span, state: tuple | None):
        self.span = span
        self._memories, self._moments, self._biases = map(iter, state or [repeat(None)] * 3)
        self._new_memories, self._new_moments, self._new_biases = [], [], []

    @property
    def state(self) -> tuple:
        return tuple(self._new_memories), tuple(self._new_moments), tuple(self._new_biases)

    def around(self, block, x: torch.Tensor, context: int, ratio: int = 1) -> torch.Tensor:
        """`block(x, mask)`, which looks `context` steps to each side, and makes one step of `ratio`."""
        window, mask = self._window(x, 2 * context)
        self.span = self.span.delayed(context).slower(ratio)
        y = block(window, mask)
        return y[:, context // ratio : y.shape[1] - context // ratio]

    def unit(self, unit: ConvUnit, x: torch.Tensor) -> torch.Tensor:
        """A convolution unit, its MLP only on the steps that come out."""
        window, mask = self._window(x, 2 * UNIT_CONTEXT)
        self.span = self.span.delayed(UNIT_CONTEXT)
        return unit(window, mask, margin=UNIT_CONTEXT)

    def down(self, block, x: torch.Tensor, ratio: int) -> torch.Tensor:
        """`block(x)`, which makes one step of `ratio`."""
        self.span = self.span.slower(ratio)
        return block(x)

    def up(self, block, x: torch.Tensor, ratio: int) -> torch.Tensor:
        """`block(x, mask)`, which makes `ratio` steps of one, the first half of them from the step before as well, the
        second from the step after."""
        window, mask = self._window(x, 1)
        self.span = self.span.faster(ratio).delayed(ratio // 2)
        y = block(window, mask)
        return y[:, ratio - ratio // 2 : y.shape[1] - ratio // 2]

    def attention(self, layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The layers of a `LocalTransformer`, or none."""
        if isinstance(layers, nn.Identity):
            return x
        position_bias = next(self._biases)
        if position_bias is None:
            position_bias = layers.position_bias(2 * layers.window_size, x.device)
        self._new_biases.append(position_bias)
        bias = tile_bias(position_bias, min(x.shape[1], layers.tile_size))
        for layer in layers.layers:
            x = layer.add_mlp(x + self._attend(layer.attention, layer.attention_norm(x), bias))
        return x

    def enhance(self, enhance: TrendEnhance, x: torch.Tensor, statistics: torch.Tensor | None) -> torch.Tensor:
        """The enhance block by `statistics`, or those so far where it normalises over the clip and has none."""
        window, mask = self._window(x, 2 * ENHANCE_CONTEXT)
        self.span = self.span.delayed(ENHANCE_CONTEXT)
        inside = slice(ENHANCE_CONTEXT, window.shape[1] - ENHANCE_CONTEXT)
        envelopes = enhance.envelopes(window, mask)[..., inside]
        if isinstance(enhance.norm, RunningNorm):
            normalized = enhance.norm(envelopes, None)
        else:
            if statistics is None:
                statistics = self._measured(envelopes)
            normalized = enhance.norm.normalize(envelopes, *statistics.to(envelopes))
        return enhance.scale(window[:, inside], normalized.transpose(1, 2))

    def _window(self, x: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x `(batch, ..., channels)` with the `num_steps` steps before it, and the mask."""
        past = next(self._memories)
        if past is None:
            past = x.new_zeros(x.shape[0], num_steps, x.shape[2])
        window = torch.cat([past, x], dim=1)
        self._new_memories.append(window[:, window.shape[1] - num_steps :].clone())
        return window, self.span.delayed(num_steps).mask(window.shape[1], x.device)

    def _attend(self, attention: LocalAttention, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Each stream for itself, as their blocks begin at different steps of the piece."""
        queries, keys_and_values = attention.split_heads(x).split([1, 2])
        pasts = next(self._memories) or tuple(keys_and_values[:, :, :, :0].unbind(dim=1))
        num_steps, window_size = x.shape[1], attention.window_size
        attended, memory = [], []
        for row, (start, past) in enumerate(zip(self.span.starts, pasts)):
            num_before = min(max(-start, 0), num_steps)
            held = torch.cat([past, keys_and_values[:, row, :, num_before:]], dim=2)
            query = queries[:, row, :, num_before:]
            if num_before < num_steps:
                query = attention.attend(query, *held.unsqueeze(1), bias)
            attended.append(F.pad(query, (0, 0, num_before, 0)))
            stop = max(start + num_steps, 0)
            first_needed = max(stop // window_size - 1, 0) * window_size
            memory.append(held[:, :, max(first_needed - (stop - held.shape[2]), 0) :].clone())
        self._new_memories.append(tuple(memory))
        return attention.merge_heads(torch.cat(attended))

    def _measured(self, envelopes: torch.Tensor) -> torch.Tensor:
        """Statistics of all envelopes up to these, `(2, batch, num_trends, 1)`."""
        mask = self.span.mask(envelopes.shape[-1], envelopes.device)
        moments = _moments(envelopes, None if mask is None else mask.transpose(1, 2))
        past = next(self._moments)
        if past is not None:
            moments = _add_moments(past, moments)
        self._new_moments.append(moments)
        return _mean_and_variance(moments)


def _moments(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Number, mean and sum of squared deviations of `(batch, channels, num_steps)`: float64 `(batch, channels, 3)`."""
    x = zero_padding(x.double(), mask)
    ones = zero_padding(torch.ones_like(x), mask)
    number = ones.sum(dim=-1, keepdim=True)
    mean = x.sum(dim=-1, keepdim=True) / number.clamp(min=1)
    return torch.cat([number, mean, ((x - mean) * ones).square().sum(dim=-1, keepdim=True)], dim=-1)


def _add_moments(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Moments of two pieces together (Chan, Golub and LeVeque 1979)."""
    (number, mean, deviations), (more, other_mean, other_deviations) = first.unbind(-1), second.unbind(-1)
    total = (number + more).clamp(min=1)
    step = other_mean - mean
    deviations = deviations + other_deviations + step.square() * number * more / total
    return torch.stack([number + more, mean + step * more / total, deviations], dim=-1)


def _mean_and_variance(moments: torch.Tensor) -> torch.Tensor:
    number, mean, deviations = moments.unbind(-1)
    return torch.stack([mean, deviations / number.clamp(min=1)]).unsqueeze(-1)
