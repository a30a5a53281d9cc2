"""`measure_latency` on models saved to disk, its files and its table."""

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

from fsqcodec import CodecFeatureExtractor
from fsqcodec.evaluation import latency
from fsqcodec.evaluation.dependence import Dependence, noise
from fsqcodec.evaluation.latency import latency_table, measure_latency
from fsqcodec.packing import token_digest
from small_configs import small_model


@pytest.fixture(scope="module", autouse=True)
def short_clips():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(latency, "CLIP_SECONDS", 0.5)
        monkeypatch.setattr(latency, "MEMORY_SECONDS", (1.0,))
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Folder of the results, report and model."""
    folder, output_dir = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("results") / "latency"
    model = small_model("l3ac-fine")
    model.save_pretrained(folder)
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return output_dir, measure_latency(folder, output_dir, "cpu"), model


def test_report_says_what_was_measured_and_agrees_with_the_configuration(measured):
    output_dir, report, model = measured
    config = model.config
    assert json.loads((output_dir / "latency.json").read_text()) == report
    assert report["weights"] == "loaded"
    assert report["token_digest"] == token_digest(model)
    assert report["machine"]["device"] == "cpu"
    assert report["algorithmic_latency_ms"] == 1000 * config.algorithmic_latency
    assert report["disagreements"] == []
    for part, look_ahead in (
        ("encoder", config.encoder_lookahead_samples),
        ("decoder", config.decoder_lookahead_samples),
    ):
        assert report[part]["derived"]["look_ahead_samples"] == look_ahead
        assert report[part]["derived"]["look_ahead_ms"] == pytest.approx(look_ahead / 16)
    gradients = report["encoder"]["gradients"]
    for side in ("look_back_samples", "look_ahead_samples"):
        assert gradients["share_90"][side] <= gradients["share_99"][side] <= gradients["farthest"][side]
    assert not gradients["limited_by_clip"]
    assert report["decoder"]["gradients"]["limited_by_clip"]  # through the statistics
    assert report["cost"]["memory"].keys() == {"1 s"}


def test_table_has_the_figures_of_the_report(measured):
    _, report, model = measured
    lines = {line[:28].strip(): line[28:] for line in latency_table(report).splitlines()}
    assert lines["algorithmic latency"] == f"{1000 * model.config.algorithmic_latency:.1f} ms"
    assert lines["token digest"] == token_digest(model)
    assert lines["derived, at most"].split()[0] == str(model.config.decoder_context_samples)
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in lines["parameters"]
    assert lines["disagreements"] == "none"
    decode = report["cost"]["multiply_accumulates"]["decode"]
    assert f"decode {decode / 1e9:.2f} G for 0.5 s" in lines["multiply-accumulates"]


def test_plot_shows_frame_window_and_energy(measured):
    pixels = (255 * imread(measured[0] / "latency.png")[..., :3]).round()
    upper, lower = np.array_split(pixels, 2)
    for half in (upper, lower):
        for colour in ("#f2a33a", "#dfe9f5", "#16365c", "#2a9d57"):
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (half == rgb).all(axis=-1).sum() > 20, colour


def test_what_lies_outside_the_derived_window_is_reported():
    energy = np.zeros(100)
    energy[[5, 50, 80]] = 1
    dependences = {
        "encoder": {"gradients": Dependence(energy, -50, 1, 10, 1000), "changes": Dependence(energy, -50, 1, 10, 1000)},
        "decoder": {"gradients_without_statistics": Dependence(energy, -50, 1, 10, 1000)},
    }
    derived = {"encoder": (45, 21), "decoder": (45, 20)}
    (sentence,) = latency._disagreements(dependences, derived)
    assert sentence == (
        "decoder, gradients without statistics: 45 samples back and 21 ahead, the configuration derives at most 45 "
        "and 20"
    )
    assert len(list(latency._disagreements(dependences, {**derived, "encoder": (44, 21)}))) == 3


def test_another_codec_is_measured_without_gradients(tmp_path):
    config = EncodecConfig(
        hidden_size=16,
        num_filters=4,
        codebook_size=64,
        codebook_dim=16,
        target_bandwidths=[36.0],
        upsampling_ratios=[4, 2],
    )
    model = EncodecModel(config)
    with torch.no_grad():  # untrained, all entries of a codebook are equal
        latents = model.encoder(torch.from_numpy(noise(8 * 64, 24000))[None, None])[0].T
        model.quantizer.layers[0].codebook.embed.copy_(latents)
    model.save_pretrained(tmp_path / "encodec")
    EncodecFeatureExtractor(sampling_rate=24000).save_pretrained(tmp_path / "encodec")
    report = measure_latency(tmp_path / "encodec", tmp_path, "cpu")
    assert report["algorithmic_latency_ms"] is None
    assert report["token_digest"] is None
    assert report["cost"]["multiply_accumulates"] is None
    for part in ("encoder", "decoder"):
        assert report[part]["derived"] is None
        assert set(report[part]) == {"derived", "changes"}
    reach = report["encoder"]["changes"]["farthest"]
    assert (reach["look_ahead_samples"], reach["look_back_samples"] > 0) == (0, True)  # its convolutions are causal
    assert "gradients" not in latency_table(report)
    assert (tmp_path / "latency.png").exists()


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        measure_latency(tmp_path / "nowhere", tmp_path / "results")
    assert not (tmp_path / "results").exists()
