"""Counts are those of hand-made examples; a clip's text depends on the clip, its language and the model alone."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clips import ENGLISH, GERMAN
from fsqcodec.audio import read_audio, resample
from fsqcodec.data import find_clips
from fsqcodec.evaluation.recognition import (
    ErrorCounts,
    bootstrap_interval,
    character_errors,
    has_words,
    load_recognizer,
    normalize_text,
    recognize,
    word_errors,
)
from small_recognizer import save_small_recognizer, save_small_whisper

CLIPS = [read_audio(path, 16000)[8000:40000] for path in (ENGLISH, GERMAN)]
REAL_RECOGNIZER = os.environ.get("FSQCODEC_RECOGNIZER")
SPEECH = Path(__file__).parents[2] / "shared" / "audio" / "manifest.jsonl"
needs_recognizer = pytest.mark.skipif(not REAL_RECOGNIZER, reason="FSQCODEC_RECOGNIZER names no recognizer")


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return load_recognizer(save_small_recognizer(tmp_path_factory.mktemp("recognizer")))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return load_recognizer(save_small_whisper(tmp_path_factory.mktemp("whisper")))


@pytest.fixture(scope="module")
def real_recognizer():
    return load_recognizer(REAL_RECOGNIZER)


@pytest.mark.parametrize(
    "reference, hypothesis, hits, substitutions, deletions, insertions",
    [
        ("Hello, World!", "hello world", 2, 0, 0, 0),
        ("one two three four", "one too three", 2, 1, 1, 0),
        ("the cat sat", "the big cat sat down", 3, 0, 0, 2),
        ("one", "", 0, 0, 1, 0),
        ("...", "two words", 0, 0, 0, 2),
        ("forty-two", "42", 0, 1, 1, 0),
    ],
)
def test_word_errors_by_hand(reference, hypothesis, hits, substitutions, deletions, insertions):
    assert word_errors([reference], [hypothesis]) == ErrorCounts(hits, substitutions, deletions, insertions)


def test_characters_count_with_spaces():
    counts = character_errors(["One two three four"], ["one too three"])
    assert counts == ErrorCounts(hits=12, substitutions=1, deletions=5, insertions=0)
    assert counts.rate == pytest.approx(6 / 18)


def test_rates_are_of_all_words_together():
    """One error in five words, not the mean of one in one and none in four."""
    references, hypotheses = ["yes", "one two three four"], ["no", "one two three four"]
    together = word_errors(references, hypotheses)
    assert together.rate == pytest.approx(1 / 5)
    by_clip = [word_errors([reference], [heard]) for reference, heard in zip(references, hypotheses)]
    assert sum(by_clip, ErrorCounts()) == together
    assert ErrorCounts(insertions=3).rate is None


WORDS = st.lists(st.sampled_from(["a", "bee", "sea", "don't"]), max_size=6).map(" ".join)


@given(WORDS, WORDS)
def test_errors_have_the_symmetry_of_edits(reference, hypothesis):
    """Exchanging the texts exchanges deletions and insertions; a text has no errors against itself."""
    forth, back = word_errors([reference], [hypothesis]), word_errors([hypothesis], [reference])
    assert forth.errors == back.errors
    assert forth.deletions - forth.insertions == back.insertions - back.deletions
    assert forth.length == len(reference.split())
    assert word_errors([reference], [reference]).errors == 0


@pytest.mark.parametrize(
    "text, normalized",
    [
        ("A well-known  author.", "a well known author"),
        ("Don\u2019t, it's 'quoted'!", "don't it's quoted"),
        ("Straße\u2014Öl", "straße öl"),
        ("In 1455, 3.5 km", "in 1455 3 5 km"),
        ("हिन्दी, में।", "हिन्दी में"),
        (" '' ... ", ""),
    ],
)
def test_normalized_texts(text, normalized):
    assert normalize_text(text) == normalized == normalize_text(normalized)
    assert has_words(text) == bool(normalized)


def test_the_interval_is_the_same_every_time_and_holds_the_rate():
    counts = [ErrorCounts(10 - errors, errors) for errors in (0, 1, 0, 5, 2, 0, 1, 3)]
    low, high = bootstrap_interval(counts)
    assert [low, high] == bootstrap_interval(counts)
    assert low < sum(counts, ErrorCounts()).rate < high
    assert bootstrap_interval([ErrorCounts(8, 2)] * 5) == [0.2, 0.2]
    assert bootstrap_interval([ErrorCounts(insertions=1)]) is bootstrap_interval([]) is None
    wide, narrow = np.ptp(bootstrap_interval(counts)), np.ptp(bootstrap_interval(counts * 16))
    assert narrow == pytest.approx(wide / 4, rel=0.2)


def test_the_text_is_the_pipelines(recognizer):
    texts = [recognize(clip, 16000, recognizer) for clip in CLIPS]
    assert texts == [recognizer(clip.copy())["text"] for clip in CLIPS]
    assert all(texts) and texts[0] != texts[1]
    assert [recognize(clip, 16000, recognizer) for clip in reversed(CLIPS)] == texts[::-1]


def test_clips_at_another_rate_are_resampled(recognizer):
    high = resample(CLIPS[0], 16000, 24000)
    assert recognize(high, 24000, recognizer) == recognize(resample(high, 24000, 16000), 16000, recognizer)


def told_to_generate(recognizer, monkeypatch, **arguments) -> dict:
    """What `generate` is told when the recognizer is given a clip."""
    told, generate = {}, recognizer.model.generate
    monkeypatch.setattr(recognizer.model, "generate", lambda **options: told.update(options) or generate(**options))
    arguments = {"clip_audio": CLIPS[0], "sampling_rate": 16000, **arguments}
    assert isinstance(recognize(recognizer=recognizer, **arguments), str)
    return told


@pytest.mark.parametrize(
    "language, told",
    [
        ("en", "en"),
        ("en (L1 Mandarin)", "en"),
        ("de-AT", "de"),
        ("German", "de"),
        ("tlh", None),
        (None, None),
        ("7", None),
    ],
)
def test_a_whisper_model_is_told_the_language_or_detects_it(language, told, whisper, monkeypatch):
    options = told_to_generate(whisper, monkeypatch, language=language)
    assert (options.get("language"), options["task"]) == (told, "transcribe")
    assert (options["num_beams"], options["do_sample"]) == (1, False)


def test_a_model_of_one_language_is_not_told_it(recognizer, whisper, monkeypatch):
    assert recognize(CLIPS[0], 16000, recognizer, "de") == recognize(CLIPS[0], 16000, recognizer)
    monkeypatch.setattr(whisper.model.generation_config, "is_multilingual", False)
    options = told_to_generate(whisper, monkeypatch, language="en")
    assert "language" not in options and "task" not in options


def test_whisper_takes_clips_longer_than_its_window(whisper, monkeypatch):
    long = np.tile(CLIPS[0], 16)
    assert len(long) > whisper.feature_extractor.n_samples
    assert told_to_generate(whisper, monkeypatch, clip_audio=long, language="en")["return_timestamps"]


def test_weights_are_float32_whatever_the_folder_holds(tmp_path):
    folder = save_small_whisper(tmp_path, dtype=torch.float16)
    assert load_recognizer(folder).model.dtype == torch.float32


def test_wrong_input_is_refused(recognizer, tmp_path):
    with pytest.raises(ValueError, match="expected one hypothesis for each reference, got 2 for 1"):
        word_errors(["one"], ["one", "two"])
    with pytest.raises(ValueError, match="clip_audio has NaN"):
        recognize(CLIPS[1] * np.nan, 16000, recognizer)
    with pytest.raises(OSError, match="no speech recognition model 'nobody'"):
        load_recognizer("nobody")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises((ValueError, OSError), match="no speech recognition model"):
        load_recognizer(tmp_path)


@needs_recognizer
def test_real_speech_is_recognized_in_its_language(real_recognizer):
    (english, german) = (read_audio(path, 16000) for path in (ENGLISH, GERMAN))
    assert "The earliest book printed with movable types" in recognize(english, 16000, real_recognizer, "en")
    assert recognize(german, 16000, real_recognizer) == recognize(german, 16000, real_recognizer, "de")
    long = np.concatenate([english] * 5)
    text = recognize(long, 16000, real_recognizer, "en")
    assert len(long) > 30 * 16000 and text.count("movable types") == 5


@needs_recognizer
@pytest.mark.slow
@pytest.mark.skipif(not SPEECH.exists(), reason="needs ../shared")
def test_word_errors_of_the_recordings(real_recognizer):
    """8.6 % of 535 words; in whatever order the clips come."""
    clips = [clip for clip in find_clips([f"{SPEECH}:speech_eval/"]) if clip.language == "en"]
    heard = {clip.name: recognize(*clip.read(), real_recognizer, clip.language) for clip in clips}
    for clip in random.Random(0).sample(clips, 4):
        assert recognize(*clip.read(), real_recognizer, clip.language) == heard[clip.name]
    counts = word_errors([clip.transcript for clip in clips], [heard[clip.name] for clip in clips])
    assert (len(clips), counts.length) == (28, 535)
    assert 100 * counts.rate == pytest.approx(8.6, abs=0.5)
