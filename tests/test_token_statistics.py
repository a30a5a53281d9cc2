"""Token statistics: closed forms, a slow reference for digits, and what must not matter."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqcodec.evaluation.token_statistics import token_statistics

FRAME_RATE = 50.0


def stream(*tokens: int) -> np.ndarray:
    return np.array([tokens])


def codebook(clips: list[np.ndarray], size: int, **kwargs) -> dict:
    """Statistics of the only codebook."""
    return token_statistics(clips, [size], FRAME_RATE, **kwargs)["codebooks"][0]


def conditional_entropies(statistics: dict) -> list[float]:
    return [entry["conditional_entropy"] for entry in statistics["sequence"]]


def test_every_code_equally_often_is_the_whole_codebook():
    statistics = token_statistics([np.arange(24).reshape(1, -1) % 12], [12], FRAME_RATE)
    (book,) = statistics["codebooks"]
    assert (statistics["num_clips"], statistics["num_frames"]) == (1, 24)
    assert (book["codebook_size"], book["num_used"], book["used_share"]) == (12, 12, 1)
    assert book["entropy"] == pytest.approx(math.log2(12))
    assert book["perplexity"] == pytest.approx(12)
    assert statistics["nominal_bitrate"] == statistics["effective_bitrate"] == pytest.approx(FRAME_RATE * math.log2(12))


def test_a_constant_carries_nothing():
    statistics = token_statistics([np.full((1, 10), 3)], [8], FRAME_RATE)
    (book,) = statistics["codebooks"]
    assert statistics["effective_bitrate"] == 0 and statistics["nominal_bitrate"] == 150
    assert (book["num_used"], book["used_share"], book["entropy"], book["perplexity"]) == (1, 0.125, 0, 1)
    assert book["entropy_miller_madow"] == 0
    assert conditional_entropies(book) == [0, 0, 0]


def test_alternating_tokens_are_one_bit_each_and_none_after_another():
    book = codebook([stream(5, 2) for _ in range(3)] + [stream(5, 2, 5, 2, 5, 2)], 6)
    assert book["entropy"] == 1
    assert conditional_entropies(book) == [0, 0, 0]


def test_three_tokens_by_hand():
    """0, 0, 1: shares 2/3 and 1/3; after 0 once 0 and once 1; no token after three others."""
    book = codebook([stream(0, 0, 1)], 4)
    assert book["entropy"] == pytest.approx(math.log2(3) - 2 / 3)
    assert book["entropy_miller_madow"] == pytest.approx(math.log2(3) - 2 / 3 + 1 / 6 / math.log(2))
    first, second, third = book["sequence"]
    assert first == {"context_length": 1, "conditional_entropy": 1, "num_ngrams": 2, "singletons_share": 1}
    assert second == {"context_length": 2, "conditional_entropy": 0, "num_ngrams": 1, "singletons_share": 1}
    assert third == {"context_length": 3, "conditional_entropy": None, "num_ngrams": 0, "singletons_share": None}


def test_singletons_are_counted_among_ngrams():
    """Of the pairs 00, 00, 01, 10 the last two are seen once."""
    assert codebook([stream(0, 0, 0, 1, 0)], 2)["sequence"][0]["singletons_share"] == 0.5


def test_where_order_says_nothing_the_conditional_entropy_is_the_unconditional_one():
    """In a De Bruijn cycle every four tokens follow each other once, so any three say nothing of the next."""
    cycle = [int(bit) for bit in "0000100110101111"]
    assert codebook([stream(*cycle)], 2)["entropy"] == 1
    for context_length in (1, 2, 3):
        book = codebook([stream(*cycle, *cycle[:context_length])], 2)
        assert conditional_entropies(book)[context_length - 1] == pytest.approx(1)


def test_the_border_of_clips_is_never_crossed():
    apart = codebook([stream(0, 1), stream(2, 3), stream(0, 1), stream(2, 0)], 4)
    assert [entry["num_ngrams"] for entry in apart["sequence"]] == [4, 0, 0]
    assert apart["sequence"][0]["conditional_entropy"] == 0.5  # 0 says 1; 2 says 3 or 0
    assert apart["sequence"][0]["singletons_share"] == 0.5


def test_large_codes_do_not_collide():
    """Three tokens of a codebook near 2^62 don't fit in 64 bits side by side."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 3, (1, 400))
    large = np.array([0, 2**31, 2**62])[small]
    assert conditional_entropies(codebook([large], 2**62 + 1)) == pytest.approx(
        conditional_entropies(codebook([small], 3))
    )


def test_the_correction_removes_bias():
    """Uniform over 64 codes, 200 tokens at a time: the plug-in estimate is low, the corrected one nearer."""
    generator = np.random.default_rng(0)
    books = [codebook([generator.integers(0, 64, (1, 200))], 64) for _ in range(50)]
    bias, corrected_bias = (np.mean([book[name] for book in books]) - 6 for name in ("entropy", "entropy_miller_madow"))
    assert bias < -0.2
    assert abs(corrected_bias) < 0.3 * abs(bias)


clips_of_tokens = st.lists(
    st.lists(st.integers(0, 29), max_size=20).map(lambda tokens: np.array([tokens], dtype=np.int64)),
    min_size=1,
    max_size=6,
).filter(lambda clips: sum(clip.size for clip in clips) > 0)


@settings(max_examples=50, deadline=None)
@given(clips_of_tokens)
def test_digits_and_sequences_equal_a_slow_reference(clips):
    levels = (5, 3, 2)
    book = codebook(clips, 30, quantization_levels=levels)
    tokens = [int(token) for clip in clips for token in clip[0]]
    all_digits = [(token % 5, token // 5 % 3, token // 15) for token in tokens]
    for i, statistics in enumerate(book["digits"]):
        shares = [sum(digits[i] == level for digits in all_digits) / len(tokens) for level in range(levels[i])]
        assert statistics["level_shares"] == pytest.approx(shares)
        assert statistics["saturation_share"] == pytest.approx(shares[0] + shares[-1])
        assert statistics["entropy"] == pytest.approx(-sum(p * math.log2(p) for p in shares if p))
    for entry in book["sequence"]:
        n = entry["context_length"] + 1
        ngrams = Counter(tuple(clip[0, t : t + n]) for clip in clips for t in range(clip.size - n + 1))
        total = sum(ngrams.values())
        assert entry["num_ngrams"] == total
        if total:
            contexts = Counter()
            for ngram, count in ngrams.items():
                contexts[ngram[:-1]] += count
            bits = sum(-count / total * math.log2(count / contexts[ngram[:-1]]) for ngram, count in ngrams.items())
            assert entry["conditional_entropy"] == pytest.approx(bits)
            assert entry["singletons_share"] == pytest.approx(list(ngrams.values()).count(1) / total)


def approximately(statistics):
    """Equal but for the last digits of floats: sums in another order."""
    if isinstance(statistics, dict):
        return {key: approximately(value) for key, value in statistics.items()}
    if isinstance(statistics, list):
        return [approximately(value) for value in statistics]
    return pytest.approx(statistics) if isinstance(statistics, float) else statistics


@settings(max_examples=50, deadline=None)
@given(clips_of_tokens, st.randoms(use_true_random=False))
def test_names_of_codes_and_order_of_clips_do_not_matter(clips, random):
    names = np.array(random.sample(range(30), 30))
    shuffled = random.sample([names[clip] for clip in clips], len(clips))
    assert token_statistics(shuffled, [30], FRAME_RATE) == approximately(token_statistics(clips, [30], FRAME_RATE))


def test_codebooks_are_counted_apart_and_their_bits_add_up():
    clips = [np.array([[0, 1, 2, 3], [0, 0, 1, 1]])]
    statistics = token_statistics(clips, [4, 16], FRAME_RATE)
    assert [book["entropy"] for book in statistics["codebooks"]] == [2, 1]
    assert statistics["effective_bitrate"] == 3 * FRAME_RATE
    assert statistics["nominal_bitrate"] == 6 * FRAME_RATE
    assert all("digits" not in book for book in statistics["codebooks"])


def test_the_result_is_json():
    statistics = token_statistics([np.array([[1, 2, 1]], dtype=np.uint16)], [6], FRAME_RATE, (3, 2))
    assert json.loads(json.dumps(statistics)) == statistics


@pytest.mark.parametrize(
    ("clips", "levels", "message"),
    [
        ([], None, "0 clips hold no tokens"),
        ([np.zeros((1, 0), dtype=np.int64)], None, "1 clips hold no tokens"),
        ([np.zeros((2, 5), dtype=np.int64)], None, r"\(2, 5\) of int64: integers .* of 1 codebooks"),
        ([np.zeros(5, dtype=np.int64)], None, r"\(5,\) of int64"),
        ([np.zeros((1, 5))], None, "of float64: integers"),
        ([stream(0, 6)], None, r"\[0, 6\], the codebook has 6: \[0, 5\]"),
        ([stream(-1, 0)], None, r"\[-1, 0\]"),
        ([stream(0, 1)], (3, 3), r"\(3, 3\) make 9 codes, codebooks have \(6,\)"),
    ],
)
def test_wrong_input_is_refused(clips, levels, message):
    with pytest.raises(ValueError, match=message):
        token_statistics(clips, [6], FRAME_RATE, levels)
