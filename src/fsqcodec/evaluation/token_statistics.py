"""What the tokens of a codec carry: how much of each codebook is used, how many bits, how predictable in sequence."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..models.quantization import indices_to_digits

CONTEXT_LENGTHS = (1, 2, 3)  # tokens before the one that is predicted


def token_statistics(
    audio_codes: Sequence[np.ndarray],
    codebook_sizes: Sequence[int],
    frame_rate: float,
    quantization_levels: Sequence[int] | None = None,
) -> dict:
    """Usage, entropy and predictability of tokens, pooled over clips.

    Entropies are plug-in estimates, the entropy of the observed shares. They are biased low: N tokens can't show more
    than log2(N) bits, however many they carry. Trust them where tokens are many times the codes in use, and look at
    `singletons_share` for n-grams.

    Args:
        audio_codes: integers `(num_codebooks, num_frames)`, one array a clip.
        codebook_sizes: number of codes of each codebook.
        frame_rate: frames per second, Hz.
        quantization_levels: of a finite scalar quantizer, the same in every codebook; its tokens are then also counted
            digit by digit, in the layout of `indices_to_digits`.

    Returns:
        Numbers, lists and dicts that `json.dumps` takes:

        - `num_clips`, `num_frames`;
        - `nominal_bitrate`: bits per second, frame_rate * sum of log2(codebook_size);
        - `effective_bitrate`: bits per second, frame_rate * sum of `entropy`: what an ideal entropy coder needs that
          knows the shares of the codes and nothing of their order;
        - `codebooks`: for each codebook
            - `codebook_size`, `num_used` (distinct codes seen), `used_share` of the codebook in (0, 1];
            - `entropy`: bits per token; `perplexity`: 2 ** entropy;
            - `entropy_miller_madow`: entropy + (num_used - 1) / (2 N ln 2), the first-order correction of its bias
              (Miller 1955, "Note on the bias of information estimates"); may exceed log2(codebook_size), and is still
              too low where most codes are seen once or never;
            - `sequence`: for each context length, see below;
            - `digits`: with `quantization_levels`, for each digit its `entropy` in bits, `level_shares` from the lowest
              level to the highest, and `saturation_share`, that of the two outermost levels together.

        An entry of `sequence` tells how well a token is known from the `context_length` tokens before it in the same
        codebook and clip; n-grams are a context and its token, and never reach across the border of a clip:

        - `conditional_entropy`: bits per token, the plug-in one, H(n-gram) - H(its context). No model that sees as much
          context has a lower mean loss on these very tokens; it falls to 0 where contexts are seen only once;
        - `num_ngrams`: n-grams counted;
        - `singletons_share`: the share of them that is seen only once, which estimates how probable it is that the
          next n-gram is a new one (Good 1953, "The population frequencies of species"). Above some tenths,
          `conditional_entropy` says more about the number of tokens than about their order.

        Both are None where no clip is longer than the context.

    Raises:
        ValueError: no tokens, codes of another shape or dtype or out of range, levels that don't make the codebook.
    """
    audio_codes = [np.asarray(codes) for codes in audio_codes]
    _check(audio_codes, codebook_sizes, quantization_levels)
    lengths = [codes.shape[1] for codes in audio_codes]
    positions = np.concatenate([np.arange(length) for length in lengths])
    codebooks = [
        _codebook_statistics(
            np.concatenate([codes[i] for codes in audio_codes]).astype(np.int64), positions, size, quantization_levels
        )
        for i, size in enumerate(codebook_sizes)
    ]
    return {
        "num_clips": len(audio_codes),
        "num_frames": len(positions),
        "nominal_bitrate": frame_rate * sum(math.log2(size) for size in codebook_sizes),
        "effective_bitrate": frame_rate * sum(codebook["entropy"] for codebook in codebooks),
        "codebooks": codebooks,
    }


def _check(audio_codes: list[np.ndarray], codebook_sizes: Sequence[int], quantization_levels: Sequence[int] | None):
    if not sum(codes.size for codes in audio_codes):
        raise ValueError(f"{len(audio_codes)} clips hold no tokens: statistics need at least one")
    for codes in audio_codes:
        if codes.ndim != 2 or len(codes) != len(codebook_sizes) or codes.dtype.kind not in "iu":
            raise ValueError(
                f"codes are {codes.shape} of {codes.dtype}: integers (num_codebooks, num_frames) of "
                f"{len(codebook_sizes)} codebooks are wanted, one array a clip"
            )
        for stream, size in zip(codes, codebook_sizes):
            if stream.size and (stream.min() < 0 or stream.max() >= size):
                raise ValueError(
                    f"codes lie in [{stream.min()}, {stream.max()}], the codebook has {size}: [0, {size - 1}] is "
                    "wanted; are they another codec's?"
                )
    if quantization_levels is not None and {math.prod(quantization_levels)} != set(codebook_sizes):
        raise ValueError(
            f"quantization_levels {tuple(quantization_levels)} make {math.prod(quantization_levels)} codes, codebooks "
            f"have {tuple(codebook_sizes)}: pass the levels of this codec, or None"
        )


def _codebook_statistics(
    tokens: np.ndarray, positions: np.ndarray, codebook_size: int, quantization_levels: Sequence[int] | None
) -> dict:
    """Of all clips' tokens `(num_tokens,)`, one clip after the other, with their `positions` in their clips."""
    codes, ranks, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    entropy = _entropy(counts)
    statistics = {
        "codebook_size": codebook_size,
        "num_used": len(codes),
        "used_share": len(codes) / codebook_size,
        "entropy": entropy,
        "entropy_miller_madow": entropy + (len(codes) - 1) / (2 * len(tokens) * math.log(2)),
        "perplexity": 2**entropy,
        "sequence": _sequence_statistics(ranks, positions),
    }
    if quantization_levels is not None:
        statistics["digits"] = _digit_statistics(codes, counts, quantization_levels)
    return statistics


def _entropy(counts: np.ndarray) -> float:
    """Bits, of the shares of `counts`; zero counts are allowed."""
    shares = counts[counts > 0] / counts.sum()
    return float(shares @ np.log2(1 / shares))


def _sequence_statistics(ranks: np.ndarray, positions: np.ndarray) -> list[dict]:
    """One entry for each context length. `ranks` are tokens numbered 0, 1, ... without gaps, and so is every n-gram
    before it becomes a context: keys stay below the number of tokens squared, whatever the codebook's size."""
    num_symbols = ranks.max() + 1
    contexts = ranks  # of each token, the n-gram that ends with it
    statistics = []
    for context_length in CONTEXT_LENGTHS:
        ends = np.flatnonzero(positions >= context_length)
        keys, ngrams, counts = np.unique(
            contexts[ends - 1] * num_symbols + ranks[ends], return_inverse=True, return_counts=True
        )
        context_counts = np.bincount(contexts[ends - 1])[keys // num_symbols]
        shares = counts / max(len(ends), 1)
        statistics.append(
            {
                "context_length": context_length,
                "conditional_entropy": float(shares @ np.log2(context_counts / counts)) if len(ends) else None,
                "num_ngrams": len(ends),
                "singletons_share": float(np.mean(counts[ngrams] == 1)) if len(ends) else None,
            }
        )
        contexts = np.zeros_like(ranks)
        contexts[ends] = ngrams
    return statistics


def _digit_statistics(codes: np.ndarray, counts: np.ndarray, quantization_levels: Sequence[int]) -> list[dict]:
    """One entry for each digit, from distinct `codes` and how often each was seen."""
    digits = indices_to_digits(torch.from_numpy(codes), quantization_levels).numpy()
    statistics = []
    for i, num_levels in enumerate(quantization_levels):
        level_counts = np.bincount(digits[:, i], weights=counts, minlength=num_levels)
        level_shares = level_counts / counts.sum()
        statistics.append(
            {
                "entropy": _entropy(level_counts),
                "level_shares": level_shares.tolist(),
                "saturation_share": float(level_shares[0] + level_shares[-1]),
            }
        )
    return statistics
