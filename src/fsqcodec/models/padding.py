"""What models are given: tensors of the right kind, what in them belongs to a clip and what is padding of its batch."""

import torch


def zero_padding(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Zero the steps that belong to no clip, whatever they hold. `mask` is bool, of x's rank; `None` masks nothing."""
    return x if mask is None else x.masked_fill(~mask, 0)


def check_tensor(value, name: str, num_channels: int, time_axis: str, is_float: bool):
    """Raise `ValueError` unless `value` is a tensor `(batch, num_channels, ...)`, not empty, of floats or integers."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}: a tensor is wanted")
    if value.ndim != 3 or value.shape[1] != num_channels or value.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}: it must be (batch, {num_channels}, {time_axis})")
    if value.is_floating_point() != is_float or value.dtype == torch.bool:
        raise ValueError(f"{name} holds {value.dtype}: {'floats' if is_float else 'integers'} are wanted")


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


def checked_indices(audio_codes: torch.Tensor, mask: torch.Tensor | None, codebook_size: int) -> torch.Tensor:
    """Codes `(batch, 1, num_frames)` as indices `(batch, num_frames)`, int64, 0 in padding.

    Raises `ValueError` for codes outside [0, codebook_size); not under `torch.compile`, where values are not known.
    """
    indices = audio_codes[:, 0].to(torch.int64)
    if mask is not None:
        indices = zero_padding(indices, mask[..., 0])
    if not torch.compiler.is_compiling():
        lowest, highest = torch.aminmax(indices)
        if lowest < 0 or highest >= codebook_size:
            raise ValueError(
                f"audio_codes range from {int(lowest)} to {int(highest)}: this codec's codes are 0 to "
                f"{codebook_size - 1}"
            )
    return indices


def ceil_to_multiple(number, multiple: int):
    """The lowest multiple of `multiple` that is not below `number`, an int or a tensor of them."""
    return -(-number // multiple) * multiple
