"""How the averaged weights do on held-out clips, during a run: metrics, samples, the learning curve, saved folders."""

import json
import os
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
from ..hub.cards import CARD_NAME, TRAINING_RECORD, model_card
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.modeling_codec import CodecModel
from .quantization import TrainingQuantizer, folded

METRICS = ("pesq_wb", "stoi", "mel_distance", "si_sdr_db")
NUM_SAMPLES = 2  # clips that are written


class Validation:
    """Measures models and keeps the last and the best of them.

    Args:
        clips: held out from training; with none, models are saved and not measured.
        output_dir: of the run.
    """

    def __init__(self, clips: list[Clip], output_dir: Path):
        self.clips, self.output_dir = clips, output_dir
        self.best: float | None = None  # PESQ-WB of best/

    def __call__(self, model: CodecModel, record: dict) -> dict[str, float | None]:
        """Measure `model` and save it, in its published architecture, with a record of its training, which tells `step`
        and `minutes`. Returns the means of `METRICS`."""
        with folded(model) if isinstance(model.quantizer, TrainingQuantizer) else nullcontext():
            return self._measure_and_save(model, record)

    def _measure_and_save(self, model: CodecModel, record: dict) -> dict[str, float | None]:
        extractor = CodecFeatureExtractor(sampling_rate=model.config.sampling_rate)
        means = self._measure(TransformersCodec("last", model, extractor))
        with (self.output_dir / "validation.jsonl").open("a") as file:
            file.write(json.dumps({"step": record["step"], "minutes": record["minutes"], **means}) + "\n")
        _save(model, extractor, record, self.output_dir / "last")
        score = means.get("pesq_wb")
        if score is not None and (self.best is None or score > self.best):
            self.best = score
            _save(model, extractor, record, self.output_dir / "best")
        self._draw_curve()
        return means

    def _measure(self, codec: TransformersCodec) -> dict[str, float | None]:
        values = {name: [] for name in METRICS}
        for number, clip in enumerate(self.clips):
            audio, sampling_rate = clip.read("mix")
            audio = resample(audio, sampling_rate, codec.input_sampling_rate)
            (decoded,) = codec.decode(codec.encode([audio]), [len(audio)])
            if number < NUM_SAMPLES:
                self._write_sample(number, audio, decoded, codec.input_sampling_rate)
            aligned = align(audio, decoded, codec.input_sampling_rate)
            scores, reasons = compute_metrics(aligned.reference, aligned.estimate, codec.input_sampling_rate, METRICS)
            for name in METRICS:
                if name not in reasons:
                    values[name].append(scores[name])
        return {name: float(np.mean(scores)) if scores else None for name, scores in values.items()}

    def _write_sample(self, number: int, audio: np.ndarray, decoded: np.ndarray, sampling_rate: int):
        folder = self.output_dir / "samples"
        write_audio(folder / f"{number}-original.flac", audio, sampling_rate)
        write_audio(folder / f"{number}-decoded.flac", decoded, sampling_rate)
        with atomic_path(folder / f"{number}.png") as path:
            path.write_bytes(spectrogram_plot([("original", audio), ("decoded", decoded)], sampling_rate))

    def _draw_curve(self):
        lines = [json.loads(line) for line in (self.output_dir / "validation.jsonl").read_text().splitlines()]
        figure = Figure(figsize=(12, 3), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(METRICS)), METRICS):
            axes.plot([line["minutes"] for line in lines], [line[name] for line in lines], marker=".")
            axes.set(title=name, xlabel="minutes")
            axes.grid(alpha=0.3)
        with atomic_path(self.output_dir / "curve.png") as path:
            figure.savefig(path, format="png", dpi=100)


def _save(model: CodecModel, extractor: CodecFeatureExtractor, record: dict, folder: Path):
    """Replace a saved folder by one that is complete."""
    replaced = folder.with_name(f".replaced-{folder.name}-{os.getpid()}")
    if folder.exists():
        folder.rename(replaced)
    with atomic_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
        (unfinished / TRAINING_RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (unfinished / CARD_NAME).write_text(f"# {folder.parent.resolve().name}\n")  # the title that the card keeps
        (unfinished / CARD_NAME).write_text(model_card(unfinished))
    shutil.rmtree(replaced, ignore_errors=True)
