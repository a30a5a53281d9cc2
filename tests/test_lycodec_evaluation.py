"""Stereo codecs in evaluate and tokenize: both channels in, metrics averaged over them, tokens with their digest."""

import json

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

from fsqcodec import CodecFeatureExtractor, LycodecFeatureExtractor
from fsqcodec.codecs import load_codec
from fsqcodec.evaluation.alignment import align
from fsqcodec.evaluation.metrics import compute_metrics, si_sdr_db, stft_distance
from fsqcodec.evaluation.report import write_reports
from fsqcodec.evaluation.robustness import robustness
from fsqcodec.evaluation.run import Settings, evaluate
from fsqcodec.lm import AudioVocabulary
from fsqcodec.packing import token_digest
from fsqcodec.tokenization import run as tokenization
from fsqcodec.tokenization.dataset_map import TokenizeAudio
from lycodec_models import small_lycodec, stereo_clip
from small_configs import small_model

RATE = 48000
LENGTHS = {"long.wav": 9000, "short.wav": 4000, "mono.wav": 6000}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A stereo codec, a mono one, and clips of both kinds."""
    folder = tmp_path_factory.mktemp("stereo")
    small_lycodec(noise_level=1.0).save_pretrained(folder / "stereo")
    LycodecFeatureExtractor().save_pretrained(folder / "stereo")
    small_model("frames-plain").save_pretrained(folder / "mono")
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder / "mono")
    (folder / "clips").mkdir()
    for seed, (name, length) in enumerate(LENGTHS.items()):
        clip = stereo_clip(length, seed).T.numpy()
        soundfile.write(folder / "clips" / name, clip[:, 0] if name == "mono.wav" else clip, RATE)
    return folder


def clip_of(folder, name) -> np.ndarray:
    audio, _ = soundfile.read(folder / "clips" / name, dtype="float32", always_2d=True)
    return np.repeat(audio.T, 2 // audio.shape[1], axis=0)


def test_a_metric_of_two_channels_is_their_mean_and_a_failure_of_one_is_one_of_both():
    reference = stereo_clip(4000).numpy()
    estimate = reference + 0.1 * stereo_clip(4000, 1).numpy()
    values, reasons = compute_metrics(reference, estimate, RATE, ["si_sdr_db", "stft_distance"])
    assert not reasons
    assert values["si_sdr_db"] == pytest.approx(np.mean([si_sdr_db(*pair, RATE) for pair in zip(reference, estimate)]))
    reference[1] = 0
    values, reasons = compute_metrics(reference, estimate, RATE, ["si_sdr_db", "stft_distance"])
    assert np.isnan(values["si_sdr_db"]) and reasons == {
        "si_sdr_db": "channel 2: reference is silent: the metric is not defined"
    }
    assert values["stft_distance"] > 0


def test_two_channels_have_one_delay():
    reference = stereo_clip(9000).numpy()
    late = np.concatenate([np.zeros((2, 37), np.float32), reference], axis=1)
    aligned = align(reference, late, RATE)
    assert aligned.delay_samples == 37 and np.array_equal(aligned.estimate, aligned.reference)
    with pytest.raises(ValueError, match="equal channels are wanted"):
        align(reference, late[0], RATE)


def test_evaluate_compares_both_channels_and_beside_them_the_mean_of_a_mono_codec(workplace, tmp_path):
    stereo, mono = str(workplace / "stereo"), str(workplace / "mono")
    settings = Settings((str(workplace / "clips"),), (stereo, mono), ("stft_distance",), channels="mix")
    summary = evaluate(settings, tmp_path)
    write_reports(tmp_path)
    rows = {
        (row["codec"], row["clip"].split("/")[-1]): row
        for row in pyarrow.parquet.read_table(tmp_path / "clips.parquet").to_pylist()
    }
    codec = load_codec(stereo)
    for name, length in LENGTHS.items():
        row, audio = rows[stereo, name], clip_of(workplace, name)
        (codes,) = codec.encode([audio])
        aligned = align(audio, codec.decode([codes])[0], RATE)
        by_hand = [stft_distance(*pair, RATE) for pair in zip(aligned.reference, aligned.estimate)]
        assert row["stft_distance"] == pytest.approx(np.mean(by_hand), rel=1e-4)
        assert row["seconds"] == pytest.approx(length / RATE) and row["error"] is None
        assert rows[mono, name]["error"] is None
    assert summary["codecs"][stereo]["nominal_bitrate"] == pytest.approx(codec.bitrate)
    assert summary["codecs"][stereo]["tokens"]["num_frames"] == sum(
        -(-length // 1080) * 18 for length in LENGTHS.values()
    )
    assert soundfile.info(tmp_path / "audio" / "0" / "codec0.flac").channels == 2
    assert soundfile.info(tmp_path / "audio" / "0" / "codec1.flac").channels == 1
    assert "STFT distance" in (tmp_path / "report.md").read_text()


def test_stereo_clips_are_refused_where_a_codec_is_mono(workplace, tmp_path):
    stereo, mono = str(workplace / "stereo"), str(workplace / "mono")
    summary = evaluate(Settings((str(workplace / "clips"),), (stereo, mono), ("stft_distance",)), tmp_path)
    assert summary["data"]["num_clips"] == 1 and len(summary["data"]["bad_clips"]) == 2


def test_robustness_of_two_channels(workplace):
    codec = load_codec(workplace / "stereo")
    facts = robustness(codec, [clip_of(workplace, "long.wav")])
    assert 0 < facts["shift"]["tokens_changed_share"] < 1 and facts["flip"]["mel_distance"] > 0
    assert facts["flip"]["extent_seconds"] <= 9000 / RATE
    with pytest.raises(ValueError, match=r"\(9000,\): .* has 2 channels"):
        robustness(codec, [clip_of(workplace, "long.wav")[0]])


def test_tokenize_writes_the_codes_of_both_channels(workplace, tmp_path):
    settings = tokenization.Settings(str(workplace / "clips"), str(workplace / "stereo"))
    result = tokenization.tokenize(settings, tmp_path)
    assert result.num_rows == 3 and result.num_errors == 0
    codec = load_codec(workplace / "stereo")
    (shard,) = (path for path in tmp_path.rglob("*.parquet") if path.name != "errors.parquet")
    table = pyarrow.parquet.read_table(shard)
    facts = json.loads(table.schema.metadata[b"fsqcodec"])
    assert facts["token_digest"] == token_digest(codec.model) and facts["codebook_sizes"] == [11] * 8
    for row in table.to_pylist():
        name = next(
            name for name in LENGTHS if name in json.dumps({k: v for k, v in row.items() if k != "audio_codes"})
        )
        assert row["num_samples"] == LENGTHS[name]
        assert np.array_equal(np.array(row["audio_codes"]), codec.encode([clip_of(workplace, name)])[0])
    vocabulary = AudioVocabulary.for_codec(codec)
    assert vocabulary.token_digest == facts["token_digest"]


def test_a_data_set_is_mapped(workplace):
    codec = load_codec(workplace / "stereo")
    rows = {"audio": [{"array": clip_of(workplace, "short.wav"), "sampling_rate": RATE}]}
    tokenize = TokenizeAudio(codec.model, codec.feature_extractor)
    mapped = tokenize(rows)
    assert mapped["num_samples"] == [4000] and np.array_equal(
        mapped["audio_codes"][0], codec.encode([clip_of(workplace, "short.wav")])[0]
    )
    files = datasets.Dataset.from_dict({"audio": [str(workplace / "clips" / "short.wav")]})
    row = files.map(tokenize, batched=True)[0]
    assert np.array_equal(row["audio_codes"], mapped["audio_codes"][0])
    assert torch.tensor(row["audio_codes"]).shape[0] == 8
