"""What speech recognition understands of decoded speech: word and character error rates.

Any "automatic-speech-recognition" pipeline of Transformers listens; jiwer counts, after the same normalisation of both
texts: lower case, hyphens become spaces, other punctuation goes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import transformers

from ..audio import resample
from .metric import check_waveform, import_package


@dataclass(frozen=True)
class RecognitionErrors:
    """Errors of a set of clips, and who made them.

    Attributes:
        wer: word errors, substitutions, deletions and insertions, by words of the references; can exceed 1.
        cer: the same with characters, spaces included.
        transcripts: what was recognised in each clip, before normalisation.
        model: id or folder of the recogniser.
        revision: its commit on the Hub; None for a folder.
    """

    wer: float
    cer: float
    transcripts: list[str]
    model: str
    revision: str | None


def recognition_errors(
    references: Sequence[str],
    clips: Sequence[np.ndarray],
    sampling_rate: int,
    pipeline: "str | os.PathLike | transformers.AutomaticSpeechRecognitionPipeline",
) -> RecognitionErrors:
    """Recognise clips and compare with what was said.

    Args:
        references: the true text of each clip.
        clips: float arrays `(num_samples,)`.
        sampling_rate: Hz, of all clips; they are resampled to what the recogniser wants.
        pipeline: an "automatic-speech-recognition" pipeline, or the id or folder of a model for one.

    Raises:
        ValueError: no clips, not one reference for each, a reference without words, a clip that is no waveform.
        OSError: there is no such model.
        ImportError: jiwer is absent.
    """
    if not isinstance(pipeline, transformers.Pipeline):
        pipeline = load_recognizer(pipeline)
    if not clips or len(references) != len(clips):
        raise ValueError(f"{len(references)} references, {len(clips)} clips: one reference for each clip is wanted")
    transcripts = transcribe(clips, sampling_rate, pipeline)
    wer, cer = error_rates(references, transcripts)
    model = pipeline.model
    return RecognitionErrors(wer, cer, transcripts, model.name_or_path, getattr(model.config, "_commit_hash", None))


def load_recognizer(
    model: str | os.PathLike, device: str | None = None
) -> transformers.AutomaticSpeechRecognitionPipeline:
    """The pipeline of a speech recognition model, by folder or Hub id, on `device` (by default the CPU).

    Raises `ValueError` for another kind of model, `OSError` where there is none.
    """
    try:
        return transformers.pipeline("automatic-speech-recognition", model=os.fspath(model), device=device or "cpu")
    except OSError as error:
        raise OSError(f"no speech recognition model {str(model)!r}: {str(error).splitlines()[0]}") from error
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{model} is no speech recognition model that Transformers knows: {reason}") from error


def transcribe(
    clips: Sequence[np.ndarray], sampling_rate: int, pipeline: transformers.AutomaticSpeechRecognitionPipeline
) -> list[str]:
    """What the recogniser understands of clips `(num_samples,)` at `sampling_rate` Hz. Raises `ValueError` for a clip
    that is no waveform."""
    rate = pipeline.feature_extractor.sampling_rate
    audio = [check_waveform(clip, f"clip {number}") for number, clip in enumerate(clips)]
    heard = pipeline([resample(clip, sampling_rate, rate).astype(np.float32) for clip in audio])
    return [result["text"] for result in heard]


def error_rates(references: Sequence[str], transcripts: Sequence[str]) -> tuple[float, float]:
    """Word and character error rate of all texts together, normalised. Raises `ValueError` for a reference without
    words."""
    jiwer = import_package("jiwer", "evaluation")
    normalisation = _normalisation()
    for reference in references:
        if not has_words(reference):
            raise ValueError(f"the reference {reference!r} has no words: leave the clip out")
    words = jiwer.Compose([*normalisation, jiwer.ReduceToListOfListOfWords()])
    characters = jiwer.Compose([*normalisation, jiwer.ReduceToListOfListOfChars()])
    texts = list(references), list(transcripts)
    wer = jiwer.wer(*texts, reference_transform=words, hypothesis_transform=words)
    cer = jiwer.cer(*texts, reference_transform=characters, hypothesis_transform=characters)
    return wer, cer


def has_words(text: str | None) -> bool:
    """Whether anything is left of a text after normalisation."""
    return bool(text) and bool(import_package("jiwer", "evaluation").Compose(_normalisation())(text))


def _normalisation() -> list:
    jiwer = import_package("jiwer", "evaluation")
    return [
        jiwer.ToLowerCase(),
        jiwer.SubstituteRegexes({r"[-\u2010-\u2015\s]+": " "}),
        jiwer.RemovePunctuation(),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
    ]
