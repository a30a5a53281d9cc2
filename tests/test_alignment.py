"""Delays that were put into real speech come out again; without a clear delay nothing moves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import speech
from fsqcodec.evaluation.alignment import align

CLIP = speech()[8000:40000]  # 2 s
NOISE = np.random.default_rng(0).standard_normal(len(CLIP)).astype(np.float32) * CLIP.std()


def delayed(audio: np.ndarray, delay: int) -> np.ndarray:
    return np.pad(audio, (delay, 0)) if delay >= 0 else audio[-delay:]


@settings(max_examples=40)
@given(
    delay=st.integers(-800, 800),
    gain=st.sampled_from([-1.0, -0.1, 0.02, 1.0, 3.0]),
    snr_db=st.sampled_from([0, 10, 60]),
    extra=st.integers(0, 500),
)
def test_a_delay_is_found_and_removed(delay, gain, snr_db, extra):
    changed = gain * (CLIP + NOISE * 10 ** (-snr_db / 20))
    estimate = np.pad(delayed(changed, delay), (0, extra))
    aligned = align(CLIP, estimate, 16000)
    assert aligned.delay_samples == delay
    assert aligned.length_difference == len(estimate) - len(CLIP) == delay + extra
    num_samples = len(CLIP) - max(-delay, 0)
    assert np.array_equal(aligned.reference[:num_samples], CLIP[max(-delay, 0) :])
    assert np.array_equal(aligned.estimate[:num_samples], changed[max(-delay, 0) :])
    assert len(aligned.reference) == len(aligned.estimate) == num_samples


@pytest.mark.parametrize("delay", [801, -801, 4000])
def test_a_delay_beyond_50_ms_is_not_removed(delay):
    assert align(CLIP, delayed(NOISE, delay), 16000).delay_samples == 0
    estimate = delayed(NOISE, delay)
    assert align(NOISE, estimate, 16000).delay_samples == 0
    assert align(NOISE, estimate, 32000).delay_samples == (delay if abs(delay) <= 1600 else 0)


def test_without_delays_to_look_for_lengths_are_cut_only():
    aligned = align(CLIP, delayed(CLIP, 100), 16000, max_delay_seconds=0)
    assert (aligned.delay_samples, aligned.length_difference) == (0, 100)
    assert np.array_equal(aligned.estimate, delayed(CLIP, 100)[: len(CLIP)])


def test_what_does_not_correlate_stays():
    random_phase = np.fft.rfft(CLIP) * np.exp(2j * np.pi * np.random.default_rng(1).random(len(CLIP) // 2 + 1))
    for estimate in (NOISE, np.fft.irfft(random_phase), np.zeros_like(CLIP), 0.2 + 0.01 * NOISE):
        aligned = align(CLIP, estimate, 16000)
        assert aligned.delay_samples == 0 and np.array_equal(aligned.estimate, estimate)


def test_the_correlation_must_be_clear():
    """A delayed copy under noise: correlation 0.4 is trusted, 0.2 is not."""
    for correlation, found in ((0.4, 300), (0.2, 0)):
        noise_gain = np.sqrt(1 / correlation**2 - 1)
        estimate = delayed(CLIP, 300)[: len(CLIP)] + noise_gain * NOISE
        assert align(CLIP, estimate, 16000).delay_samples == found


def test_an_offset_does_not_hide_a_delay():
    estimate = delayed(CLIP, 300)[: len(CLIP)]
    assert align(CLIP + 2, estimate + 2, 16000).delay_samples == 300


@pytest.mark.parametrize("num_samples", [1, 2, 100])
def test_clips_shorter_than_the_longest_delay(num_samples):
    aligned = align(CLIP[5000:][:num_samples], CLIP[5000:], 16000)
    assert len(aligned.reference) == len(aligned.estimate) == num_samples


@pytest.mark.parametrize("bad", [CLIP[:0], CLIP[None], CLIP * np.nan, np.arange(5)])
def test_what_is_no_waveform_is_refused(bad):
    with pytest.raises(ValueError, match="estimate"):
        align(CLIP, bad, 16000)
    with pytest.raises(ValueError, match="reference"):
        align(bad, CLIP, 16000)
