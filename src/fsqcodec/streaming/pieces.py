"""What a stream needs to know of a model to compute one direction of it a piece at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..models.streaming_codec import Span


@dataclass(frozen=True)
class End:
    """Of a clip; all `None` before it is known.

    Args:
        num_clip_steps: what the model takes for the clip's length.
        last_heard: up to which input step the last output depends on it.
        num_final: steps of the whole output.
    """

    num_clip_steps: int | None = None
    last_heard: int | None = None
    num_final: int | None = None


class Pieces(ABC):
    """One direction of a model. What differs from piece to piece is in the state, so streams may share an instance.

    Args:
        model: in evaluation mode.
        steps_per_frame: steps of the input that make a frame, or what else goes through the model as one.
        most_frames: how many of these go through it at once.
        first_step: where the input begins, as the model sees it: 0 or before.
    """

    statistics: Sequence[torch.Tensor] | None = None  # that a decoder which normalises over the clip was given

    def __init__(self, model, steps_per_frame: int, most_frames: int, first_step: int = 0):
        self.model = model
        self.steps_per_frame = steps_per_frame
        self.most_frames = most_frames
        self.first_step = first_step

    @abstractmethod
    def end(self, num_steps: int) -> End:
        """What the end of a clip of `num_steps` means. Raises `ValueError` where it can't end there."""

    @abstractmethod
    def compute(
        self, x: torch.Tensor, span: Span, state: tuple | None, company: Sequence[tuple["Pieces", int]]
    ) -> tuple[torch.Tensor, Span, tuple]:
        """`(batch, num_steps, channels)` of several streams to output `(batch, channels, num_steps)`, its span, and the
        state after it. `company` are the streams' pieces, this one among them, and how many rows of the batch are of
        each."""
