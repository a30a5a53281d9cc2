"""What changes with the step: the learning rate, and the weight of the last step in the averaged weights."""

import math

from .recipe import Optimizer


def learning_rate_share(step: int, num_steps: int, optimizer: Optimizer) -> float:
    """Share of the learning rate at `step`, counted from 0: see `Optimizer`."""
    num_warmup = optimizer.warmup_share * num_steps if optimizer.schedule == "one_cycle" else 0
    if step < num_warmup:
        return _cosine(optimizer.start_share, 1.0, step / num_warmup)
    return _cosine(1.0, optimizer.final_share, (step - num_warmup) / max(num_steps - 1 - num_warmup, 1))


def ema_weight(step: int, decay: float) -> float:
    """Weight of the weights after `step`, counted from 0: 1 - `decay`, and more in the first steps, so that the random
    start is forgotten."""
    return 1 - min(decay, (1 + step) / (10 + step))


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
