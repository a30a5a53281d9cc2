"""Metrics that are networks: DNSMOS, ViSQOL and the similarity of speakers.

All work without network, with weights from their packages: `pip install 'fsqcodec[learned-metrics]'`, without which
they raise `ImportError`. Functions take and raise what those of `metrics` do; all hear 16 kHz and need at least that.
"""

from functools import lru_cache

import numpy as np
import torch

from ..audio import resample
from .metric import Metric, check_not_silent, check_waveforms, import_package

SAMPLING_RATE = 16000
EXTRA = "learned-metrics"


def dnsmos_overall(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Overall quality of the estimate alone, MOS from 1 to 5, as a network hears it (DNSMOS P.835, Reddy et al. 2022,
    arXiv:2110.01763; package speechmos). It hears 9 s, and repeats shorter clips. Not defined for silence."""
    return _dnsmos(reference, estimate, sampling_rate)["ovrl_mos"]


def dnsmos_signal(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Quality of the speech in the estimate, MOS from 1 to 5, as `dnsmos_overall`."""
    return _dnsmos(reference, estimate, sampling_rate)["sig_mos"]


def dnsmos_background(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Quality of what is behind the speech in the estimate, MOS from 1 to 5, as `dnsmos_overall`."""
    return _dnsmos(reference, estimate, sampling_rate)["bak_mos"]


def visqol(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """ViSQOL v3 in speech mode, MOS-LQO from 1 to 5 (Chinen et al. 2020, arXiv:2004.09584; package visqol-python), with
    the lattice model of the original: equal waveforms get 3.9 to 4.7, by the clip. It aligns by itself. Not defined for
    silence."""
    reference, estimate = _both_heard(reference, estimate, sampling_rate).values()
    num_threads = torch.get_num_threads()
    try:
        return float(_visqol_api().measure_from_arrays(reference, estimate, SAMPLING_RATE).moslqo)
    finally:  # after DNSMOS it leaves torch with other threads than before, many times slower on a busy machine
        torch.set_num_threads(num_threads)


def speaker_similarity(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """Cosine of the speaker embeddings, from 0 to 1 (GE2E, Wan et al. 2018, arXiv:1710.10467; package Resemblyzer, its
    voice activity detection included). Not defined where it finds no speech."""
    resemblyzer = import_package("resemblyzer", EXTRA)
    embeddings = []
    for name, audio in _both_heard(reference, estimate, sampling_rate).items():
        speech = resemblyzer.preprocess_wav(audio)
        if not len(speech):
            raise ValueError(f"{name} holds no speech: the metric is not defined")
        embeddings.append(_voice_encoder().embed_utterance(speech))
    return float(embeddings[0] @ embeddings[1])


LEARNED_METRICS = {
    "dnsmos_overall": Metric(dnsmos_overall, "MOS", "higher", None, "speechmos", SAMPLING_RATE),
    "dnsmos_signal": Metric(dnsmos_signal, "MOS", "higher", None, "speechmos", SAMPLING_RATE),
    "dnsmos_background": Metric(dnsmos_background, "MOS", "higher", None, "speechmos", SAMPLING_RATE),
    "visqol": Metric(visqol, "MOS-LQO", "higher", None, "visqol-python", SAMPLING_RATE),
    "speaker_similarity": Metric(speaker_similarity, "", "higher", 1.0, "Resemblyzer", SAMPLING_RATE),
}


def _heard(audio: np.ndarray, name: str, sampling_rate: int) -> np.ndarray:
    """At 16 kHz in [-1, 1], as a file would hold it."""
    check_not_silent(audio, name)
    return np.clip(resample(audio, sampling_rate, SAMPLING_RATE), -1, 1)


def _both_heard(reference, estimate, sampling_rate: int) -> dict[str, np.ndarray]:
    reference, estimate = check_waveforms(reference, estimate, sampling_rate, SAMPLING_RATE)
    pair = {"reference": reference, "estimate": estimate}
    return {name: _heard(audio, name, sampling_rate) for name, audio in pair.items()}


def _dnsmos(reference, estimate, sampling_rate: int) -> dict[str, float]:
    _, estimate = check_waveforms(reference, estimate, sampling_rate, SAMPLING_RATE)
    return _dnsmos_of_bytes(_heard(estimate, "estimate", sampling_rate).tobytes())


@lru_cache(maxsize=1)  # one run of the network gives all three values of a clip
def _dnsmos_of_bytes(speech: bytes) -> dict[str, float]:
    scores = import_package("speechmos.dnsmos", EXTRA).run(np.frombuffer(speech, np.float64), SAMPLING_RATE)
    return {name: float(score) for name, score in scores.items()}


@lru_cache
def _visqol_api():
    """Without ai-edge-litert the package maps by a polynomial, 1 to 2 MOS too high: the lattice, or an error."""
    import_package("ai_edge_litert", EXTRA)
    api = import_package("visqol", EXTRA).VisqolApi()
    api.create(mode="speech", use_lattice_model=True)
    return api


@lru_cache
def _voice_encoder():
    return import_package("resemblyzer", EXTRA).VoiceEncoder("cpu", verbose=False)
