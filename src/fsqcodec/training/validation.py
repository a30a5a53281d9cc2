"""How the averaged weights do on held-out clips, during a run: metrics, samples, the learning curve, saved folders.

The best model is the one with the highest score, a weighted sum of means: of PESQ-WB alone it would be one that buzzes.
`CodecTraining.score_weights` has it for speech: PESQ-WB / 4.5 + STOI - mel distance - dWER, the last where a recognizer
is given. dWER are the word errors against what the recognizer makes of the recording, WER those against transcripts.
"""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..atomic import atomic_folder, atomic_path
from ..audio import resample, write_audio
from ..codecs import TransformersCodec
from ..data import Clip
from ..evaluation.alignment import align
from ..evaluation.metrics import compute_metrics
from ..evaluation.plots import spectrogram_plot
from ..evaluation.recognition import has_words, load_recognizer, recognize, word_errors
from ..hub.cards import CARD_NAME, TRAINING_RECORD, model_card
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.pretrained import PreTrainedCodec
from .quantization import TrainingQuantizer, folded

NUM_SAMPLES = 2  # clips that are written


class Validation:
    """Measures models and keeps the last and the best of them.

    Args:
        clips: held out from training; with none, models are saved and not measured.
        output_dir: of the run.
        extractor: of the models.
        metrics: of `METRICS`.
        score_weights: of metrics, "wer" and "dwer"; the best model has the highest weighted sum.
        recognizer: folder or Hub id of a speech recognition model; without one "wer" and "dwer" do not count.
        recognize_every: how many validations there are to one with the recognizer, which alone can be the best.
    """

    def __init__(
        self,
        clips: list[Clip],
        output_dir: Path,
        extractor: CodecFeatureExtractor,
        metrics: tuple[str, ...],
        score_weights: dict[str, float],
        recognizer: str | None = None,
        recognize_every: int = 1,
    ):
        self.clips, self.output_dir, self.extractor, self.metrics = clips, output_dir, extractor, metrics
        self.recognizer = load_recognizer(recognizer) if recognizer is not None and clips else None
        self.recognize_every = recognize_every
        self.score_weights = dict(score_weights)
        if self.recognizer is None:
            self.score_weights = {name: weight for name, weight in score_weights.items() if name in metrics}
        self.num_validations = 0  # of the run so far
        self.best: float | None = None  # score of best/
        self._heard: dict[str, str] = {}  # what the recognizer makes of recordings, by clip

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what is measured."""
        return (*self.metrics, *(("wer", "dwer") if self.recognizer is not None else ()))

    def __call__(self, model: PreTrainedCodec, record: dict, is_last: bool) -> dict[str, float | None]:
        """Measure `model` and save it, in its published architecture, with a record of its training, which tells `step`
        and `minutes`. The run's last validation has the recognizer in any case. Returns the means of its metrics, and
        their `score`; `None` where there is none."""
        with folded(model) if isinstance(model.quantizer, TrainingQuantizer) else nullcontext():
            return self._measure_and_save(model, record, is_last)

    def _measure_and_save(self, model: PreTrainedCodec, record: dict, is_last: bool) -> dict[str, float | None]:
        recognizes = self.recognizer is not None and (is_last or self.num_validations % self.recognize_every == 0)
        self.num_validations += 1
        means = self._measure(TransformersCodec("last", model, self.extractor), recognizes)
        score = means["score"]
        with (self.output_dir / "validation.jsonl").open("a") as file:
            file.write(json.dumps({"step": record["step"], "minutes": record["minutes"], **means}) + "\n")
        _save(model, self.extractor, record, self.output_dir / "last")
        if score is not None and (self.best is None or score > self.best):
            self.best = score
            _save(model, self.extractor, record, self.output_dir / "best")
        self._draw_curve()
        return means

    def _measure(self, codec: TransformersCodec, recognizes: bool) -> dict[str, float | None]:
        values = {name: [] for name in self.metrics}
        texts = []  # (clip, what is recognised of it as decoded)
        for number, clip in enumerate(self.clips):
            audio, sampling_rate = clip.read("mix", codec.num_channels)
            audio = resample(audio, sampling_rate, codec.input_sampling_rate)
            (decoded,) = codec.decode(codec.encode([audio]), [audio.shape[-1]])
            if number < NUM_SAMPLES:
                self._write_sample(number, audio, decoded, codec.input_sampling_rate)
            aligned = align(audio, decoded, codec.input_sampling_rate)
            pair = aligned.reference, aligned.estimate
            scores, reasons = compute_metrics(*pair, codec.input_sampling_rate, self.metrics)
            for name in self.metrics:
                if name not in reasons:
                    values[name].append(scores[name])
            if recognizes:
                texts.append((clip, self._recognized(clip, decoded, codec.output_sampling_rate)))
                if clip.name not in self._heard:
                    self._heard[clip.name] = self._recognized(clip, audio, codec.input_sampling_rate)
        means = {name: float(np.mean(scores)) if scores else None for name, scores in values.items()}
        if self.recognizer is not None:
            spoken = [(clip.transcript, text) for clip, text in texts if has_words(clip.transcript)]
            heard = [(self._heard[clip.name], text) for clip, text in texts]
            means |= {"wer": _error_rate(spoken), "dwer": _error_rate(heard)}
        is_scored = all(means[name] is not None for name in self.score_weights)
        score = sum(weight * means[name] for name, weight in self.score_weights.items()) if is_scored else None
        return {**means, "score": score}

    def _recognized(self, clip: Clip, audio: np.ndarray, sampling_rate: int) -> str:
        return recognize(np.atleast_2d(audio).mean(axis=0), sampling_rate, self.recognizer, clip.language)

    def _write_sample(self, number: int, audio: np.ndarray, decoded: np.ndarray, sampling_rate: int):
        folder = self.output_dir / "samples"
        write_audio(folder / f"{number}-original.flac", audio, sampling_rate)
        write_audio(folder / f"{number}-decoded.flac", decoded, sampling_rate)
        with atomic_path(folder / f"{number}.png") as path:
            shown = [("original", np.atleast_2d(audio)[0]), ("decoded", np.atleast_2d(decoded)[0])]
            path.write_bytes(spectrogram_plot(shown, sampling_rate))

    def _draw_curve(self):
        lines = [json.loads(line) for line in (self.output_dir / "validation.jsonl").read_text().splitlines()]
        figure = Figure(figsize=(3 * len(self.columns), 3), layout="constrained")
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(self.columns))), self.columns):
            measured = [line for line in lines if line[name] is not None]
            axes.plot([line["minutes"] for line in measured], [line[name] for line in measured], marker=".")
            axes.set(title=name, xlabel="minutes")
            axes.grid(alpha=0.3)
        with atomic_path(self.output_dir / "curve.png") as path:
            figure.savefig(path, format="png", dpi=100)


def _error_rate(texts: list[tuple[str, str]]) -> float | None:
    """Word error rate of (reference, recognised); `None` where no reference has a word."""
    return word_errors(*zip(*texts)).rate if texts else None


def _save(model: PreTrainedCodec, extractor: CodecFeatureExtractor, record: dict, folder: Path):
    """Replace a saved folder by one that is complete; it stays until then."""
    replaced = folder.with_name(f".replaced-{folder.name}")
    with atomic_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
        (unfinished / TRAINING_RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (unfinished / CARD_NAME).write_text(f"# {folder.parent.resolve().name}\n")  # the title that the card keeps
        (unfinished / CARD_NAME).write_text(model_card(unfinished))
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
    shutil.rmtree(replaced, ignore_errors=True)
