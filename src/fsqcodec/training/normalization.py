"""Statistics of the decoder's running norms, that belong to the weights as they are now."""

from collections.abc import Iterable

import torch

from ..models.convolution import RunningNorm
from ..models.modeling_codec import CodecModel


@torch.no_grad()
def recalibrate_norms(model: CodecModel, batches: Iterable[dict[str, torch.Tensor]]):
    """Replace the constants of every `RunningNorm` by the mean statistics of `batches`, each normalised by its own, as
    in training. Without such a norm nothing happens.

    For weights that were averaged, and for a decoder that normalised over the clip and shall stream.

    Args:
        batches: arguments of the model, on its device; each process gives as many of its own, and statistics are those
            of all together.
    """
    norms = [module for module in model.modules() if isinstance(module, RunningNorm)]
    if not norms:
        return
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.train()
    for number, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        model(**batch)
    for norm in norms:
        del norm.momentum  # the class has it
    model.train(was_training)
