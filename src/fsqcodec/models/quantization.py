"""Finite scalar quantization (Mentzer et al. 2023, https://arxiv.org/abs/2309.15505): a token from bounded numbers.

Three views of a token, with L = quantization_levels:

- index: int64 in [0, prod(L)), what `audio_codes` holds;
- digits: int64 (..., len(L)), one in [0, L_i) for each dimension; the first is the least significant;
- values: float (..., len(L)) in [-1, 1], what the decoder reads.
"""

import math

import torch
from torch import nn

from .precision import Float32Linear

FSQ_MARGIN = 1e-3  # how far the paper's bound overshoots the outermost level, relative


def digits_to_indices(digits: torch.Tensor, quantization_levels) -> torch.Tensor:
    """Digits `(..., len(levels))` to indices `(...)`, int64: exact for every codebook that fits in 63 bits."""
    indices = torch.zeros(digits.shape[:-1], dtype=torch.int64, device=digits.device)
    for i in reversed(range(len(quantization_levels))):
        indices = indices * quantization_levels[i] + digits[..., i].to(torch.int64)
    return indices


def indices_to_digits(indices: torch.Tensor, quantization_levels) -> torch.Tensor:
    """Indices `(...)` to digits `(..., len(levels))`, int64."""
    digits = []
    for num_levels in quantization_levels:
        digits.append(indices % num_levels)
        indices = indices // num_levels
    return torch.stack(digits, dim=-1)


class FiniteScalarQuantizer(nn.Module):
    """Latents -> a few bounded numbers -> the nearest level of each -> one index; and back.

    Everything between the two projections runs in float32 whatever the model's dtype is.

    `bound` names how a pre-activation z becomes a position on the grid 0 ... L-1 before rounding:

    - `"tanh"` (L3AC): (tanh(z) + 1) / 2 * (L - 1); the levels lie evenly over [-1, 1];
    - `"fsq"` (SQCodec, and the paper): tanh(z + shift) * 1.001 * (L - 1) / 2, around (L - 1) / 2; for an even L the
      shift puts z = 0 on a level.
    """

    def __init__(self, latent_dim: int, quantization_levels, bound: str):
        super().__init__()
        self.quantization_levels = tuple(quantization_levels)
        self.bound = bound
        self.project_in = Float32Linear(latent_dim, len(self.quantization_levels))
        self.project_out = nn.Linear(len(self.quantization_levels), latent_dim)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `(batch, num_frames, latent_dim)` to the decoder's input, of the same shape, and indices
        `(batch, num_frames)`. The gradient passes the rounding unchanged (straight-through)."""
        positions = self.positions(latents)
        digits = self.round(positions)
        values = self.digits_to_values(digits)
        if torch.is_grad_enabled():
            soft_values = self._to_values(positions)
            values = soft_values + (values - soft_values).detach()
        return self.values_to_features(values), self.digits_to_indices(digits)

    def positions(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `(..., latent_dim)` to positions on the grid `(..., len(levels))`: digits before they are rounded."""
        half_range, shift, offset = self._bound_constants(latents.device)
        return torch.tanh(self.project_in(latents) + shift) * half_range + offset

    def round(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions to digits, int64."""
        top = torch.tensor(self.quantization_levels, device=positions.device) - 1
        return positions.detach().round().to(torch.int64).clamp_(min=torch.zeros_like(top), max=top)

    def digits_to_indices(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits `(..., len(levels))` to indices `(...)`."""
        return digits_to_indices(digits, self.quantization_levels)

    def indices_to_digits(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices `(...)` to digits `(..., len(levels))`."""
        return indices_to_digits(indices, self.quantization_levels)

    def digits_to_values(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits `(..., len(levels))` to values in [-1, 1], float32."""
        return self._to_values(digits.to(torch.float32))

    def values_to_digits(self, values: torch.Tensor) -> torch.Tensor:
        """Values `(..., len(levels))` to the nearest digits, int64; the inverse of `digits_to_values`."""
        zero_positions = self._zero_positions(values.device)
        return self.round((values + 1) * zero_positions)

    def indices_to_features(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices `(batch, num_frames)` to the decoder's input `(batch, num_frames, latent_dim)`."""
        return self.values_to_features(self.digits_to_values(self.indices_to_digits(indices)))

    def latents_to_features(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to the decoder's input, bounded but not rounded; both `(batch, num_frames, latent_dim)`."""
        return self.values_to_features(self._to_values(self.positions(latents)))

    def values_to_features(self, values: torch.Tensor) -> torch.Tensor:
        """Values `(..., len(levels))` to the decoder's input `(..., latent_dim)`, in the model's dtype."""
        return self.project_out(values.to(self.project_out.weight.dtype))

    def _to_values(self, positions: torch.Tensor) -> torch.Tensor:
        zero_positions = self._zero_positions(positions.device)
        return (positions - zero_positions) / zero_positions

    def _zero_positions(self, device) -> torch.Tensor:
        """The position of value 0 in each dimension, which is also the number of levels between value -1 and 0."""
        if self.bound == "tanh":
            positions = [(n - 1) / 2 for n in self.quantization_levels]
        else:
            positions = [n // 2 for n in self.quantization_levels]
        return torch.tensor(positions, dtype=torch.float32, device=device)

    def _bound_constants(self, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`half_range`, `shift`, `offset` of position = tanh(z + shift) * half_range + offset, for each dimension."""
        half_range, shift, offset = [], [], []
        for n in self.quantization_levels:
            half = (n - 1) / 2
            half_level = 0.0 if self.bound == "tanh" or n % 2 else 0.5
            half_range.append(half if self.bound == "tanh" else half * (1 + FSQ_MARGIN))
            shift.append(math.atanh(half_level / half_range[-1]))
            offset.append(half)
        return tuple(
            torch.tensor(constants, dtype=torch.float32, device=device) for constants in (half_range, shift, offset)
        )
