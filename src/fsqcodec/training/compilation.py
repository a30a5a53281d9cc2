"""Residual units compiled as a whole, for training.

A unit is a dozen element-wise operations around two matrix products. Compiled, the operations of a kind become one pass
over memory, and the depth-wise convolution is among them. All units of a width share one compiled function, so that it
is compiled once, and torch keeps it on disk for the next run.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from ..models.convolution import ConvUnit
from .precision import FEWEST_CHANNELS


def compile_units(model: nn.Module, in_bf16: bool) -> bool:
    """Let the residual units of a model run compiled, from weights that stay where they are; `False`, with a warning,
    where this machine has no compiler.

    Copies made before run as they did; make none afterwards, they would share these units' weights.

    Args:
        in_bf16: run the matrix products of wide units in bfloat16, as `precision.run_units_in_bf16` does.
    """
    units = [unit for unit in model.modules() if isinstance(unit, ConvUnit) and isinstance(unit.norm, nn.LayerNorm)]
    function = torch.compile(unit_function, dynamic=False)
    try:
        for unit in units[:1]:
            channels = unit.depthwise.in_channels
            x = torch.zeros(1, 8, channels, device=unit.expand.weight.device)
            function(x, None, *_parameters(unit), torch.float32)
    except Exception as error:  # whatever a missing or broken compiler raises
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"nothing is compiled, training is slower: torch.compile failed here: {reason}", stacklevel=2)
        return False
    for unit in units:
        is_wide = unit.depthwise.in_channels >= FEWEST_CHANNELS
        unit.forward = _compiled_forward(unit, function, torch.bfloat16 if in_bf16 and is_wide else torch.float32)
    return True


def unit_function(
    x: torch.Tensor,
    mask: torch.Tensor | None,
    taps: torch.Tensor,
    taps_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    norm_eps: float,
    expand: torch.Tensor,
    expand_bias: torch.Tensor,
    contract: torch.Tensor,
    contract_bias: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`ConvUnit.forward` as a function of its parameters, with matrix products in `dtype`. The depth-wise convolution
    is a sum of shifted products, which a compiler puts into one pass with what is around it."""
    heard = x if mask is None else x * mask
    num_steps, num_taps = x.shape[1], taps.shape[-1]
    heard = F.pad(heard, (0, 0, num_taps // 2, num_taps // 2))
    y = taps_bias
    for k in range(num_taps):
        y = y + heard[:, k : k + num_steps] * taps[:, 0, k]
    y = F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, norm_eps)
    hidden = F.linear(y.to(dtype), expand.to(dtype), expand_bias.to(dtype))
    sine = torch.sin(hidden)
    return x + F.linear(hidden + sine * sine, contract.to(dtype), contract_bias.to(dtype)).to(x.dtype)


def _compiled_forward(unit: ConvUnit, function, dtype: torch.dtype):
    def forward(x: torch.Tensor, mask: torch.Tensor | None, margin: int = 0) -> torch.Tensor:
        y = function(x, mask, *_parameters(unit), dtype)
        return y[:, margin : y.shape[1] - margin]

    return forward


def _parameters(unit: ConvUnit) -> tuple:
    norm = unit.norm
    return (
        unit.depthwise.weight,
        unit.depthwise.bias,
        norm.weight,
        norm.bias,
        norm.eps,
        unit.expand.weight,
        unit.expand.bias,
        unit.contract.weight,
        unit.contract.bias,
    )
