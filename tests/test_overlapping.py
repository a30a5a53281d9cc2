"""Chunks that overlap: of the whole's length, equal to it where the context reaches, without a click at the joins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqcodec import CodecFeatureExtractor, LycodecFeatureExtractor, OverlappingDecoder
from fsqcodec.codecs import codec_of, load_codec
from lycodec_models import small_lycodec
from small_configs import small_model
from small_neucodecs import FEATURE_EXTRACTORS, small_neucodec

NUM_FRAMES = 90


@pytest.fixture(scope="module")
def neucodec():
    return codec_of(small_neucodec("neucodec"), FEATURE_EXTRACTORS["neucodec"])


@pytest.fixture(scope="module")
def convolutional():
    """Of frames alone: what a chunk depends on ends with the reach of its decoder."""
    return codec_of(small_model("frames-plain"), CodecFeatureExtractor())


def random_codes(codec, num_frames: int = NUM_FRAMES) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(codec.codebook_sizes[0], (1, num_frames), generator=generator).numpy()


def in_pieces(decoder: OverlappingDecoder, codes: np.ndarray, cuts: list[int]) -> np.ndarray:
    pieces = np.split(codes, sorted(cuts), axis=1)
    return np.concatenate([*(decoder.push(piece) for piece in pieces), decoder.flush()], axis=-1)


@given(cuts=st.lists(st.integers(0, NUM_FRAMES), max_size=8), num_frames=st.integers(0, NUM_FRAMES))
@settings(deadline=None, max_examples=30)
def test_audio_does_not_depend_on_how_codes_are_pushed(neucodec, cuts, num_frames):
    codes = random_codes(neucodec, num_frames)
    seconds = {"chunk_seconds": 0.2, "context_seconds": 0.4, "lookahead_seconds": 0.1}
    once = in_pieces(OverlappingDecoder(neucodec, **seconds), codes, [])
    assert once.shape == (num_frames * 480,)
    pushed = in_pieces(OverlappingDecoder(neucodec, **seconds), codes, [min(cut, num_frames) for cut in cuts])
    np.testing.assert_allclose(pushed, once, rtol=0, atol=1e-6)


def test_with_context_that_reaches_everything_it_is_the_whole(convolutional):
    codes = random_codes(convolutional)
    config = convolutional.model.config
    lookahead = config.decoder_lookahead_samples / config.sampling_rate + 1 / config.frame_rate
    context = config.decoder_context_samples / config.sampling_rate + 1 / config.frame_rate
    decoder = OverlappingDecoder(convolutional, 5 / config.frame_rate, context, lookahead)
    audio = in_pieces(decoder, codes, [7, 8, 40])
    np.testing.assert_allclose(audio, convolutional.decode([codes])[0], rtol=0, atol=1e-5)


def test_more_context_is_closer_and_joins_do_not_click(neucodec):
    codes = random_codes(neucodec)
    whole = neucodec.decode([codes])[0]
    errors = []
    for context in (0.0, 0.4, 1.8):
        audio = in_pieces(OverlappingDecoder(neucodec, 0.2, context, 0.1), codes, [])
        errors.append(np.abs(audio - whole).mean())
        steps = np.abs(np.diff(audio))
        joins = steps[10 * 480 - 1 :: 10 * 480]
        assert joins.max() <= np.abs(np.diff(whole)).max() * 1.1
    assert errors[2] < errors[1] < errors[0]


def test_the_first_audio_comes_after_chunk_and_lookahead(neucodec):
    decoder = OverlappingDecoder(neucodec, chunk_seconds=0.2, context_seconds=1.0, lookahead_seconds=0.1)
    assert decoder.push(random_codes(neucodec, 14)).size == 0
    assert decoder.push(random_codes(neucodec, 1)).size == 10 * 480


def test_wrong_use_is_told(neucodec):
    for wrong in ({"chunk_seconds": 0}, {"context_seconds": -1}, {"lookahead_seconds": np.inf}):
        with pytest.raises(ValueError, match="some time, and no negative or infinite ones"):
            OverlappingDecoder(neucodec, **wrong)
    with pytest.raises(ValueError, match=r"multiples of 18 frames, 0.0225 s, are wanted"):
        OverlappingDecoder(codec_of(small_lycodec(), LycodecFeatureExtractor(sampling_rate=48000)))
    decoder = OverlappingDecoder(neucodec)
    codes = random_codes(neucodec, 60)
    damaged = codes.copy()
    damaged[0, 59] = 10**7
    with pytest.raises(ValueError, match="to 10000000: this codec's are 0 to"):
        decoder.push(damaged)
    assert decoder.push(codes).any()  # nothing of what was refused is left
    with pytest.raises(ValueError, match=r"float64 of shape \(1, 3\): integers \(1, num_frames\)"):
        decoder.push(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"int64 of shape \(2, 3\)"):
        decoder.push(np.zeros((2, 3), dtype=np.int64))
    decoder.flush()
    with pytest.raises(ValueError, match="the clip has ended"):
        decoder.push(random_codes(neucodec, 1))


def test_a_classical_codec_has_no_tokens():
    try:
        codec = load_codec("opus:6")
    except OSError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="has no tokens"):
        OverlappingDecoder(codec)
