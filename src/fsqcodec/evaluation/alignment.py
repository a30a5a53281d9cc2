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
        reference: `(num_samples,)` or `(num_channels, num_samples)`, as it came.
        estimate: of the same shape.
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
    are left alone. Several channels have one delay, that of their mean.

    Args:
        reference: float `(num_reference_samples,)` or `(num_channels, num_reference_samples)`.
        estimate: float `(num_estimate_samples,)`, of as many channels.
        sampling_rate: Hz, of both.
        max_delay_seconds: delays up to this one are looked for; 0 only cuts.

    Raises:
        ValueError: a waveform that is empty, of another shape, not of floats or not finite.
    """
    reference, estimate = np.asarray(reference), np.asarray(estimate)
    if reference.shape[:-1] != estimate.shape[:-1]:
        raise ValueError(f"reference has shape {reference.shape}, estimate {estimate.shape}: equal channels are wanted")
    means = check_waveform(_mean_channel(reference), "reference"), check_waveform(_mean_channel(estimate), "estimate")
    delay = _delay_samples(*means, int(max_delay_seconds * sampling_rate))
    length_difference = estimate.shape[-1] - reference.shape[-1]
    reference, estimate = reference[..., max(-delay, 0) :], estimate[..., max(delay, 0) :]
    num_samples = min(reference.shape[-1], estimate.shape[-1])
    return Alignment(reference[..., :num_samples], estimate[..., :num_samples], delay, length_difference)


def _mean_channel(audio: np.ndarray) -> np.ndarray:
    return audio.mean(axis=0) if audio.ndim == 2 else audio


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
