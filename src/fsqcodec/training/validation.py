"""How the averaged weights do on held-out clips, during a run: metrics, samples, the learning curve, saved folders."""

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
from ..evaluation.metrics import METRICS, compute_metrics
from ..evaluation.plots import spectrogram_plot
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
        metrics: of `METRICS`; the best model is the best by the first.
    """

    def __init__(self, clips: list[Clip], output_dir: Path, extractor: CodecFeatureExtractor, metrics: tuple[str, ...]):
        self.clips, self.output_dir, self.extractor, self.metrics = clips, output_dir, extractor, metrics
        self.best: float | None = None  # the first metric of best/

    def __call__(self, model: PreTrainedCodec, record: dict) -> dict[str, float | None]:
        """Measure `model` and save it, in its published architecture, with a record of its training, which tells `step`
        and `minutes`. Returns the means of its metrics."""
        with folded(model) if isinstance(model.quantizer, TrainingQuantizer) else nullcontext():
            return self._measure_and_save(model, record)

    def _measure_and_save(self, model: PreTrainedCodec, record: dict) -> dict[str, float | None]:
        means = self._measure(TransformersCodec("last", model, self.extractor))
        with (self.output_dir / "validation.jsonl").open("a") as file:
            file.write(json.dumps({"step": record["step"], "minutes": record["minutes"], **means}) + "\n")
        _save(model, self.extractor, record, self.output_dir / "last")
        score = means[self.metrics[0]]
        if score is not None and (self.best is None or self._is_better(score)):
            self.best = score
            _save(model, self.extractor, record, self.output_dir / "best")
        self._draw_curve()
        return means

    def _is_better(self, score: float) -> bool:
        return score > self.best if METRICS[self.metrics[0]].better == "higher" else score < self.best

    def _measure(self, codec: TransformersCodec) -> dict[str, float | None]:
        values = {name: [] for name in self.metrics}
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
        return {name: float(np.mean(scores)) if scores else None for name, scores in values.items()}

    def _write_sample(self, number: int, audio: np.ndarray, decoded: np.ndarray, sampling_rate: int):
        folder = self.output_dir / "samples"
        write_audio(folder / f"{number}-original.flac", audio, sampling_rate)
        write_audio(folder / f"{number}-decoded.flac", decoded, sampling_rate)
        with atomic_path(folder / f"{number}.png") as path:
            shown = [("original", np.atleast_2d(audio)[0]), ("decoded", np.atleast_2d(decoded)[0])]
            path.write_bytes(spectrogram_plot(shown, sampling_rate))

    def _draw_curve(self):
        lines = [json.loads(line) for line in (self.output_dir / "validation.jsonl").read_text().splitlines()]
        figure = Figure(figsize=(12, 3), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(self.metrics)), self.metrics):
            axes.plot([line["minutes"] for line in lines], [line[name] for line in lines], marker=".")
            axes.set(title=name, xlabel="minutes")
            axes.grid(alpha=0.3)
        with atomic_path(self.output_dir / "curve.png") as path:
            figure.savefig(path, format="png", dpi=100)


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
