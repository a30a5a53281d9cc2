"""For what must not run in half precision, whatever a model is loaded in: quantization, distances, statistics."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import is_autocast_available


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """x in float32 where it is of lower precision, or of integers."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Float32Linear(nn.Linear):
    """`nn.Linear` whose product is computed in float32 (float64 in a float64 model) also where its weights are not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` to `(..., out_features)`, float32 or float64."""
        weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
        with no_autocast(x.device.type):
            return F.linear(x.to(weight.dtype), weight, bias)


def no_autocast(device_type: str) -> AbstractContextManager:
    """Where there is no autocast to switch off, as on the meta device, switching it off raises."""
    return torch.autocast(device_type, enabled=False) if is_autocast_available(device_type) else nullcontext()
