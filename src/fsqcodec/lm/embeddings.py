"""Room for audio in a language model's embeddings, with rows of near codes near each other."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from ..models.quantization import indices_to_digits
from .vocabulary import AudioVocabulary


@torch.no_grad()
def resize_embeddings(model: PreTrainedModel, vocabulary: AudioVocabulary):
    """Give `model` a row for each id of `vocabulary`, in its input and output embeddings, and initialise the audio's.

    Of an FSQ codec, the row of a code is a random affine map of its digits, each spread evenly over [-1, 1]: the
    distance of two rows grows with the distance of their digits, so that near codes begin with near rows. With the
    digits as ids the same is done for each digit. Rows of other codebooks, of begin and of end are random. All have
    the mean and the standard deviation of the text's rows in each dimension, or without text those of the rows that
    were there; the text's rows are left as they are. Draws from torch's global generator.

    A model that has more rows than it needs keeps them. Raises `ValueError` for one with fewer than the tokenizer has.
    """
    num_rows = len(model.get_input_embeddings().weight)
    if num_rows < vocabulary.first_id:
        raise ValueError(
            f"the model has {num_rows} embeddings, the text tokenizer {vocabulary.first_id} ids: they don't belong "
            "together"
        )
    if num_rows < vocabulary.size:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    weights = [model.get_input_embeddings().weight]
    if model.get_output_embeddings() is not None and model.get_output_embeddings().weight is not weights[0]:
        weights.append(model.get_output_embeddings().weight)
    for weight in weights:
        known = weight[: vocabulary.first_id or num_rows].float()
        mean, deviation = known.mean(dim=0), known.std(dim=0, correction=0)
        for start, rows in _unit_rows(vocabulary, weight.shape[1]):
            weight[start : start + len(rows)] = rows.to(weight.device).mul_(deviation).add_(mean).to(weight.dtype)


def _unit_rows(vocabulary: AudioVocabulary, hidden_size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Of begin and end, and of each range: the first id, and rows `(num_ids, hidden_size)` of variance 1 around 0."""
    yield vocabulary.begin_of_audio_id, torch.randn(2, hidden_size)
    for start, size, levels in zip(vocabulary.range_starts, vocabulary.range_sizes, _levels_of_ranges(vocabulary)):
        if levels is None:
            yield start, torch.randn(size, hidden_size)
            continue
        digits = indices_to_digits(torch.arange(size), levels)
        values = 2 * digits / (torch.tensor(levels) - 1).clamp(min=1) - 1
        features = torch.cat([torch.ones(size, 1), values], dim=1)  # the one tells ranges apart
        features /= features.square().sum(dim=1).mean().sqrt()
        yield start, features @ torch.randn(features.shape[1], hidden_size)


def _levels_of_ranges(vocabulary: AudioVocabulary) -> list[tuple[int, ...] | None]:
    if vocabulary.view == "digits":
        return [(num_levels,) for num_levels in vocabulary.range_sizes]
    return [vocabulary.quantization_levels] * len(vocabulary.range_sizes)
