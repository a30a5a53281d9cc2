"""The metrics through Hugging Face evaluate, without network."""

import math
import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest

from clips import speech
from fsqcodec.evaluation import evaluate_modules
from fsqcodec.evaluation.evaluate_modules import load_metric
from fsqcodec.evaluation.metrics import METRICS

REFERENCES = [speech()[8000:40000], speech()[48000:90000], np.zeros(16000, np.float32)]
PREDICTIONS = [np.clip(clip, -0.05, 0.05) for clip in REFERENCES]
CLIPS = {"references": REFERENCES, "predictions": PREDICTIONS, "sampling_rate": 16000}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")


@pytest.mark.parametrize("name", ["pesq_wb", "si_sdr_db"])
def test_clips_that_are_not_defined_are_counted_and_left_out_of_the_mean(name):
    result = load_metric(name).compute(**CLIPS)
    expected = [METRICS[name].function(*pair, 16000) for pair in zip(REFERENCES[:2], PREDICTIONS[:2])]
    assert list(result) == [name, f"{name}_per_clip", f"{name}_failed"]
    assert result[f"{name}_per_clip"][:2] == pytest.approx(expected)
    assert math.isnan(result[f"{name}_per_clip"][2]) and result[f"{name}_failed"] == 1
    assert result[name] == pytest.approx(np.mean(expected))


def test_nothing_defined_is_nan():
    result = load_metric("stoi").compute(references=REFERENCES[2:], predictions=REFERENCES[2:], sampling_rate=16000)
    assert math.isnan(result["stoi"]) and result["stoi_failed"] == 1


def test_clips_can_be_added_one_by_one():
    metric = load_metric("mel_distance")
    for reference, prediction in zip(REFERENCES, PREDICTIONS):
        metric.add(reference=reference, prediction=prediction)
    assert metric.compute(sampling_rate=16000) == load_metric("mel_distance").compute(**CLIPS)


def test_metrics_combine():
    combined = evaluate.combine([load_metric("stoi"), load_metric("mel_distance")]).compute(**CLIPS)
    apart = load_metric("stoi").compute(**CLIPS) | load_metric("mel_distance").compute(**CLIPS)
    assert str(combined) == str(apart)  # NaN equals itself as text


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="no metric 'mos': there are pesq_wb"):
        load_metric("mos")
    with pytest.raises(ValueError, match="no metric 'default'"):
        evaluate.load(evaluate_modules.__file__)


def test_evaluate_loads_the_installed_script_in_a_fresh_process_offline(tmp_path):
    code = (
        "import evaluate, numpy; from fsqcodec.evaluation import evaluate_modules\n"
        "metric = evaluate.load(evaluate_modules.__file__, 'sdr_db')\n"
        "ones = numpy.linspace(-1, 1, 1000)\n"
        "print(metric.compute(references=[ones], predictions=[ones * 0.9], sampling_rate=16000)['sdr_db'])\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(20, abs=1e-4)
