"""Embeddings after the resize: rows of near codes are near, spread as the text's, which stay as they are."""

import pytest
import torch

from fsqcodec.lm import AudioVocabulary, resize_embeddings
from fsqcodec.models.quantization import indices_to_digits
from small_language_model import small_llama

LEVELS = (7, 7, 5)
TEXT_SIZE = 300


def text_model(**overrides):
    """A language model whose text embeddings have another mean and spread in each dimension, as after training."""
    model = small_llama(TEXT_SIZE, hidden_size=256, **overrides)
    with torch.no_grad():
        weights = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
        for weight in weights:
            weight.mul_(torch.rand(256) * 50 + 1).add_(torch.randn(256))
    return model


def rows(model, vocabulary, place: int = 0) -> dict[str, torch.Tensor]:
    """Embeddings of one range of ids, `(range size, hidden size)`."""
    start = vocabulary.range_starts[place]
    return {
        "input": model.get_input_embeddings().weight[start : start + vocabulary.range_sizes[place]].detach(),
        "output": model.get_output_embeddings().weight[start : start + vocabulary.range_sizes[place]].detach(),
    }


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_near_codes_are_near(tied):
    model, vocabulary = text_model(tie_word_embeddings=tied), AudioVocabulary(TEXT_SIZE, (245,), LEVELS)
    spread = model.get_input_embeddings().weight.detach().std(dim=0)
    resize_embeddings(model, vocabulary)
    values = indices_to_digits(torch.arange(245), LEVELS) / torch.tensor([6, 6, 4])
    for embeddings in rows(model, vocabulary).values():
        scaled = embeddings / (spread if tied else embeddings.std(dim=0))
        code_distances, row_distances = torch.pdist(values), torch.pdist(scaled)
        assert correlation(code_distances, row_distances) > 0.95
        nearest = torch.cdist(scaled, scaled).fill_diagonal_(torch.inf).argmin(dim=1)
        assert ((values - values[nearest]).abs() > 1e-6).sum(dim=1).max() == 1  # one digit away


def test_rows_of_near_levels_are_near_in_the_view_of_digits():
    model, vocabulary = text_model(), AudioVocabulary(TEXT_SIZE, (63,), (9, 7), "digits")
    resize_embeddings(model, vocabulary)
    for place, size in enumerate((9, 7)):
        levels = torch.arange(size).float()[:, None]
        assert correlation(torch.pdist(levels), torch.pdist(rows(model, vocabulary, place)["input"])) > 0.999


def test_codes_without_digits_are_all_as_far_apart():
    model, vocabulary = text_model(), AudioVocabulary(TEXT_SIZE, (64, 64))
    resize_embeddings(model, vocabulary)
    embeddings = rows(model, vocabulary)["input"]
    assert abs(correlation(torch.pdist(torch.arange(64.0)[:, None]), torch.pdist(embeddings))) < 0.1


@pytest.mark.parametrize(
    "vocabulary",
    [
        AudioVocabulary(TEXT_SIZE, (245, 245), LEVELS),
        AudioVocabulary(TEXT_SIZE, (3125,), (5, 5, 5, 5, 5), "digits"),
        AudioVocabulary(TEXT_SIZE, (500, 100)),
    ],
    ids=["codes", "digits", "no-digits"],
)
def test_audio_is_spread_as_text_which_stays(vocabulary):
    model = text_model()
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.text = embeddings.weight[:TEXT_SIZE].detach().clone()
    text = {"input": model.get_input_embeddings().text, "output": model.get_output_embeddings().text}
    resize_embeddings(model, vocabulary)
    assert model.config.vocab_size == vocabulary.size
    for name, weight in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        assert len(weight.weight) == vocabulary.size
        assert torch.equal(weight.weight[:TEXT_SIZE], text[name])
        audio = (weight.weight[TEXT_SIZE:].detach() - text[name].mean(dim=0)) / text[name].std(dim=0)
        assert audio.square().mean().sqrt() == pytest.approx(1, abs=0.15)
        assert torch.pdist(audio).min() > 0.1  # no two ids share a row


def test_a_model_of_audio_alone():
    vocabulary = AudioVocabulary(0, (245,), LEVELS)
    model = small_llama(10)
    spread = model.get_input_embeddings().weight.std().item()
    resize_embeddings(model, vocabulary)
    assert len(model.get_input_embeddings().weight) == vocabulary.size
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(spread, rel=0.3)
    logits = model(torch.tensor([[0, 5, 246]])).logits
    assert logits.shape == (1, 3, vocabulary.size) and logits.isfinite().all()


def test_rows_beyond_the_vocabulary_stay():
    vocabulary = AudioVocabulary(20, (20,))
    model = small_llama(64)
    before = model.get_input_embeddings().weight.detach().clone()
    resize_embeddings(model, vocabulary)
    after = model.get_input_embeddings().weight
    assert len(after) == 64
    assert torch.equal(after[42:], before[42:]) and torch.equal(after[:20], before[:20])
    assert not torch.isclose(after[20:42], before[20:42]).any(dim=1).all()


def test_a_model_smaller_than_the_tokenizer():
    with pytest.raises(ValueError, match="10 embeddings, the text tokenizer 20"):
        resize_embeddings(small_llama(10), AudioVocabulary(20, (5,)))
