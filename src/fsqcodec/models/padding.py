"""What belongs to a clip and what is padding of its batch."""

import torch


def zero_padding(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Zero the steps that belong to no clip, whatever they hold. `mask` is bool, of x's rank; `None` masks nothing."""
    return x if mask is None else x.masked_fill(~mask, 0)


def right_padding_mask(mask: torch.Tensor | None, shape: tuple[int, int], name: str, unit: str) -> torch.Tensor | None:
    """A user's mask of `shape` (batch, num_steps) as bool `(batch, num_steps, 1)`; `None` where it masks nothing.

    Raises `ValueError` for another shape, and (not under `torch.compile`, where values are not known) for padding that
    is not on the right and for a clip that is all padding.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape != shape:
        given = f"shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else f"type {type(mask).__name__}"
        raise ValueError(f"{name} has {given}: it must be a tensor {shape}, one number a {unit}")
    mask = mask.bool()
    if not torch.compiler.is_compiling():
        if mask.all():
            return None
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                f"{name} must be ones followed by zeros in every row, at least one of them: pad on the right"
            )
    return mask.unsqueeze(-1)


def ceil_divide(number, divisor: int):
    """`number / divisor` rounded up, of a number that is not negative, an int or a tensor of them."""
    return (number + divisor - 1) // divisor


def ceil_to_multiple(number, multiple: int):
    """The lowest multiple of `multiple` that is not below `number`, an int or a tensor of them."""
    return ceil_divide(number, multiple) * multiple
