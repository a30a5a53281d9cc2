"""The optimizers of a recipe: AdamW for everything, or Muon for the matrices of the residual units and AdamW for the
rest."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from ..models.convolution import ConvUnit
from .precision import is_bf16_fast
from .recipe import Optimizer

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def make_optimizers(model: nn.Module, recipe: Optimizer) -> list[torch.optim.Optimizer]:
    """One or two optimizers that between them have every parameter of the model that is trained, once.

    Raises:
        ValueError: Muon for a model it is not for.
    """
    rest = {parameter for parameter in model.parameters() if parameter.requires_grad}
    optimizers = []
    if recipe.name == "muon":
        units = [module for module in model.modules() if isinstance(module, ConvUnit)]
        matrices = [linear.weight for unit in units for linear in (unit.expand, unit.contract)]
        matrices = [matrix for matrix in matrices if matrix in rest]
        if not matrices:
            raise ValueError("muon is for the residual units of CodecModel, and none is trained here: choose adamw")
        rest -= set(matrices)
        optimizers.append(Muon(matrices, recipe.learning_rate, recipe.weight_decay))
    optimizers.append(
        torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter in rest],
            recipe.learning_rate,
            recipe.betas,
            weight_decay=recipe.weight_decay,
        )
    )
    return optimizers


class Muon(torch.optim.Optimizer):
    """Makes the momentum of a matrix orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Updates are scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982, equation 4), so that
    one learning rate serves both. It computes what `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`, but
    in float32 where bfloat16 is slow, and for all matrices of a shape at once: a GPU would wait for the launches.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], learning_rate: float, weight_decay: float):
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of the matrices that have a gradient. Raises `ValueError` for a closure."""
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients before the step")
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group["lr"], group["weight_decay"])

    def _update(self, matrices: list[nn.Parameter], learning_rate: float, weight_decay: float):
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = torch.stack([self.state[matrix]["momentum_buffer"] for matrix in matrices])
        gradients = torch.stack([matrix.grad for matrix in matrices])
        momenta.lerp_(gradients, 1 - MUON_MOMENTUM)
        updates = orthogonalized(gradients.lerp(momenta, MUON_MOMENTUM))
        rate = 0.2 * max(updates.shape[1:]) ** 0.5 * learning_rate
        for matrix, momentum, update in zip(matrices, momenta, updates):
            self.state[matrix]["momentum_buffer"].copy_(momentum)
            matrix.mul_(1 - learning_rate * weight_decay).add_(update, alpha=-rate)


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """`(num_matrices, num_rows, num_columns)` with singular values near 1, between 0.5 and 1.5, by five Newton-Schulz
    iterations; the quintic is Jordan's."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices.bfloat16() if is_bf16_fast(matrices.device) else matrices
    if x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
