"""The optimizers of a recipe: AdamW for everything, or Muon for the matrices of the residual units and AdamW for the
rest."""

import torch
from torch import nn

from ..models.convolution import ConvUnit
from .recipe import Optimizer


def make_optimizers(model: nn.Module, recipe: Optimizer) -> list[torch.optim.Optimizer]:
    """One or two optimizers that between them have every parameter of the model that is trained, once.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the momentum of a matrix orthogonal; its
    updates are scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that one learning
    rate serves both.

    Raises:
        ValueError: Muon, with a torch older than 2.9, which has none, or for a model it is not for.
    """
    rest = {parameter for parameter in model.parameters() if parameter.requires_grad}
    optimizers = []
    if recipe.name == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"torch {torch.__version__} has no Muon: install 2.9 or later, or choose adamw")
        units = [module for module in model.modules() if isinstance(module, ConvUnit)]
        matrices = [linear.weight for unit in units for linear in (unit.expand, unit.contract)]
        matrices = [matrix for matrix in matrices if matrix in rest]
        if not matrices:
            raise ValueError("muon is for the residual units of CodecModel, and none is trained here: choose adamw")
        rest -= set(matrices)
        optimizers.append(
            torch.optim.Muon(
                matrices, recipe.learning_rate, recipe.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
        )
    optimizers.append(
        torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter in rest],
            recipe.learning_rate,
            recipe.betas,
            weight_decay=recipe.weight_decay,
        )
    )
    return optimizers
