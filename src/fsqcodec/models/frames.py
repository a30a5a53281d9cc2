"""Waveform to steps and back in one layer each, for codecs that work at a low rate from end to end.

Both are learned bases: the stem correlates overlapping windows of the waveform with its kernels, the head adds up its
kernels under overlapping windows. Data and `mask` are those of `convolution.py`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .convolution import ScaledLinear
from .padding import zero_padding

HEAD_START_GAIN = 0.05  # of what torch starts a linear layer at: a quiet start, where the decoder's tanh is linear


class FrameStem(nn.Module):
    """Three hops of samples to each step: its own, one before and one after.

    It is a convolution with a kernel of three hops, a stride of one, and a hop of zeros on each side, as a matrix
    product on windows.
    """

    def __init__(self, channels: int, hop: int):
        super().__init__()
        self.hop = hop
        self.project = nn.Linear(3 * hop, channels)

    def forward(self, signal: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, num_steps * hop, 1)` and its mask to `(batch, num_steps, channels)` and its mask."""
        hops = F.pad(signal.unflatten(1, (-1, self.hop)).squeeze(-1), (0, 0, 1, 1))
        windows = torch.cat([hops[:, :-2], hops[:, 1:-1], hops[:, 2:]], dim=-1)
        return self.project(windows), None if mask is None else mask[:, :: self.hop]


class FrameHead(nn.Module):
    """Two hops of samples for each step, windowed, overlapped and added.

    It is a transposed convolution with kernels under a Hann window, which adds up to 1 where frames overlap. It has no
    bias: every frame would repeat it, which is a tone at the frame rate.
    """

    def __init__(self, channels: int, hop: int):
        super().__init__()
        self.hop = hop
        self.project = ScaledLinear(channels, 2 * hop, bias=False, gain=HEAD_START_GAIN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, num_steps, channels)` and its mask to `(batch, num_steps * hop, 1)` and its mask; half a hop is cut
        off at each end, where one frame has no other to overlap with."""
        samples = self.project(zero_padding(x, mask))
        samples = samples * torch.hann_window(2 * self.hop, device=x.device).to(samples.dtype)
        first, second = samples.chunk(2, dim=-1)
        signal = (F.pad(first, (0, 0, 0, 1)) + F.pad(second, (0, 0, 1, 0))).flatten(1)
        signal = signal[:, self.hop // 2 : -(self.hop // 2), None]
        return signal, None if mask is None else mask.repeat_interleave(self.hop, dim=1)
