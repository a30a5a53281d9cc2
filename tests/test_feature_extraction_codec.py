import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

from fsqcodec import CodecConfig, CodecFeatureExtractor
from small_configs import speech_like_clip

RATE = 16000
CLIP = speech_like_clip(100).numpy()
CLIPS = [speech_like_clip(num_samples, seed=num_samples).numpy() for num_samples in (40, 100, 7)]


@pytest.fixture
def extract():
    """A feature extractor with the sampling rate given."""
    feature_extractor = CodecFeatureExtractor(sampling_rate=RATE)
    return lambda audio, **kwargs: feature_extractor(audio, sampling_rate=RATE, **kwargs)


SAME_CLIP = {
    "float32": CLIP,
    "float64": CLIP.astype(np.float64),
    "list-of-floats": CLIP.tolist(),
    "tuple-of-floats": tuple(CLIP.tolist()),
    "list-of-numpy-floats": list(CLIP),
    "torch": torch.from_numpy(CLIP),
    "torch-float64": torch.from_numpy(CLIP).double(),
    "torch-requires-grad": torch.from_numpy(CLIP).requires_grad_(),
    "non-contiguous": np.stack([CLIP, CLIP], axis=1)[:, 0],
    "reversed-view": CLIP[::-1].copy()[::-1],
    "big-endian": CLIP.astype(">f4"),
    "read-only": np.frombuffer(CLIP.tobytes(), dtype=np.float32),
    "batch-of-one": [CLIP],
    "batch-of-one-list": [CLIP.tolist()],
    "batch-of-one-tensor": (torch.from_numpy(CLIP),),
}


@pytest.mark.parametrize("audio", SAME_CLIP.values(), ids=SAME_CLIP)
@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_every_way_to_hold_a_clip_gives_the_same_features(extract, audio, return_tensors):
    features = extract(audio, return_tensors=return_tensors)
    assert list(features) == ["input_values", "padding_mask"]
    values, mask = features["input_values"], features["padding_mask"]
    if return_tensors == "pt":
        assert (values.dtype, mask.dtype) == (torch.float32, torch.int32)
        values, mask = values.numpy(), mask.numpy()
    assert isinstance(values, np.ndarray) and isinstance(mask, np.ndarray)
    assert (values.dtype, mask.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(values, CLIP[None, None])
    np.testing.assert_array_equal(mask, np.ones((1, 100)))


def test_half_precision_clips_become_float32_of_the_same_value(extract):
    coarse = torch.from_numpy(CLIP).bfloat16()
    np.testing.assert_array_equal(extract(coarse)["input_values"][0, 0], coarse.float().numpy())
    half = CLIP.astype(np.float16)
    np.testing.assert_array_equal(extract(half)["input_values"][0, 0], half.astype(np.float32))


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_int16_is_divided_by_32768_exactly(extract, make):
    samples = np.array([-32768, -12345, -1, 0, 1, 16384, 32767], dtype=np.int16)
    values = extract(make(samples))["input_values"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[0, 0].astype(np.float64), samples.astype(np.float64) / 32768)


def test_batch_is_padded_with_silence_on_the_right(extract):
    features = extract(CLIPS, return_tensors="pt")
    assert features["input_values"].shape == (3, 1, 100)
    assert features["padding_mask"].shape == (3, 100)
    for i, clip in enumerate(CLIPS):
        row, mask = features["input_values"][i, 0].numpy(), features["padding_mask"][i].tolist()
        np.testing.assert_array_equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()
        assert mask == [1] * len(clip) + [0] * (100 - len(clip))


def test_batch_may_mix_arrays_tensors_lists_and_integers(extract):
    batch = [CLIP, torch.from_numpy(CLIP).bfloat16(), CLIP.tolist(), np.array([16384, -16384], dtype=np.int16)]
    values = extract(batch)["input_values"]
    assert values.shape == (4, 1, 100) and values.dtype == np.float32
    np.testing.assert_array_equal(values[2, 0], CLIP)
    np.testing.assert_array_equal(values[3, 0, :3], [0.5, -0.5, 0])


@pytest.mark.parametrize("padding", ["longest", True])
def test_longest_is_the_default_padding(extract, padding):
    for name, value in extract(CLIPS, padding=padding).items():
        np.testing.assert_array_equal(value, extract(CLIPS)[name])


def test_without_padding_every_clip_keeps_its_length(extract):
    features = extract(CLIPS, padding=False)
    for clip, value, mask in zip(CLIPS, features["input_values"], features["padding_mask"], strict=True):
        np.testing.assert_array_equal(value, clip[None])
        np.testing.assert_array_equal(mask, np.ones(len(clip)))


def test_clips_of_one_length_become_a_tensor_without_padding(extract):
    features = extract([CLIP, CLIP], padding=False, return_tensors="pt")
    assert features["input_values"].shape == (2, 1, 100)
    assert features["padding_mask"].shape == (2, 100)


def test_clips_of_several_lengths_do_not_become_a_tensor_without_padding(extract):
    with pytest.raises(ValueError, match="padding=True"):
        extract(CLIPS, padding=False, return_tensors="pt")


def test_padding_to_max_length(extract):
    features = extract(CLIPS, padding="max_length", max_length=120)
    assert features["input_values"].shape == (3, 1, 120)
    assert features["padding_mask"].sum(axis=1).tolist() == [40, 100, 7]
    with pytest.raises(ValueError, match="max_length"):
        extract(CLIPS, padding="max_length")


@pytest.mark.parametrize("padding", ["max_length", True])
def test_truncation_cuts_clips_to_max_length(extract, padding):
    features = extract(CLIPS, padding=padding, max_length=30, truncation=True)
    assert features["input_values"].shape == (3, 1, 30)
    assert features["padding_mask"].sum(axis=1).tolist() == [30, 30, 7]
    np.testing.assert_array_equal(features["input_values"][1, 0], CLIPS[1][:30])
    with pytest.raises(ValueError, match="max_length"):
        extract(CLIPS, truncation=True)


def test_truncation_without_padding(extract):
    features = extract(CLIPS, padding=False, max_length=30, truncation=True)
    assert [value.shape for value in features["input_values"]] == [(1, 30), (1, 30), (1, 7)]
    assert [len(mask) for mask in features["padding_mask"]] == [30, 30, 7]


def test_the_callers_audio_is_not_changed(extract):
    clip = CLIP.copy()
    extract(clip, padding=False)["input_values"][0][:] = 9
    extract([clip, clip[:3]])["input_values"][:] = 9
    np.testing.assert_array_equal(clip, CLIP)


def with_sample(value, dtype=np.float32):
    clip = CLIP.astype(dtype)
    clip[17] = value
    return clip


BAD_AUDIO = {
    "nan": (with_sample(np.nan), "^audio has NaN or infinite samples, the first at index 17"),
    "inf": (with_sample(np.inf), "NaN or infinite samples, the first at index 17"),
    "minus-inf": (with_sample(-np.inf), "NaN or infinite samples, the first at index 17"),
    "nan-in-a-tensor": (torch.from_numpy(with_sample(np.nan)).bfloat16(), "NaN or infinite"),
    "second-clip-nan": ([CLIP, with_sample(np.nan)], r"^audio\[1\] has NaN"),
    "empty-clip": (np.zeros(0, dtype=np.float32), "^audio is empty"),
    "empty-list": ([], "^audio is empty"),
    "empty-clip-in-a-batch": ([CLIP, CLIP[:0]], r"^audio\[1\] is empty"),
    "empty-list-in-a-batch": ([[]], r"^audio\[0\] is empty"),
    "stereo-channels-first": (np.zeros((2, 100), dtype=np.float32), r"^audio has shape \(2, 100\): mono"),
    "stereo-channels-last": (np.zeros((100, 2), dtype=np.float32), r"^audio has shape \(100, 2\): mono"),
    "one-channel": (torch.zeros(1, 100), r"^audio has shape \(1, 100\): mono"),
    "stereo-in-a-batch": ([CLIP, np.zeros((2, 9))], r"^audio\[1\] has shape \(2, 9\): mono"),
    "0d": (np.float32(0.5), "^audio is a float32: a numpy array"),
    "nothing": (None, "^audio is a NoneType: a numpy array"),
    "path": ("clip.wav", "^audio is a str: a numpy array"),
    "0d-tensor": (torch.tensor(0.5), r"^audio has shape \(\): mono"),
    "3d": (np.zeros((1, 1, 100), dtype=np.float32), r"^audio has shape \(1, 1, 100\): mono"),
    "int32": (np.zeros(9, dtype=np.int32), "^audio holds int32: floats .* or int16"),
    "int64-list": ([0, 1, 2], "^audio holds int64: floats .* or int16"),
    "uint8": (np.full(9, 128, dtype=np.uint8), "^audio holds uint8"),
    "uint8-tensor": (torch.full((9,), 128, dtype=torch.uint8), "^audio holds uint8"),
    "uint16": (np.full(9, 128, dtype=np.uint16), "^audio holds uint16"),
    "bool": (np.ones(9, dtype=bool), "^audio holds bool"),
    "bool-tensor": (torch.ones(9, dtype=torch.bool), "^audio holds bool"),
    "complex": (np.ones(9, dtype=np.complex64), "^audio holds complex64"),
    "strings": (["a", "b"], "^audio holds <U1"),
    "peak-beyond-float32": (np.array([0.0, 1e39]), "^audio peaks at 1e\\+39"),
    "unscaled-peak": (with_sample(20000.0), "^audio peaks at 20000: .* by 32768"),
    "unscaled-negative-peak": (with_sample(-20000.0), "^audio peaks at 20000"),
    "unscaled-peak-in-a-batch": ([CLIP, with_sample(9.0)], r"^audio\[1\] peaks at 9: "),
}


@pytest.mark.parametrize("audio, message", BAD_AUDIO.values(), ids=BAD_AUDIO)
def test_bad_audio_is_refused(extract, audio, message):
    with pytest.raises(ValueError, match=message):
        extract(audio)


def test_audio_somewhat_over_full_scale_is_accepted(extract):
    np.testing.assert_array_equal(extract(with_sample(7.9))["input_values"][0, 0], with_sample(7.9))


def test_another_sampling_rate_is_refused_with_the_way_out():
    feature_extractor = CodecFeatureExtractor(sampling_rate=24000)
    with pytest.raises(ValueError, match=r"at 16000 Hz, .* needs 24000 Hz: .*soxr.resample\(audio, 16000, 24000\)"):
        feature_extractor(CLIP, sampling_rate=16000)
    assert feature_extractor(CLIP, sampling_rate=24000)["input_values"].shape == (1, 1, 100)


def test_missing_sampling_rate_warns_and_a_given_one_does_not(caplog):
    feature_extractor = CodecFeatureExtractor()
    with caplog.at_level(logging.WARNING):
        feature_extractor(CLIP, sampling_rate=16000)
        assert not caplog.records
        features = feature_extractor(CLIP)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pass sampling_rate" in caplog.text and "16000 Hz" in caplog.text
    np.testing.assert_array_equal(features["input_values"][0, 0], CLIP)


def test_misspelt_argument_of_a_call_is_refused(extract):
    with pytest.raises(TypeError, match="paddin"):
        extract(CLIP, paddin=True)
    with pytest.raises(ValueError, match="longets"):
        extract(CLIP, padding="longets")


def test_saved_and_loaded_it_makes_the_same_features(tmp_path):
    feature_extractor = CodecFeatureExtractor(sampling_rate=24000)
    feature_extractor.save_pretrained(tmp_path)
    for auto_class in (AutoFeatureExtractor, CodecFeatureExtractor):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is CodecFeatureExtractor
        assert loaded.sampling_rate == 24000
        features, expected = (extractor(CLIPS, sampling_rate=24000) for extractor in (loaded, feature_extractor))
        for name in expected:
            np.testing.assert_array_equal(features[name], expected[name])


def test_it_is_registered_and_saved_under_its_own_name(tmp_path):
    CodecFeatureExtractor().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["feature_extractor_type"] == "CodecFeatureExtractor"
    assert saved["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_codec.CodecFeatureExtractor"}
    assert FEATURE_EXTRACTOR_MAPPING[CodecConfig] is CodecFeatureExtractor


def test_its_outputs_are_what_the_model_takes():
    assert CodecFeatureExtractor.model_input_names == ["input_values", "padding_mask"]


def test_int16_of_any_byte_order_is_scaled(extract):
    samples = np.array([0, 16384, -32768], dtype=">i2")
    assert extract(samples).input_values.ravel().tolist() == [0.0, 0.5, -1.0]


def test_a_length_of_nothing_is_refused(extract):
    with pytest.raises(ValueError, match="max_length is 0: at least one sample"):
        extract(CLIP, padding=False, truncation=True, max_length=0)


def test_an_extractor_for_what_the_codec_is_not_is_refused():
    with pytest.raises(ValueError, match="feature_size is 2: the codec is mono"):
        CodecFeatureExtractor(feature_size=2)
    with pytest.raises(ValueError, match="padding_side is 'left'"):
        CodecFeatureExtractor(padding_side="left")
