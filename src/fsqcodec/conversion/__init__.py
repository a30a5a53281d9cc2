"""Original checkpoints to Transformers folders."""

from .convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
