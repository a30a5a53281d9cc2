"""Codes and ids of language models: one way and back without loss, and no wrong id gets through."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsqcodec import CodecFeatureExtractor
from fsqcodec.codecs import TransformersCodec, load_codec
from fsqcodec.lm import AudioVocabulary
from small_configs import small_model, speech_like_clip
from small_language_model import text_tokenizer
from test_codecs import FACTS, folders  # noqa: F401


@st.composite
def vocabularies(draw) -> AudioVocabulary:
    """Of residual codebooks of any size, and of FSQ in both views."""
    first_id = draw(st.integers(0, 300))
    if draw(st.booleans()):
        return AudioVocabulary(first_id, draw(st.lists(st.integers(1, 2000), min_size=1, max_size=9)))
    levels = draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
    num_codebooks = draw(st.integers(1, 3))
    return AudioVocabulary(
        first_id, [math.prod(levels)] * num_codebooks, levels, draw(st.sampled_from(["codes", "digits"]))
    )


@st.composite
def vocabularies_and_codes(draw) -> tuple[AudioVocabulary, np.ndarray]:
    vocabulary = draw(vocabularies())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_frames = draw(st.integers(0, 12))
    return vocabulary, np.stack([random.integers(0, size, num_frames) for size in vocabulary.codebook_sizes])


@given(vocabularies_and_codes())
def test_codes_come_back_from_ids_and_rows(vocabulary_and_codes):
    vocabulary, codes = vocabulary_and_codes
    ids, rows = vocabulary.codes_to_ids(codes), vocabulary.codes_to_rows(codes)
    num_frames = codes.shape[1]
    assert ids.dtype == rows.dtype == torch.int64
    assert ids.shape == (num_frames * vocabulary.num_ids_per_frame,)
    assert rows.shape == (vocabulary.num_ids_per_frame, num_frames)
    np.testing.assert_array_equal(vocabulary.ids_to_codes(ids), codes)
    np.testing.assert_array_equal(vocabulary.ids_to_codes(rows), codes)


@given(vocabularies_and_codes())
def test_frames_lie_in_time_order_and_ranges_in_theirs(vocabulary_and_codes):
    vocabulary, codes = vocabulary_and_codes
    by_frame = vocabulary.codes_to_ids(codes).reshape(-1, vocabulary.num_ids_per_frame)
    for place, (start, size) in enumerate(zip(vocabulary.range_starts, vocabulary.range_sizes)):
        assert ((by_frame[:, place] >= start) & (by_frame[:, place] < start + size)).all()
    for frame, column in enumerate(codes.T):
        assert torch.equal(vocabulary.codes_to_ids(column[:, None]), by_frame[frame])


@given(vocabularies())
def test_ranges_follow_text_begin_and_end_without_gaps(vocabulary):
    ends = [start + size for start, size in zip(vocabulary.range_starts, vocabulary.range_sizes)]
    assert (vocabulary.begin_of_audio_id, vocabulary.end_of_audio_id) == (vocabulary.first_id, vocabulary.first_id + 1)
    assert vocabulary.range_starts[0] == vocabulary.first_id + 2
    assert all(end == start for end, start in zip(ends, vocabulary.range_starts[1:]))
    assert ends[-1] == vocabulary.size
    assert all(a < b for a, b in pairwise(vocabulary.range_starts))


@given(vocabularies_and_codes(), st.integers(1, 8), st.integers(1, 4))
def test_an_id_of_another_place_is_refused(vocabulary_and_codes, shift, frame):
    vocabulary, codes = vocabulary_and_codes
    codes = np.concatenate([codes] + [np.zeros((len(codes), 1), dtype=int)] * frame, axis=1)
    ids = vocabulary.codes_to_ids(codes)
    ids[-1] = vocabulary.size - 1 + shift
    with pytest.raises(ValueError, match="is outside"):
        vocabulary.ids_to_codes(ids)
    ids[-1] = vocabulary.range_starts[-1] - shift
    with pytest.raises(ValueError, match="is outside"):
        vocabulary.ids_to_codes(ids)


def test_the_layout_by_hand():
    two_codebooks = AudioVocabulary(100, (10, 20))
    assert two_codebooks.codes_to_ids([[0, 9], [0, 19]]).tolist() == [102, 112, 111, 131]
    assert two_codebooks.codes_to_rows([[0, 9], [0, 19]]).tolist() == [[102, 111], [112, 131]]
    digits = AudioVocabulary(0, (12,), (4, 3), "digits")  # 7 = 3 + 4 * 1
    assert digits.codes_to_ids([7, 0]).tolist() == [5, 7, 2, 6]
    assert (digits.size, digits.num_ids_per_frame) == (9, 2)


def test_digits_in_groups_are_the_same_codes():
    digits = AudioVocabulary(0, [9**3 * 7**3], [9, 9, 9, 7, 7, 7], "digits")
    grouped = replace(digits, quantization_levels=(9**3, 7**3))
    codes = torch.randint(9**3 * 7**3, (1, 50))
    assert grouped.num_ids_per_frame == 2 and grouped.size == 2 + 9**3 + 7**3
    np.testing.assert_array_equal(grouped.ids_to_codes(grouped.codes_to_ids(codes)), codes)
    rows = digits.codes_to_rows(codes) - torch.tensor(digits.range_starts)[:, None]
    first_of_three = grouped.codes_to_rows(codes)[0] - grouped.range_starts[0]
    np.testing.assert_array_equal(first_of_three, rows[0] + 9 * rows[1] + 81 * rows[2])


def test_a_small_softmax_for_a_large_codebook():
    sizes = {view: AudioVocabulary(0, (250047,), (9, 9, 9, 7, 7, 7), view).size for view in ("codes", "digits")}
    assert sizes == {"codes": 250049, "digits": 50}


@pytest.mark.parametrize("family", FACTS)
def test_real_codes_of_every_family_come_back(folders, family):  # noqa: F811
    codec = load_codec(folders / family)
    (codes,) = codec.encode([speech_like_clip(1600).numpy()])
    views = ["codes", "digits"] if codec.quantization_levels else ["codes"]
    for view in views:
        vocabulary = AudioVocabulary.for_codec(codec, text_tokenizer(), view)
        np.testing.assert_array_equal(vocabulary.ids_to_codes(vocabulary.codes_to_ids(codes)), codes)
        assert vocabulary.first_id == len(text_tokenizer())
    if not codec.quantization_levels:
        with pytest.raises(ValueError, match="only codes of FSQ have digits"):
            AudioVocabulary.for_codec(codec, view="digits")


def test_spans_of_audio_are_found_between_text():
    vocabulary = AudioVocabulary(50, (10, 20))
    first, second, third = np.array([[1, 2], [3, 4]]), np.array([[5], [6]]), np.zeros((2, 0), dtype=int)
    begin, end = vocabulary.begin_of_audio_id, vocabulary.end_of_audio_id
    ids = [
        7,
        begin,
        *vocabulary.codes_to_ids(first),
        end,
        9,
        9,
        begin,
        end,
        end,
        begin,
        *vocabulary.codes_to_ids(second),
    ]
    for unfinished in ([], [vocabulary.range_starts[0]]):
        spans = vocabulary.find_audio(ids + unfinished)
        assert [span.tolist() for span in spans] == [first.tolist(), third.tolist(), second.tolist()]
    assert vocabulary.find_audio([1, 2, 3]) == []
    with pytest.raises(ValueError, match="AudioLogitsProcessor"):
        vocabulary.find_audio([begin, 4, 5, end])


def test_saved_beside_the_language_model_and_loaded_back(tmp_path):
    vocabulary = AudioVocabulary(300, [245], [7, 7, 5], "digits", "some/codec", "0123456789abcdef")
    vocabulary.save_pretrained(tmp_path / "lm")
    assert AudioVocabulary.from_pretrained(tmp_path / "lm") == vocabulary
    saved = json.loads((tmp_path / "lm" / "audio_vocabulary.json").read_text())
    assert saved["quantization_levels"] == [7, 7, 5]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"first_id": 3}', '{"codebook_sizes": "x"}', "\x00"])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "audio_vocabulary.json").write_text(text)
    with pytest.raises(ValueError, match="damaged or another file"):
        AudioVocabulary.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("view", "bits"), ("first_id", "3"), ("codebook_sizes", [0]), ("codebook_sizes", ["a"])]
)
def test_a_file_with_a_wrong_field_is_refused(tmp_path, field, value):
    AudioVocabulary(3, (10,)).save_pretrained(tmp_path)
    path = tmp_path / "audio_vocabulary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match="damaged or another file"):
        AudioVocabulary.from_pretrained(tmp_path)


def test_no_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="audio_vocabulary.json"):
        AudioVocabulary.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebook_sizes": ()}, "at least one number"),
        ({"codebook_sizes": (10, 0)}, "none below 1"),
        ({"first_id": -1}, "first_id is -1"),
        ({"view": "bits"}, "'codes' or 'digits'"),
        ({"view": "digits"}, "only codes of FSQ"),
        ({"quantization_levels": (3, 3)}, "make 9 codes"),
    ],
)
def test_fields_that_contradict_each_other(fields, message):
    with pytest.raises(ValueError, match=message):
        AudioVocabulary(**{"first_id": 0, "codebook_sizes": (10,), **fields})


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 2]], r"shape \(1, 2\)"),
        ([1, 2], r"shape \(1, 2\)"),
        ([[[1], [2]]], r"shape \(1, 2, 1\)"),
        ([[10], [0]], "codebook 0 range from 10 to 10"),
        ([[0, 0], [0, -1]], "codebook 1 range from -1 to 0"),
        ([[0.5], [1.0]], "integers"),
    ],
)
def test_codes_that_are_none(codes, message):
    with pytest.raises(ValueError, match=message):
        AudioVocabulary(0, (10, 20)).codes_to_ids(codes)


@pytest.mark.parametrize("ids", [[2, 12, 3], [[2], [12], [3]], 5])
def test_ids_of_another_shape(ids):
    with pytest.raises(ValueError, match="no whole number of frames|ids have shape"):
        AudioVocabulary(0, (10, 20)).ids_to_codes(ids)


def test_another_codecs_tokens_are_refused():
    def codec(seed: int, name: str = "frames-plain") -> TransformersCodec:
        return TransformersCodec(f"codec {seed}", small_model(name, seed), CodecFeatureExtractor(sampling_rate=16000))

    vocabulary = AudioVocabulary.for_codec(codec(0))
    vocabulary.check_codec(codec(0))
    with pytest.raises(ValueError, match="token digest"):
        vocabulary.check_codec(codec(1))
    with pytest.raises(ValueError, match="codebooks of"):
        vocabulary.check_codec(codec(0, "l3ac-fine"))
    other_decoder = codec(0)
    with torch.no_grad():
        next(other_decoder.model.decoder.parameters()).add_(1)
    vocabulary.check_codec(other_decoder)


@pytest.mark.skipif(shutil.which("opusenc") is None, reason="opus-tools is not installed")
def test_a_classical_codec_has_no_tokens():
    with pytest.raises(ValueError, match="classical"):
        AudioVocabulary.for_codec(load_codec("opus:6"))
