"""A constant delay of the estimate, found and removed, as codecs with filters and look-ahead have it."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import correlate, correlation_lags

from .metric import check_waveform

MAX_DELAY_SECONDS = 0.05
MAX_DELAY_SHARE = 0.1  # of the shorter waveform: what is left of a few samples can always be made to fit
MIN_CORRELATION = 0.3


@dataclass(frozen=True)
class Alignment:
    """Two waveforms of equal length, and what was done to make them so.

    Attributes:
        reference: `(num_samples,)`.
        estimate: `(num_samples,)`.
        delay_samples: what the estimate came later by, in samples; negative if it came earlier, 0 if that was unclear.
        length_difference: samples that the estimate was longer by as it came; negative if it was shorter.
    """

    reference: np.ndarray
    estimate: np.ndarray
    delay_samples: int
    length_difference: int


def align(
    reference: np.ndarray, estimate: np.ndarray, sampling_rate: int, max_delay_seconds: float = MAX_DELAY_SECONDS
) -> Alignment:
    """Remove a delay of up to 50 ms between two waveforms and cut both to what they share.

    The delay is the peak of their cross-correlation, of either sign, divided by both norms. It is trusted from 0.3 on:
    codecs that keep no waveform, only its spectrum, correlate with nothing, and stay where they are. Gain and polarity
    are left alone.

    Args:
        reference: float `(num_reference_samples,)`.
        estimate: float `(num_estimate_samples,)`.
        sampling_rate: Hz, of both.
        max_delay_seconds: delays up to this one are looked for; 0 only cuts.

    Raises:
        ValueError: a waveform that is empty, not one-dimensional, not of floats or not finite.
    """
    checked_reference, checked_estimate = check_waveform(reference, "reference"), check_waveform(estimate, "estimate")
    reference, estimate = np.asarray(reference), np.asarray(estimate)
    delay = _delay_samples(checked_reference, checked_estimate, int(max_delay_seconds * sampling_rate))
    length_difference = len(estimate) - len(reference)
    reference, estimate = reference[max(-delay, 0) :], estimate[max(delay, 0) :]
    num_samples = min(len(reference), len(estimate))
    return Alignment(reference[:num_samples], estimate[:num_samples], delay, length_difference)


def _delay_samples(reference: np.ndarray, estimate: np.ndarray, max_delay: int) -> int:
    reference, estimate = reference - reference.mean(), estimate - estimate.mean()
    correlation = np.abs(correlate(estimate, reference, method="fft"))
    delays = correlation_lags(len(estimate), len(reference))
    allowed = np.abs(delays) <= min(max_delay, MAX_DELAY_SHARE * min(len(reference), len(estimate)))
    correlation, delays = correlation[allowed], delays[allowed]
    norm = np.linalg.norm(reference) * np.linalg.norm(estimate)
    peak = correlation.argmax()
    clear = correlation[peak] >= MIN_CORRELATION * norm and norm > 0
    return int(delays[peak]) if clear else 0
