"""Reads original checkpoint files and hands their tensors out one by one, so that none is missed or left over."""

import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

MAX_KEYS_IN_MESSAGE = 8
STALE_TOLERANCE = 1e-3  # of the largest weight
HINT = "is the preset or config the right one?"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, or not what it was said to be."""


class OriginalWeights:
    """The tensors of an original checkpoint under `<file>.<key>`.

    `take` removes what it returns; `check_empty` raises if something was not taken.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = dict(tensors)

    @classmethod
    def read(cls, folder: Path, file_stems: list[str]) -> "OriginalWeights":
        """Read `<stem>.pt` for each stem. Raises [`CheckpointError`] for a missing, damaged or foreign file."""
        missing = [f"{stem}.pt" for stem in file_stems if not (folder / f"{stem}.pt").is_file()]
        if missing:
            wanted = ", ".join(f"{stem}.pt" for stem in file_stems)
            raise CheckpointError(f"{folder} has no {', '.join(missing)}: an original checkpoint is the files {wanted}")
        return cls(
            {
                f"{stem}.{key}": tensor
                for stem in file_stems
                for key, tensor in _read_state_dict(folder / f"{stem}.pt").items()
            }
        )

    @classmethod
    def read_file(cls, path: Path) -> "OriginalWeights":
        """Read one file whose keys are as they are. Raises [`CheckpointError`] for a damaged or foreign file."""
        return cls(_read_state_dict(path))

    def take(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Remove and return a tensor, in float64."""
        if key not in self.tensors:
            raise CheckpointError(f"the checkpoint has no {key!r} {tuple(shape)}: {HINT}")
        tensor = self.tensors.pop(key)
        if tensor.shape != tuple(shape):
            raise CheckpointError(f"{key!r} has shape {tuple(tensor.shape)}, {tuple(shape)} is wanted: {HINT}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{key!r} holds NaN or infinite numbers: the checkpoint is damaged")
        return tensor.double()

    def take_weight(self, prefix: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A weight with its weight norm (g v / |v|, over all axes but the first) folded in, however that is spelled.

        Raises [`CheckpointError`] where the weight is there as well, as some trainers leave it, and differs from that
        by more than `STALE_TOLERANCE`.
        """
        for norm_key, direction_key in (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            ("weight_g", "weight_v"),
        ):
            if f"{prefix}.{norm_key}" in self.tensors:
                norm = self.take(f"{prefix}.{norm_key}", (shape[0], *(1,) * (len(shape) - 1)))
                direction = self.take(f"{prefix}.{direction_key}", shape)
                weight = norm * direction / direction.flatten(1).norm(dim=1).view_as(norm)
                if f"{prefix}.weight" in self.tensors:
                    self._check_stale(prefix, self.take(f"{prefix}.weight", shape), weight)
                return weight
        return self.take(f"{prefix}.weight", shape)

    def drop(self, unwanted: Callable[[str], bool]) -> list[str]:
        """Remove the tensors whose keys are `unwanted` and return these keys."""
        keys = sorted(filter(unwanted, self.tensors))
        for key in keys:
            del self.tensors[key]
        return keys

    def _check_stale(self, prefix: str, stale: torch.Tensor, weight: torch.Tensor):
        error = float((stale - weight).abs().max())
        if error > STALE_TOLERANCE * float(weight.abs().max()):
            raise CheckpointError(
                f"'{prefix}.weight' and its weight norm, '{prefix}.weight_g' and '.weight_v' or their like, differ by "
                f"{error:.2g}: one of them is stale, and which can't be told"
            )

    def check_empty(self):
        """Raise [`CheckpointError`] if tensors are left."""
        if self.tensors:
            raise CheckpointError(
                f"the checkpoint has tensors this model does not have: {summarize(self.tensors)}: {HINT}"
            )


def load_torch_file(path: Path):
    """What `torch.save` wrote, tensors and plain containers only. Raises [`CheckpointError`] for a damaged or foreign
    file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as PyTorch weights: it is truncated, damaged or another kind of file ({reason})"
        ) from error


def summarize(keys: Iterable[str]) -> str:
    """The first few of the names, and how many more there are."""
    keys = sorted(keys)
    more = f" and {len(keys) - MAX_KEYS_IN_MESSAGE} more" if len(keys) > MAX_KEYS_IN_MESSAGE else ""
    return f"{', '.join(keys[:MAX_KEYS_IN_MESSAGE])}{more}"


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    state_dict = load_torch_file(path)
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise CheckpointError(f"{path} is not a state dict: a dictionary of tensors is wanted")
    return state_dict
