"""DNSMOS, ViSQOL and speaker similarity, the real networks on real speech."""

import sys

import numpy as np
import pytest

from clips import ENGLISH, GERMAN
from fsqcodec.audio import read_audio, resample
from fsqcodec.evaluation.learned_metrics import LEARNED_METRICS
from fsqcodec.evaluation.metrics import compute_metrics

for package in ("speechmos", "visqol", "ai_edge_litert", "resemblyzer"):
    pytest.importorskip(package, reason=f"{package} is absent: pip install 'fsqcodec[learned-metrics]'")

CLIP = read_audio(ENGLISH, 16000)[8000:56000]  # 3 s
NOISE = np.random.default_rng(0).standard_normal(len(CLIP)).astype(np.float32) * CLIP.std()


def values(reference, estimate, sampling_rate=16000) -> dict[str, float]:
    values, reasons = compute_metrics(reference, estimate, sampling_rate, LEARNED_METRICS)
    assert not reasons
    return values


def test_more_noise_is_worse():
    scores = [values(CLIP, estimate) for estimate in (CLIP.copy(), CLIP + NOISE / 10, CLIP + NOISE)]
    for name in LEARNED_METRICS:
        perfect, better, worse = (score[name] for score in scores)
        assert perfect > better > worse, name
        assert perfect == pytest.approx(LEARNED_METRICS[name].perfect or perfect)


def test_dnsmos_is_the_packages_own_and_hears_the_estimate_alone():
    from speechmos import dnsmos

    expected = dnsmos.run((CLIP + NOISE / 10).astype(np.float64), 16000)
    for reference in (CLIP, np.zeros_like(CLIP)):
        scores, _ = compute_metrics(reference, CLIP + NOISE / 10, 16000, LEARNED_METRICS)
        assert scores["dnsmos_overall"] == expected["ovrl_mos"]
        assert scores["dnsmos_signal"] == expected["sig_mos"]
        assert scores["dnsmos_background"] == expected["bak_mos"]


def test_visqol_is_the_packages_own_with_the_lattice_model():
    import visqol

    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=True)
    expected = api.measure_from_arrays(CLIP.astype(np.float64), (CLIP + NOISE / 10).astype(np.float64), 16000)
    assert LEARNED_METRICS["visqol"].function(CLIP, CLIP + NOISE / 10, 16000) == expected.moslqo


def test_another_speaker_is_less_similar():
    similarity = LEARNED_METRICS["speaker_similarity"].function
    german = read_audio(GERMAN, 16000)[8000:56000]
    same = similarity(CLIP, read_audio(ENGLISH, 16000)[56000:104000], 16000)
    assert same > similarity(CLIP, german, 16000) + 0.15


def test_another_rate_is_resampled():
    high = resample(CLIP, 16000, 48000)
    noisy = resample(CLIP + NOISE / 10, 16000, 48000)
    assert values(high, noisy, 48000) == pytest.approx(values(CLIP, CLIP + NOISE / 10), abs=0.05)


def test_what_is_not_defined_is_nan_with_its_reason():
    silence = np.zeros_like(CLIP)
    assert set(compute_metrics(CLIP, silence, 16000, LEARNED_METRICS)[1].values()) == {
        "estimate is silent: the metric is not defined"
    }
    for name in LEARNED_METRICS:
        assert "at least 16000 Hz" in compute_metrics(CLIP, CLIP, 8000, [name])[1][name]
        assert "equal lengths" in compute_metrics(CLIP, CLIP[1:], 16000, [name])[1][name]
    hiss = np.random.default_rng(0).standard_normal(4000) * 1e-5
    assert "reference holds no speech" in str(compute_metrics(hiss, hiss, 16000, ["speaker_similarity"])[1])


@pytest.mark.parametrize("name, module", [("dnsmos_signal", "speechmos.dnsmos"), ("speaker_similarity", "resemblyzer")])
def test_a_package_that_is_absent_is_named_with_its_extra(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'fsqcodec\[learned-metrics\]'"):
        compute_metrics(CLIP, CLIP + 0.001 * NOISE, 16000, [name])


def test_visqol_refuses_to_run_without_its_lattice_model(monkeypatch):
    from fsqcodec.evaluation import learned_metrics

    learned_metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"ai_edge_litert.*learned-metrics"):
        compute_metrics(CLIP, CLIP, 16000, ["visqol"])


def test_the_table_holds_facts():
    for name, metric in LEARNED_METRICS.items():
        assert metric.function.__name__ == name and metric.package_version
