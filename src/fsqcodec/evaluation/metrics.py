"""Objective metrics of decoded audio: pure functions of a reference and an estimate, and a table of them.

Every function takes float arrays `(num_samples,)` of equal length at `sampling_rate` Hz, and raises `ValueError` for
anything else, and where it is not defined for a clip. `compute_metrics` turns those errors into reasons. Functions that
need an optional package raise `ImportError` where it is absent. Nothing is aligned here: see `alignment`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from ..audio import resample
from .learned_metrics import LEARNED_METRICS
from .metric import Metric, check_not_silent, check_waveforms, import_package

FLOOR = 1e-5  # of magnitudes, before the logarithm
MULTISCALE_MELS = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}  # by window length, samples
CODEC_SUPERB_MELS = {2048: 150, 512: 80}  # by window length, samples
MIN_VOICED_FRAMES = 20  # of 5 ms: 0.1 s of speech


def compute_metrics(
    reference: np.ndarray, estimate: np.ndarray, sampling_rate: int, names: Iterable[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Several metrics of one clip, from `METRICS` and `LEARNED_METRICS`.

    A metric that fails on the clip (too short, silent, NaN, too low a rate, no speech found, ...) is NaN; why is in the
    second dictionary. No value is ever made up. Of several channels a metric is the mean over the channels, and fails
    where it does on one of them.

    Args:
        reference: float `(num_samples,)` or `(num_channels, num_samples)`.
        estimate: of the same shape, aligned.
        sampling_rate: Hz, of both.
        names: keys of the two tables.

    Returns:
        Values by name, and the reason by name for those that are NaN.

    Raises:
        ValueError: there is no metric of such a name.
        ImportError: the package of a metric is absent.
    """
    table = METRICS | LEARNED_METRICS
    names = list(names)
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"there is no metric {', '.join(map(repr, unknown))}: there are {', '.join(table)}")
    reference, estimate = np.asarray(reference), np.asarray(estimate)
    if reference.ndim == 2 and reference.shape == estimate.shape:
        return _mean_over_channels([compute_metrics(*pair, sampling_rate, names) for pair in zip(reference, estimate)])
    values, reasons = {}, {}
    for name in names:
        try:
            values[name] = float(table[name].function(reference, estimate, sampling_rate))
            if math.isnan(values[name]):
                reasons[name] = "the metric itself returned NaN"
        except ImportError:
            raise
        except Exception as error:  # whatever a metric package raises on one clip must not end a run over thousands
            values[name] = math.nan
            reasons[name] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return values, reasons


def pesq_wb(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """PESQ, wide band, MOS-LQO from about 1.0 to 4.64 (ITU-T P.862.2), at 16 kHz. Below 16 kHz it is not defined, nor
    for silence, less than a quarter of a second, and clips without an utterance."""
    return _pesq(reference, estimate, sampling_rate, 16000, "wb")


def pesq_nb(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """PESQ, narrow band, MOS-LQO from about 1.0 to 4.55 (ITU-T P.862.1), at 16 kHz, and at 8 kHz for audio below that:
    the two differ by up to 0.1. Not defined where `pesq_wb` isn't, but for rates from 8 kHz."""
    return _pesq(reference, estimate, sampling_rate, 16000 if sampling_rate >= 16000 else 8000, "nb")


def stoi(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Short-time objective intelligibility, at most 1 (Taal et al. 2011, doi:10.1109/TASL.2011.2114881). Not defined
    below 8 kHz, for a silent reference and for less than about 0.4 s of speech."""
    return _stoi(reference, estimate, sampling_rate, extended=False)


def estoi(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Extended STOI, at most 1 (Jensen and Taal 2016, doi:10.1109/TASLP.2016.2585878). Defined where `stoi` is."""
    return _stoi(reference, estimate, sampling_rate, extended=True)


def si_sdr_db(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio, dB, of the waveforms without their means (Le Roux et al. 2019,
    arXiv:1811.02508, equation 5). +inf for equal waveforms, -inf for orthogonal ones; not defined for silence."""
    reference, estimate = check_waveforms(reference, estimate, sampling_rate)
    check_not_silent(reference, "reference")
    check_not_silent(estimate, "estimate")
    reference, estimate = reference - reference.mean(), estimate - estimate.mean()
    target = reference * (reference @ estimate / (reference @ reference))
    return _ratio_db(target, estimate - target)


def sdr_db(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Signal-to-distortion ratio, dB: 10 log10(sum x^2 / sum (x - y)^2), also called SNR, as Codec-SUPERB computes it.
    Not the SDR of BSS eval, which forgives any filter of 512 taps. +inf for equal waveforms; not defined for a silent
    reference."""
    reference, estimate = check_waveforms(reference, estimate, sampling_rate)
    check_not_silent(reference, "reference")
    return _ratio_db(reference, reference - estimate)


def stft_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Mean absolute difference of log10 magnitudes, at least 1e-5: Hann windows of 1024 samples, hop 256."""
    return _log_distance(*_spectra(reference, estimate, sampling_rate, 1024))


def mel_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Mean absolute difference of log10 mel magnitudes, at least 1e-5: 80 Slaney mels from 0 Hz to half the sampling
    rate, Hann windows of 1024 samples, hop 256. Values at two sampling rates can't be compared."""
    return _log_distance(*_mel_spectra(reference, estimate, sampling_rate, 1024, 80))


def mel_distance_multiscale(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Mean of the `mel_distance` at the seven scales of DAC (https://github.com/descriptinc/descript-audio-codec,
    conf/final): windows of 32 to 2048 samples, hop a quarter, 5 to 320 mels."""
    scales = MULTISCALE_MELS.items()
    spectra = (_mel_spectra(reference, estimate, sampling_rate, *scale) for scale in scales)
    return sum(_log_distance(*pair) for pair in spectra) / len(scales)


def codec_superb_mel(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """MEL of Codec-SUPERB (https://github.com/voidful/Codec-SUPERB, SoundCodec/metrics.py): mean absolute difference
    of mel magnitudes plus that of their log10 squares, summed over windows of 2048 samples with 150 mels and 512 with
    80."""
    scales = CODEC_SUPERB_MELS.items()
    return sum(_codec_superb(*_mel_spectra(reference, estimate, sampling_rate, *scale)) for scale in scales)


def codec_superb_stft(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """STFT of Codec-SUPERB: `codec_superb_mel` on magnitudes instead of mels."""
    return sum(_codec_superb(*_spectra(reference, estimate, sampling_rate, length)) for length in CODEC_SUPERB_MELS)


def log_spectral_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Log-spectral distance, dB: the root mean square over frequencies of the difference of 20 log10 magnitudes, at
    least 1e-5, mean over frames (Gray and Markel 1976, doi:10.1109/TASSP.1976.1162849, with p = 2). Frames as in
    `stft_distance`."""
    reference, estimate = _spectra(reference, estimate, sampling_rate, 1024)
    difference_db = 20 * (_log10(reference) - _log10(estimate))
    return difference_db.square().mean(dim=0).sqrt().mean().item()


def f0_correlation(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Pearson correlation of log F0 over the frames of 5 ms that are voiced in both. Not defined below 0.1 s of them,
    nor for a monotone. F0 is WORLD's (DIO and StoneMask, 71 to 800 Hz, https://github.com/mmorise/World)."""
    reference_hz, estimate_hz = _f0_hz(reference, estimate, sampling_rate)
    voiced = (reference_hz > 0) & (estimate_hz > 0)
    if voiced.sum() < MIN_VOICED_FRAMES:
        raise ValueError(f"{voiced.sum()} frames are voiced in both clips: at least {MIN_VOICED_FRAMES} are wanted")
    logarithms = np.log(np.stack([reference_hz[voiced], estimate_hz[voiced]]))
    if not np.ptp(logarithms, axis=1).all():
        raise ValueError("F0 is constant: its correlation is not defined")
    return np.corrcoef(logarithms)[0, 1].item()


def voicing_error(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Share of the frames of 5 ms, from 0 to 1, that are voiced in one waveform only, by the F0 of `f0_correlation`.
    Not defined below 0.1 s of voice in the reference."""
    reference_hz, estimate_hz = _f0_hz(reference, estimate, sampling_rate)
    num_voiced = (reference_hz > 0).sum()
    if num_voiced < MIN_VOICED_FRAMES:
        raise ValueError(f"{num_voiced} frames of the reference are voiced: at least {MIN_VOICED_FRAMES} are wanted")
    return ((reference_hz > 0) != (estimate_hz > 0)).mean().item()


def _mean_over_channels(results: list[tuple[dict, dict]]) -> tuple[dict[str, float], dict[str, str]]:
    """What `compute_metrics` returns, of several channels; NaN stays NaN."""
    values, reasons = zip(*results)
    means = {name: float(np.mean([each[name] for each in values])) for name in values[0]}
    first_reasons = {
        name: text
        for number, each in reversed(list(enumerate(reasons, 1)))
        for name, text in ((name, f"channel {number}: {text}") for name, text in each.items())
    }
    return means, first_reasons


# The best of the raw PESQ score, 4.5, through the mappings of ITU-T P.862.2 and P.862.1.
_BEST_PESQ_WB = 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224))
_BEST_PESQ_NB = 0.999 + 4 / (1 + math.exp(-1.4945 * 4.5 + 4.6607))

METRICS = {
    "pesq_wb": Metric(pesq_wb, "MOS-LQO", "higher", _BEST_PESQ_WB, "pesq", min_sampling_rate=16000),
    "pesq_nb": Metric(pesq_nb, "MOS-LQO", "higher", _BEST_PESQ_NB, "pesq", min_sampling_rate=8000),
    "stoi": Metric(stoi, "", "higher", 1.0, "pystoi", min_sampling_rate=8000),
    "estoi": Metric(estoi, "", "higher", 1.0, "pystoi", min_sampling_rate=8000),
    "si_sdr_db": Metric(si_sdr_db, "dB", "higher", math.inf),
    "sdr_db": Metric(sdr_db, "dB", "higher", math.inf),
    "stft_distance": Metric(stft_distance, "log10", "lower", 0.0),
    "mel_distance": Metric(mel_distance, "log10", "lower", 0.0),
    "mel_distance_multiscale": Metric(mel_distance_multiscale, "log10", "lower", 0.0),
    "codec_superb_mel": Metric(codec_superb_mel, "", "lower", 0.0),
    "codec_superb_stft": Metric(codec_superb_stft, "", "lower", 0.0),
    "log_spectral_distance": Metric(log_spectral_distance, "dB", "lower", 0.0),
    "f0_correlation": Metric(f0_correlation, "", "higher", 1.0, "pyworld", min_sampling_rate=8000),
    "voicing_error": Metric(voicing_error, "", "lower", 0.0, "pyworld", min_sampling_rate=8000),
}


def _pesq(reference, estimate, sampling_rate: int, metric_rate: int, mode: str) -> float:
    package = import_package("pesq", "evaluation")
    pair = check_waveforms(reference, estimate, sampling_rate, metric_rate)
    for audio, name in zip(pair, ("reference", "estimate")):
        check_not_silent(audio, name)
    try:
        return float(package.pesq(metric_rate, *(resample(audio, sampling_rate, metric_rate) for audio in pair), mode))
    except package.PesqError as error:
        raise ValueError(f"PESQ: {error.args[0].decode()}") from error


def _stoi(reference, estimate, sampling_rate: int, extended: bool) -> float:
    package = import_package("pystoi", "evaluation")
    reference, estimate = check_waveforms(reference, estimate, sampling_rate, 8000)
    check_not_silent(reference, "reference")
    too_short = "less than about 0.4 s of speech in the reference: STOI is not defined"
    if len(reference) < 0.4 * sampling_rate:
        raise ValueError(too_short)
    with warnings.catch_warnings(), _seeded():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(package.stoi(reference, estimate, sampling_rate, extended=extended))
        except RuntimeWarning as warning:
            raise ValueError(too_short) from warning


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers for the noise that pystoi adds to ESTOI's spectra, and the state of before afterwards."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _ratio_db(signal: np.ndarray, distortion: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.divide(signal @ signal, distortion @ distortion)))


def _spectra(reference, estimate, sampling_rate: int, window_length: int) -> list[torch.Tensor]:
    """Magnitudes `(window_length // 2 + 1, num_frames)` of both."""
    return [_magnitudes(audio, window_length) for audio in check_waveforms(reference, estimate, sampling_rate)]


def _magnitudes(audio: np.ndarray, window_length: int) -> torch.Tensor:
    if len(audio) <= window_length // 2:
        raise ValueError(f"{len(audio)} samples: more than {window_length // 2}, half a window, are wanted")
    window = torch.hann_window(window_length, dtype=torch.float64)
    return torch.stft(
        torch.from_numpy(audio), window_length, window_length // 4, window=window, return_complex=True
    ).abs()


def _mel_spectra(reference, estimate, sampling_rate: int, window_length: int, num_mels: int) -> list[torch.Tensor]:
    """Mel magnitudes `(num_mels, num_frames)` of both."""
    filters = mel_filters(sampling_rate, window_length, num_mels)
    return [filters @ magnitudes for magnitudes in _spectra(reference, estimate, sampling_rate, window_length)]


@lru_cache
def mel_filters(sampling_rate: int, window_length: int, num_mels: int) -> torch.Tensor:
    """Slaney's mel filters from 0 Hz to half the sampling rate: float64 `(num_mels, window_length // 2 + 1)`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")  # part of the definition
        filters = mel_filter_bank(
            window_length // 2 + 1, num_mels, 0.0, sampling_rate / 2, sampling_rate, norm="slaney", mel_scale="slaney"
        )
    return torch.from_numpy(filters.T.copy())


def _log10(magnitudes: torch.Tensor) -> torch.Tensor:
    return magnitudes.clamp(min=FLOOR).log10()


def _log_distance(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    return (_log10(reference) - _log10(estimate)).abs().mean().item()


def _codec_superb(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    return 2 * _log_distance(reference, estimate) + (reference - estimate).abs().mean().item()


def _f0_hz(reference, estimate, sampling_rate: int) -> list[np.ndarray]:
    """F0 in Hz of both, one value for each 5 ms, 0 where unvoiced. DIO, as Harvest calls nearly everything voiced."""
    pyworld = import_package("pyworld", "evaluation")
    pair = check_waveforms(reference, estimate, sampling_rate, 8000)
    return [pyworld.stonemask(audio, *pyworld.dio(audio, sampling_rate), sampling_rate) for audio in pair]
