"""Metrics against closed forms, the packages they come from and known degradations of real speech."""

import math
import sys

import librosa
import numpy as np
import pesq
import pystoi
import pytest
import torch
from scipy.signal import butter, sosfiltfilt
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_noise_ratio

from clips import speech
from fsqcodec.audio import resample
from fsqcodec.evaluation.metrics import METRICS, compute_metrics, f0_correlation, voicing_error

CLIP = speech()[8000:56000].astype(np.float64)  # 3 s


def value(name: str, reference: np.ndarray, estimate: np.ndarray, sampling_rate: int = 16000) -> float:
    return METRICS[name].function(reference, estimate, sampling_rate)


def with_noise(snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(CLIP))
    return CLIP + noise * np.linalg.norm(CLIP) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)


def low_passed(cutoff_hz: float) -> np.ndarray:
    return sosfiltfilt(butter(8, cutoff_hz, fs=16000, output="sos"), CLIP)


DEGRADATIONS = {
    "noise": [with_noise(snr_db) for snr_db in (30, 20, 10, 0)],
    "low-pass": [low_passed(cutoff_hz) for cutoff_hz in (3000, 2000, 1000)],
    "clipping": [np.clip(CLIP, -peak, peak) for peak in np.abs(CLIP).max() * np.array([0.25, 0.1, 0.03])],
    "delay": [np.roll(CLIP, delay) for delay in (1, 2, 4, 8)],
}
F0_METRICS = {"f0_correlation", "voicing_error"}
NOT_ORDERED = {  # f0_correlation jumps where DIO takes another octave
    "noise": {"f0_correlation"},
    "low-pass": F0_METRICS,  # F0 lies below the cut-off
    "clipping": {"f0_correlation"},
    "delay": F0_METRICS | {"pesq_wb", "pesq_nb"},  # PESQ aligns by itself
}


@pytest.mark.parametrize("sampling_rate", [16000, 24000])
@pytest.mark.parametrize("name", METRICS)
def test_an_estimate_that_equals_the_reference_is_perfect(name, sampling_rate):
    clip = resample(CLIP, 16000, sampling_rate)
    assert value(name, clip, clip.copy(), sampling_rate) == pytest.approx(METRICS[name].perfect, abs=1e-4)


@pytest.mark.parametrize("name, kind", [(n, k) for k in DEGRADATIONS for n in METRICS if n not in NOT_ORDERED[k]])
def test_more_degradation_is_worse(name, kind):
    values = [METRICS[name].perfect] + [value(name, CLIP, estimate) for estimate in DEGRADATIONS[kind]]
    falling = sorted(values, reverse=METRICS[name].better == "higher")
    assert values == falling and len(set(values)) == len(values)


@pytest.mark.parametrize("sampling_rate", [16000, 24000])
@pytest.mark.parametrize("snr_db", [20, 0])
def test_values_are_those_of_the_packages(snr_db, sampling_rate):
    pair = [resample(audio, 16000, sampling_rate) for audio in (CLIP, with_noise(snr_db))]
    wide = [resample(audio, sampling_rate, 16000) for audio in pair]
    estimate, reference = torch.from_numpy(pair[1]), torch.from_numpy(pair[0])
    expected = {
        "pesq_wb": pesq.pesq(16000, *wide, "wb"),
        "pesq_nb": pesq.pesq(16000, *wide, "nb"),
        "stoi": pystoi.stoi(*pair, sampling_rate),
        "estoi": pystoi.stoi(*pair, sampling_rate, extended=True),
        "si_sdr_db": scale_invariant_signal_distortion_ratio(estimate, reference, zero_mean=True).item(),
        "sdr_db": signal_noise_ratio(estimate, reference).item(),
    }
    values, reasons = compute_metrics(*pair, sampling_rate, expected)
    assert values == pytest.approx(expected, rel=1e-6) and not reasons


def test_narrow_band_audio_is_scored_at_8_khz():
    reference = resample(CLIP, 16000, 8000)
    estimate = reference + 0.01 * np.random.default_rng(0).standard_normal(len(reference))
    assert value("pesq_nb", reference, estimate, 8000) == pytest.approx(
        pesq.pesq(8000, reference, estimate, "nb"), rel=1e-6
    )


def librosa_mels(audio: np.ndarray, window_length: int, num_mels: int) -> np.ndarray:
    return librosa.feature.melspectrogram(
        y=audio,
        sr=16000,
        n_fft=window_length,
        hop_length=window_length // 4,
        n_mels=num_mels,
        power=1.0,
        pad_mode="reflect",
        dtype=np.float64,
    )


def test_mel_distances_are_those_of_librosas_mels():
    pair = CLIP, with_noise(10)

    def differences(window_length, num_mels) -> tuple[float, float]:
        """Of log10 mels and of mels."""
        reference, estimate = (librosa_mels(audio, window_length, num_mels) for audio in pair)
        logarithms = np.log10(np.maximum(reference, 1e-5)) - np.log10(np.maximum(estimate, 1e-5))
        return np.abs(logarithms).mean(), np.abs(reference - estimate).mean()

    assert value("mel_distance", *pair) == pytest.approx(differences(1024, 80)[0], rel=1e-5)
    scales = [differences(2**exponent, 5 * 2 ** (exponent - 5))[0] for exponent in range(5, 12)]
    assert value("mel_distance_multiscale", *pair) == pytest.approx(np.mean(scales), rel=1e-5)
    superb = [2 * logarithms + mels for logarithms, mels in (differences(2048, 150), differences(512, 80))]
    assert value("codec_superb_mel", *pair) == pytest.approx(sum(superb), rel=1e-5)


def test_a_gain_moves_spectra_by_its_logarithm():
    noise = np.random.default_rng(0).standard_normal(16000)  # far above the floor everywhere
    pair = noise, noise / 10
    for name in ("stft_distance", "mel_distance", "mel_distance_multiscale"):
        assert value(name, *pair) == pytest.approx(1, abs=1e-3)
    assert value("log_spectral_distance", *pair) == pytest.approx(20, abs=1e-2)
    magnitudes = sum(np.abs(librosa.stft(noise, n_fft=n, pad_mode="reflect")).mean() for n in (2048, 512))
    assert value("codec_superb_stft", *pair) == pytest.approx(2 * 2 + 0.9 * magnitudes, rel=1e-3)


def test_si_sdr_forgives_gain_and_offset_and_sdr_does_not():
    estimate = with_noise(10)
    assert value("si_sdr_db", CLIP, 0.3 * estimate - 0.1) == pytest.approx(value("si_sdr_db", CLIP, estimate))
    assert value("sdr_db", CLIP, 0.3 * estimate) < value("sdr_db", CLIP, estimate) - 3


def glide(start_hz: float, end_hz: float) -> np.ndarray:
    """Three seconds of a pulse-like voice whose F0 goes from one frequency to the other."""
    phase = 2 * np.pi * np.cumsum(np.geomspace(start_hz, end_hz, 48000)) / 16000
    return sum(np.cos(number * phase) for number in range(1, 11)) / 20


def test_f0_follows_a_known_voice():
    rising, falling = glide(120, 240), glide(240, 120)
    assert f0_correlation(rising, glide(150, 300), 16000) == pytest.approx(1, abs=0.01)
    assert f0_correlation(rising, falling, 16000) == pytest.approx(-1, abs=0.02)
    half_noise = np.where(np.arange(48000) < 24000, rising, 0.1 * np.random.default_rng(0).standard_normal(48000))
    for pair in ((rising, half_noise), (half_noise, rising)):
        assert voicing_error(*pair, 16000) == pytest.approx(0.5, abs=0.03)


SILENCE = np.zeros_like(CLIP)


@pytest.mark.parametrize(
    "names, reference, estimate, sampling_rate, reason",
    [
        ("pesq_wb pesq_nb", CLIP[:3000], CLIP[:3000], 16000, "1/4 of a second"),
        ("pesq_wb pesq_nb", np.pad(CLIP[:1000], 20000), np.pad(CLIP[:1000], 20000), 16000, "No utterances detected"),
        ("pesq_wb pesq_nb stoi estoi si_sdr_db sdr_db", SILENCE, CLIP, 16000, "reference is silent"),
        ("pesq_wb pesq_nb si_sdr_db", CLIP, SILENCE, 16000, "estimate is silent"),
        ("pesq_wb", CLIP, CLIP, 8000, "at least 16000 Hz"),
        ("pesq_nb stoi estoi f0_correlation voicing_error", CLIP, CLIP, 4000, "at least 8000 Hz"),
        ("stoi estoi", CLIP[:6000], CLIP[:6000], 16000, "0.4 s of speech"),
        ("stoi estoi", np.pad(CLIP[:3000], 20000), np.pad(CLIP[:3000], 20000), 16000, "0.4 s of speech"),
        ("f0_correlation", SILENCE, CLIP, 16000, "0 frames are voiced"),
        ("stft_distance mel_distance log_spectral_distance", CLIP[:512], CLIP[:512], 16000, "more than 512"),
        ("mel_distance_multiscale codec_superb_mel", CLIP[:1024], CLIP[:1024], 16000, "more than 1024"),
    ],
)
def test_a_metric_that_is_not_defined_is_nan_with_its_reason(names, reference, estimate, sampling_rate, reason):
    values, reasons = compute_metrics(reference, estimate, sampling_rate, names.split())
    assert all(math.isnan(values[name]) and reason in reasons[name] for name in names.split())


@pytest.mark.parametrize(
    "reference, estimate, reason",
    [
        (CLIP, CLIP[:-1], "48000 samples, estimate 47999: equal lengths"),
        (CLIP, np.where(np.arange(len(CLIP)) == 5, np.nan, CLIP), "estimate has NaN"),
        (np.where(np.arange(len(CLIP)) == 5, np.inf, CLIP), CLIP, "reference has NaN or infinite"),
        (CLIP[:0], CLIP[:0], r"shape \(0,\)"),
        (CLIP[None], CLIP[None], r"shape \(1, 48000\)"),
        ((CLIP * 32768).astype(np.int16), CLIP, "reference is int16: floats"),
    ],
)
def test_every_metric_refuses_what_is_no_pair_of_waveforms(reference, estimate, reason):
    for metric in METRICS.values():
        with pytest.raises(ValueError, match=reason):
            metric.function(reference, estimate, 16000)


def test_one_metric_that_fails_leaves_the_others():
    values, reasons = compute_metrics(CLIP, SILENCE, 16000, ["si_sdr_db", "mel_distance"])
    assert list(values) == ["si_sdr_db", "mel_distance"] and list(reasons) == ["si_sdr_db"]
    assert values["mel_distance"] == value("mel_distance", CLIP, SILENCE)


def test_inputs_stay_as_they_are():
    pair = CLIP.astype(np.float32), with_noise(10).astype(np.float32)
    before = [audio.copy() for audio in pair]
    compute_metrics(*pair, 16000, METRICS)
    assert all(np.array_equal(*audio) for audio in zip(pair, before))


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ValueError, match="no metric 'mos'.*there are pesq_wb"):
        compute_metrics(CLIP, CLIP, 16000, ["stoi", "mos"])


def test_a_package_that_is_absent_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(ImportError, match=r"pip install 'fsqcodec\[evaluation\]'"):
        compute_metrics(CLIP, CLIP, 16000, ["pesq_wb"])


def test_the_table_holds_facts():
    assert METRICS["pesq_wb"].package_version == "0.0.4"
    for name, metric in METRICS.items():
        assert metric.function.__name__ == name and metric.package_version
        if metric.min_sampling_rate:
            _, reasons = compute_metrics(CLIP, CLIP, metric.min_sampling_rate - 1, [name])
            assert f"at least {metric.min_sampling_rate} Hz" in reasons[name]
