"""What a metric is: a function of two waveforms, with the facts that a table of results needs."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A metric and its facts.

    Attributes:
        function: `(reference, estimate, sampling_rate) -> float` on float arrays `(num_samples,)` of equal length and
            their rate in Hz. Raises `ValueError`, with the reason, where the metric is not defined.
        unit: of the value.
        better: whether "higher" or "lower" values are better.
        perfect: the value of an estimate that equals the reference; None where that depends on the clip.
        package: the distribution that computes it, whose version belongs beside every result.
        min_sampling_rate: Hz, the lowest rate that holds the band it measures; None if any does.
    """

    function: Callable[[np.ndarray, np.ndarray, int], float]
    unit: str
    better: Literal["higher", "lower"]
    perfect: float | None
    package: str = "fsqcodec"
    min_sampling_rate: int | None = None

    @property
    def package_version(self) -> str:
        """For example "0.0.4". Raises `PackageNotFoundError`, an `ImportError`, where the package is absent."""
        return version(self.package)


def check_waveforms(
    reference: np.ndarray, estimate: np.ndarray, sampling_rate: int, min_sampling_rate: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Both waveforms as float64, or a `ValueError`: each as `check_waveform` wants it, of equal length, and
    `sampling_rate`, Hz, not below `min_sampling_rate`."""
    reference, estimate = check_waveform(reference, "reference"), check_waveform(estimate, "estimate")
    if len(reference) != len(estimate):
        raise ValueError(
            f"reference has {len(reference)} samples, estimate {len(estimate)}: equal lengths are wanted, "
            "fsqcodec.evaluation.alignment.align makes them so"
        )
    if sampling_rate < min_sampling_rate:
        raise ValueError(
            f"the audio is at {sampling_rate} Hz, the metric needs at least {min_sampling_rate} Hz: resampling would "
            "not bring back the band it measures"
        )
    return reference, estimate


def check_waveform(audio: np.ndarray, name: str) -> np.ndarray:
    """`audio` as float64 `(num_samples,)`, or a `ValueError` that calls it `name`: it must be one-dimensional, of
    floats, finite and not empty."""
    audio = np.asarray(audio)
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(f"{name} has shape {audio.shape}: (num_samples,), mono and not empty, is wanted")
    if audio.dtype.kind != "f":
        raise ValueError(f"{name} is {audio.dtype}: floats in [-1, 1] are wanted, divide 16-bit integers by 32768")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} has NaN or infinite samples")
    return audio.astype(np.float64)


def check_not_silent(audio: np.ndarray, name: str):
    """Raise a `ValueError` that calls the waveform `name` if it is constant, zero or not."""
    if np.ptp(audio) == 0:
        raise ValueError(f"{name} is silent: the metric is not defined")


def import_package(name: str, extra: str) -> ModuleType:
    """Import an optional package, or raise an `ImportError` that names the extra of pip which brings it."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # by pyworld and webrtcvad
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} can't be imported ({error}): pip install 'fsqcodec[{extra}]'") from error
