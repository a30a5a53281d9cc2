"""Many clips through a codec: which go together, and what becomes of one that fails."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

from .codecs import Codec

MAX_BATCH_SIZE = 16
BATCH_SECONDS_PER_CLIP = 4.0  # of the largest batch, padding included
Item = TypeVar("Item")


def batches_by_length(durations: dict[Item, float], max_batch_size: int = MAX_BATCH_SIZE) -> Iterator[list[Item]]:
    """Groups of items of similar duration, in seconds, longest first, so that what runs out of memory does so at once:
    at most `max_batch_size` of them, and four seconds for each of these with padding."""
    max_seconds = max_batch_size * BATCH_SECONDS_PER_CLIP
    batch = []
    for item in sorted(durations, key=durations.get, reverse=True):
        longest = durations[batch[0]] if batch else 0.0
        if batch and (len(batch) == max_batch_size or (len(batch) + 1) * longest > max_seconds):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def encode_each(codec: Codec, clips: list[np.ndarray]) -> list[np.ndarray | Exception]:
    """Codes of each clip of a batch; if the batch fails, of each alone, or its error. Raises `RuntimeError` where the
    device fails, which is no clip's fault."""
    if not clips:
        return []
    try:
        codes = codec.encode(clips)
        if not all(clip_codes.size for clip_codes in codes):
            raise ValueError("there are no codes: the clip is too short")
        return codes
    except Exception as error:
        torch.ones(1, device=codec.model.device).item()  # raises where the device itself has failed
        if len(clips) == 1:
            return [error]
    return [encode_each(codec, [clip])[0] for clip in clips]
