"""Half precision where training bears it.

A decoder whose residual stream, output or tokens are rounded to bfloat16 learns to use the rounding as a source of
noise: its losses fall, and in float32 the same weights are near silence. So only the two matrix products of wide
residual units, which are most of the work, run in bfloat16; streams, depth-wise convolutions, the quantizer, the first
and last layers and the narrow units near the waveform stay in float32. Validation is in float32.

Of Lycodec the encoder and the network of the decoder run in bfloat16 (`LycodecTraining.run_in_bf16`). How that sounds
has not been tried at length.
"""

import torch
from torch import nn

from ..models.convolution import ConvUnit

FEWEST_CHANNELS = 64  # of a unit that counts as wide


def is_bf16_fast(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are worth it there: a processor without AVX-512 takes seven times as long for
    them as for those in float32."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def run_units_in_bf16(model: nn.Module):
    """Let the matrix products of the model's wide residual units run in bfloat16, from weights that stay as they are.

    Copies made before run as they did; make none afterwards, they would share these units' weights.
    """
    for unit in model.modules():
        if isinstance(unit, ConvUnit) and unit.norm.normalized_shape[0] >= FEWEST_CHANNELS:
            for linear in (unit.expand, unit.contract):
                run_in_bf16(linear)


def run_in_bf16(module: nn.Module):
    """Let a module run under autocast to bfloat16, on whatever device it is then."""
    device_type = next(module.parameters()).device.type
    module.forward = torch.autocast(device_type, torch.bfloat16)(module.forward)
