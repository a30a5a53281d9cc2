"""Word and character errors of a speech recognition model on decoded speech.

WER and CER are against transcripts; dWER and dCER are against what the same model recognises in the recordings, so they
need no transcript and leave out the model's own errors.

Any "automatic-speech-recognition" pipeline of Transformers recognises, one clip at a time and greedily in float32, so
that neither the other clips nor chance change a transcript. jiwer counts the errors.

Both texts are normalised first, see `normalize_text`. Spelling and numbers stay as they are: "42" for "forty-two" is an
error. In languages that are written without spaces, read the character errors.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ..audio import resample
from .metric import check_waveform, import_package

NUM_RESAMPLES = 1_000  # of the bootstrap
INTERVAL_SHARE = 0.95


@dataclass(frozen=True)
class ErrorCounts:
    """Errors in words or characters. Counts can be added: `sum(counts, ErrorCounts())`.

    Attributes:
        hits: words of the reference that were recognised.
        substitutions: words that were recognised as another.
        deletions: words of the reference that were not recognised.
        insertions: recognised words that the reference lacks.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def length(self) -> int:
        """Words, or characters, of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors divided by the length of the reference; can exceed 1. `None` for a reference of length 0."""
        return self.errors / self.length if self.length else None

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def load_recognizer(
    folder: str | os.PathLike, device: str | None = None
) -> transformers.AutomaticSpeechRecognitionPipeline:
    """Load a speech recognition model, by folder or Hub id, in float32 as a pipeline on `device` (default: the CPU).

    Raises:
        OSError: there is no such model.
        ValueError: the model is of another kind.
    """
    try:
        return transformers.pipeline(
            "automatic-speech-recognition", model=os.fspath(folder), device=device or "cpu", dtype=torch.float32
        )
    except OSError as error:
        raise OSError(f"no speech recognition model {str(folder)!r}: {str(error).splitlines()[0]}") from error
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} is no speech recognition model that Transformers knows: {reason}") from error


def recognize(
    clip_audio: np.ndarray,
    sampling_rate: int,
    recognizer: transformers.AutomaticSpeechRecognitionPipeline,
    language: str | None = None,
) -> str:
    """Return what the recognizer makes of a clip: its text, not normalised. The same clip always gives the same text.

    Args:
        clip_audio: floats `(num_samples,)`, of any length.
        sampling_rate: Hz, of the clip; it is resampled to the recognizer's rate.
        recognizer: from `load_recognizer`.
        language: tag or English name, such as "en", "en-GB", "en (L1 Mandarin)" or "German". `None`, or a language the
            recognizer lacks, has a Whisper model detect it. Other models, and Whisper for English only, ignore it.

    Raises:
        ValueError: the clip is not mono, empty, or has integers, NaN or infinite samples.
    """
    audio = check_waveform(clip_audio, "clip_audio")
    extractor = recognizer.feature_extractor
    options = {}
    if recognizer.model.can_generate():
        options["generate_kwargs"] = {"num_beams": 1, "do_sample": False, **_language_options(language, recognizer)}
    audio = resample(audio, sampling_rate, extractor.sampling_rate).astype(np.float32)
    if recognizer.type == "seq2seq_whisper" and len(audio) > extractor.n_samples:
        options["return_timestamps"] = True  # Whisper takes clips of more than 30 s only so
    return recognizer(audio, **options)["text"]


def normalize_text(text: str) -> str:
    """Return a text in lower case whose words, letters and digits with apostrophes inside, are separated by one space.

    Hyphens and other punctuation separate words; letters and digits of all scripts stay.
    """
    text = unicodedata.normalize("NFKC", text.lower()).translate(_APOSTROPHES)
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count the errors in the words of all texts together, normalised.

    A reference without words counts the words of its hypothesis as insertions.

    Args:
        references: what was said.
        hypotheses: what was recognised, one text for each reference.

    Raises:
        ValueError: not one hypothesis for each reference.
        ImportError: jiwer is not installed.
    """
    return _counts(references, hypotheses, "process_words")


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Count the errors in the characters of all texts together, spaces included; arguments as of `word_errors`."""
    return _counts(references, hypotheses, "process_characters")


def bootstrap_interval(counts: Iterable[ErrorCounts]) -> list[float] | None:
    """Return the 95 % interval of the error rate, low and high, as it varies with the choice of clips.

    1,000 times as many clips are drawn with replacement, the same in every run. `None` where no clip has a reference.
    """
    counts = list(counts)
    errors = np.array([each.errors for each in counts], dtype=np.int64)
    lengths = np.array([each.length for each in counts], dtype=np.int64)
    if not lengths.any():
        return None
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(NUM_RESAMPLES):
        drawn = generator.integers(len(counts), size=len(counts))
        if lengths[drawn].any():
            rates.append(errors[drawn].sum() / lengths[drawn].sum())
    tail = 50 * (1 - INTERVAL_SHARE)
    return np.percentile(rates, [tail, 100 - tail]).tolist()


def clip_errors(transcript: str | None, original: str | None, recognized: str | None) -> dict[str, ErrorCounts | None]:
    """Count the errors in what was recognised of one clip, by the names of `ERROR_RATES`.

    Args:
        transcript: what was said; `wer` and `cer` are `None` without it, or without words in it.
        original: what was recognised of the recording itself; `dwer` and `dcer` are `None` without it.
        recognized: what was recognised of the decoded clip; without it all are `None`.
    """
    references = {"transcript": transcript if has_words(transcript) else None, "original": original}
    return {
        name: None if references[kind] is None or recognized is None else count([references[kind]], [recognized])
        for name, (kind, count) in ERROR_RATES.items()
    }


def has_words(text: str | None) -> bool:
    """Whether anything is left of a text after normalisation."""
    return bool(text) and bool(normalize_text(text))


ERROR_RATES = {
    "wer": ("transcript", word_errors),
    "cer": ("transcript", character_errors),
    "dwer": ("original", word_errors),
    "dcer": ("original", character_errors),
}
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


def _counts(references: Sequence[str], hypotheses: Sequence[str], function: str) -> ErrorCounts:
    if len(references) != len(hypotheses):
        raise ValueError(f"expected one hypothesis for each reference, got {len(hypotheses)} for {len(references)}")
    jiwer = import_package("jiwer", "evaluation")
    output = getattr(jiwer, function)([*map(normalize_text, references)], [*map(normalize_text, hypotheses)])
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def _language_options(language: str | None, recognizer: transformers.AutomaticSpeechRecognitionPipeline) -> dict:
    """What `generate` of a Whisper model of many languages is told of the language; other models get nothing."""
    facts = recognizer.model.generation_config
    known = getattr(facts, "lang_to_id", None)
    if not known or not getattr(facts, "is_multilingual", True):
        return {}
    tag = re.match(r"[a-z]*", (language or "").strip().lower())[0]
    code = TO_LANGUAGE_CODE.get(tag, tag)
    return {"task": "transcribe", **({"language": code} if f"<|{code}|>" in known else {})}
