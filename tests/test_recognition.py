"""Error rates from a real pipeline: a small wav2vec 2.0 with random weights hears something, and always the same."""

import jiwer
import numpy as np
import pytest
import transformers

from clips import ENGLISH, GERMAN
from fsqcodec.audio import read_audio, resample
from fsqcodec.evaluation.recognition import error_rates, recognition_errors
from small_recognizer import save_small_recognizer

CLIPS = [read_audio(path, 16000)[8000:40000] for path in (ENGLISH, GERMAN)]
REFERENCES = ["Gutenberg printed, in Mainz.", "Eurasien ist ein Kontinent"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_small_recognizer(tmp_path_factory.mktemp("recogniser"))


@pytest.fixture(scope="module")
def pipeline(model_dir):
    return transformers.pipeline("automatic-speech-recognition", model=str(model_dir))


def test_errors_are_jiwers_on_the_pipelines_text(pipeline, model_dir):
    errors = recognition_errors(REFERENCES, CLIPS, 16000, pipeline)
    assert errors.transcripts == [pipeline(clip.copy())["text"] for clip in CLIPS]
    assert all(errors.transcripts) and errors.transcripts[0] != errors.transcripts[1]
    plain = ["gutenberg printed in mainz", "eurasien ist ein kontinent"]
    heard = [" ".join(text.lower().split()) for text in errors.transcripts]
    assert (errors.wer, errors.cer) == (jiwer.wer(plain, heard), jiwer.cer(plain, heard))
    assert (errors.model, errors.revision) == (str(model_dir), None)


def test_what_was_heard_as_reference_is_without_errors(pipeline):
    heard = recognition_errors(REFERENCES, CLIPS, 16000, pipeline).transcripts
    errors = recognition_errors(heard, CLIPS, 16000, pipeline)
    assert (errors.wer, errors.cer) == (0, 0)


def test_a_folder_does_as_well_as_a_pipeline(pipeline, model_dir):
    assert recognition_errors(REFERENCES, CLIPS, 16000, model_dir) == recognition_errors(
        REFERENCES, CLIPS, 16000, pipeline
    )


def test_clips_at_another_rate_are_resampled(pipeline):
    high = [resample(clip, 16000, 24000) for clip in CLIPS]
    back = [resample(clip, 24000, 16000) for clip in high]
    assert recognition_errors(REFERENCES, high, 24000, pipeline) == recognition_errors(
        REFERENCES, back, 16000, pipeline
    )


@pytest.mark.parametrize(
    "reference, transcript, wer, cer",
    [
        ("Hello, World!", "hello world", 0, 0),
        ("a well-known  author", "A WELL KNOWN AUTHOR.", 0, 0),
        ("Straße\u2014Öl", "straße öl", 0, 0),
        ("one two three four", "one too three", 2 / 4, 6 / 18),
        ("one", "", 1, 1),
    ],
)
def test_texts_are_normalised_before_they_are_compared(reference, transcript, wer, cer):
    assert error_rates([reference], [transcript]) == pytest.approx((wer, cer))


def test_rates_are_of_all_words_together():
    """One error in five words, not the mean of one in one and none in four."""
    assert error_rates(["yes", "one two three four"], ["no", "one two three four"])[0] == pytest.approx(1 / 5)


def test_wrong_input_is_refused(pipeline):
    with pytest.raises(ValueError, match="1 references, 2 clips"):
        recognition_errors(REFERENCES[:1], CLIPS, 16000, pipeline)
    with pytest.raises(ValueError, match="0 references, 0 clips"):
        recognition_errors([], [], 16000, pipeline)
    with pytest.raises(ValueError, match="'...' has no words"):
        recognition_errors(["fine", "..."], CLIPS, 16000, pipeline)
    with pytest.raises(ValueError, match="clip 1 has NaN"):
        recognition_errors(REFERENCES, [CLIPS[0], CLIPS[1] * np.nan], 16000, pipeline)
