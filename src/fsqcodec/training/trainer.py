"""The training run: steps, what they log, the state they can be resumed from.

    trainer = Trainer(load_recipe("speech-cpu.yaml"), "run")
    trainer.run()

In the output folder:
    recipe.json         what was asked for
    log.jsonl           losses, learning rate, use of the codebook, one line for some steps
    validation.jsonl    metrics of the averaged weights on the held-out clips
    state.pt            to go on from, after any interruption
    last/, best/        the model: ordinary folders, with a card; best by the score, see `validation`
    samples/, curve.png held-out clips as decoded, and the learning curve

What differs between families of codecs is in `codec_training` and `lycodec_training`.
"""

import copy
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from ..atomic import atomic_path
from ..codecs import load_model, model_location
from ..hub.cards import TRAINING_RECORD
from ..models.pretrained import PreTrainedCodec
from ..presets import preset_config
from . import losses
from .codec_training import CodecTraining
from .data import Crops, corpora, crop_batches, hold_out, training_sources
from .lycodec_training import LycodecTraining
from .optimizers import make_optimizers
from .precision import is_bf16_fast
from .recipe import LOSSES, Recipe, as_dict, check_losses, recipe_of_dict
from .resident_crops import resident_if_they_fit
from .schedules import ema_weight, learning_rate_share
from .validation import Validation

LOG_EVERY_STEPS = 10
PARTS = ("encoder", "quantizer", "decoder")
NUM_CALIBRATION_CROPS = 96
FAMILIES = {family.config_class.model_type: family for family in (CodecTraining, LycodecTraining)}


class Trainer:
    """One run of a recipe, or the rest of one whose state lies in `output_dir`.

    Args:
        recipe: see `training.recipe`.
        output_dir: of the run; made if needed.
        accelerator: for a run in several processes or on a GPU that is set up elsewhere; by default what
            `accelerate launch` and the machine give.

    Raises:
        ValueError: an output folder with another recipe's run; an evaluation with speakers, and clips to train on that
            do not tell theirs.
        FileNotFoundError: sources or a model that are not there.
    """

    def __init__(self, recipe: Recipe, output_dir: str | os.PathLike, accelerator: Accelerator | None = None):
        self.recipe, self.output_dir = recipe, Path(output_dir)
        self.accelerator = accelerator or Accelerator(log_with=recipe.trackers or None, project_dir=self.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._claim_output_dir()
        set_seed(recipe.seed)
        self.codec = _initial_model(recipe)
        self.config = self.codec.config
        self._prepare_data()
        self.averaged = copy.deepcopy(self.codec).eval().requires_grad_(False).to(self.accelerator.device)
        if recipe.gradient_checkpointing:
            self.codec.gradient_checkpointing_enable({"use_reentrant": False})
        self.accelerator.init_trackers("training")
        self.family = FAMILIES[self.config.model_type](recipe, self.codec, self.averaged, self.accelerator)
        module = self.family.module
        self.model, *self.optimizers = self.accelerator.prepare(module, *make_optimizers(module, recipe.optimizer))
        in_bf16 = recipe.precision == "bf16"
        if in_bf16 and not is_bf16_fast(self.accelerator.device):
            warnings.warn("bf16 is slower than float32 on this processor: all runs in float32", stacklevel=2)
            in_bf16 = False
        self.family.run_fast(in_bf16, recipe.compile)
        self.step = 0
        self.seconds = 0.0  # spent training, over all resumed runs
        extractor = self.family.extractor_class(sampling_rate=self.config.sampling_rate)
        self.validation = Validation(
            self.validation_clips,
            self.output_dir,
            extractor,
            self.family.metrics,
            self.family.score_weights,
            recipe.recognizer,
            recipe.recognize_every,
        )
        if (self.output_dir / "state.pt").exists():
            self._load_state()
        if self.accelerator.is_main_process:
            for name in ("log.jsonl", "validation.jsonl"):
                _drop_lines_after(self.output_dir / name, self.step)

    def run(self):
        """Train to the recipe's last step. Raises `RuntimeError` where the quantizer collapses."""
        recipe = self.recipe
        started, validated, saved = time.monotonic() - self.seconds, time.monotonic(), time.monotonic()
        batches = self.accelerator_batches()
        with tqdm(total=recipe.num_steps, initial=self.step, disable=not self.accelerator.is_main_process) as progress:
            for batch in batches:
                facts = self.train_step(batch)
                self.step += 1
                self.seconds = time.monotonic() - started
                progress.update()
                if self.step % LOG_EVERY_STEPS == 0:
                    self._log(facts, progress)
                if self.step % recipe.check_collapse_steps == 0:
                    self.family.check_collapse()
                validates = self.step == recipe.num_steps or self._due(validated, recipe.validate_minutes)
                if validates:
                    self.validate()
                    validated = time.monotonic()
                if validates or self._due(saved, recipe.save_minutes):  # the state tells how good best/ is
                    self._save_state()
                    saved = time.monotonic()

    def accelerator_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """This process's part of each batch from the current step on, on its device."""
        recipe = self.recipe
        loader = crop_batches(
            self.crops,
            recipe.batch_size,
            recipe.num_steps,
            first_batch=self.step,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        for batch in loader:
            yield {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}

    def train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """One update by a batch `input_values (batch, num_channels, num_samples)`, `padding_mask (batch, num_samples)`;
        returns what is logged of it."""
        recipe, step = self.recipe, self.step
        torch.manual_seed(hash((recipe.seed, step, self.accelerator.process_index)) % 2**63)
        phase = recipe.phase(step)
        learning_rate = recipe.optimizer.learning_rate * learning_rate_share(step, recipe.num_steps, recipe.optimizer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        for name in PARTS:
            getattr(self.codec, name).train(name in recipe.model.parts)
        self.family.start_step(step, phase)
        # gradients are averaged over processes, so each divides by the mean count
        num_valid = self.accelerator.reduce(batch["padding_mask"].sum().float(), reduction="mean")
        totals: dict[str, torch.Tensor] = {}
        parts = _split(batch, recipe.accumulation_steps)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                functions = self.family.loss_functions(self.model, part, num_valid, is_last)
                means = {}
                for name, weight in phase.losses.items():
                    value = weight * functions[name]()
                    value = losses.cap(value, phase.caps[name]) if name in phase.caps else value
                    means[name] = losses.batch_mean(value, part["padding_mask"], num_valid)
                self.accelerator.backward(sum(means.values()))
            for name, mean in means.items():
                totals[name] = totals.get(name, 0) + mean.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._update_average(ema_weight(step, recipe.ema_decay))
        return {"learning_rate": learning_rate, "gradient_norm": norm, "num_valid": num_valid, **totals}

    def validate(self):
        """Measure the averaged weights on the held-out clips and save them to last/, and also to best/ if they score
        highest so far."""
        self.family.finish_average(self._calibration_batches)
        if self.accelerator.is_main_process:
            self._track(self.validation(self.averaged, self._record(), self.step == self.recipe.num_steps))
        self.accelerator.wait_for_everyone()

    def _calibration_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The first crops of the stream: this process's share, as many as every other's."""
        num_crops = NUM_CALIBRATION_CROPS // self.accelerator.num_processes
        first = num_crops * self.accelerator.process_index
        for chunk in _chunks(range(first, first + num_crops), self.recipe.batch_size):
            batch = self.crops.batch(chunk)
            yield {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _record(self) -> dict:
        """What the card of a saved model tells of its training."""
        return {
            "fsqcodec_version": version("fsqcodec"),
            "step": self.step,
            "minutes": self.seconds / 60,
            "hours_of_audio": self._hours_of_audio(),
            "device": self.accelerator.device.type,
            "num_processes": self.accelerator.num_processes,
            "data": corpora(self.crops.clips),
            "recipe": as_dict(self.recipe),
            "earlier_training": _training_record(self.recipe.model.folder),
        }

    def _hours_of_audio(self) -> float:
        return self.step * self.recipe.batch_size * self.recipe.data.crop_seconds / 3600

    def _track(self, values: dict[str, float | None]):
        """Give numbers to the trackers of accelerate."""
        self.accelerator.log({name: value for name, value in values.items() if value is not None}, step=self.step)

    @torch.no_grad()
    def _update_average(self, weight: float):
        pairs = zip(self.averaged.parameters(), self.codec.parameters())
        averages, parameters = zip(*((average, each) for average, each in pairs if each.requires_grad))
        get_ema_multi_avg_fn(1 - weight)(averages, parameters, None)

    def _prepare_data(self):
        data = self.recipe.data
        sources, self.validation_clips = hold_out(
            training_sources(data.train, data.evaluation),
            data.hold_out_speakers,
            data.num_validation_clips,
            self.recipe.seed,
        )
        crops = Crops(
            sources,
            self.config.sampling_rate,
            data.crop_seconds,
            self.recipe.seed,
            normalize_level=data.normalize_level,
            gain_db=data.gain_db,
            flip_polarity=data.flip_polarity,
            speed=data.speed,
            num_channels=self.config.num_channels,
        )
        self.crops = resident_if_they_fit(crops, self.accelerator.device)

    def _log(self, facts: dict, progress: tqdm):
        family_facts = self.family.log_facts()  # of all processes
        hours = self._hours_of_audio()
        line = {
            "step": self.step,
            "hours_of_audio": hours,
            "audio_seconds_per_second": 3600 * hours / max(self.seconds, 1e-9),
            **{name: float(value) for name, value in facts.items()},
            **family_facts,
        }
        if self.accelerator.is_main_process:
            with (self.output_dir / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._track({name: value for name, value in line.items() if isinstance(value, (int, float))})
            progress.set_postfix_str(f"{hours:.1f} h of audio, {line['audio_seconds_per_second']:.1f} s/s")

    def _due(self, since: float, minutes: float) -> bool:
        """The same in all processes: the main one's clock decides."""
        due = torch.tensor(float(time.monotonic() - since > 60 * minutes), device=self.accelerator.device)
        return bool(self.accelerator.gather(due[None])[0])

    def _claim_output_dir(self):
        """Write the recipe, or compare it with the one of the run that is to be resumed."""
        path, asked = self.output_dir / "recipe.json", as_dict(self.recipe)
        if path.exists():
            if recipe_of_dict(json.loads(path.read_text()), os.fspath(path)) != self.recipe:
                raise ValueError(f"{self.output_dir} holds a run of another recipe: give another output folder")
        elif self.accelerator.is_main_process:
            with atomic_path(path) as unfinished:
                unfinished.write_text(json.dumps(asked, indent=1) + "\n")
        self.accelerator.wait_for_everyone()

    def _save_state(self):
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "model": self.accelerator.unwrap_model(self.model).state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "best": self.validation.best,
                "num_validations": self.validation.num_validations,
                **self.family.state_dict(),
            }
            with atomic_path(self.output_dir / "state.pt") as path, path.open("wb") as file:
                torch.save(state, file)
        self.accelerator.wait_for_everyone()

    def _load_state(self):
        state = torch.load(self.output_dir / "state.pt", map_location=self.accelerator.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.validation.best, self.validation.num_validations = state["best"], state["num_validations"]
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(its_state)
        self.family.load_state_dict(state)


def _initial_model(recipe: Recipe) -> PreTrainedCodec:
    if recipe.model.preset is not None:
        config = type(preset_config(recipe.model.preset)).from_preset(recipe.model.preset, **recipe.model.overrides)
        codec = FAMILIES[config.model_type].model_class(config)
    else:
        codec = load_model(recipe.model.folder, device="cpu")
        if codec.config.model_type not in FAMILIES:
            trained = " and ".join(family.model_class.__name__ for family in FAMILIES.values())
            raise ValueError(f"{recipe.model.folder} is a {type(codec).__name__}: {trained} can be trained")
        for phase in recipe.phases:
            check_losses(phase, LOSSES[codec.config.model_type], recipe.model.folder)
        if recipe.model.overrides:
            codec = _moved(codec, recipe.model.overrides)
    FAMILIES[codec.config.model_type].prepare(codec, recipe)
    for name in PARTS:
        getattr(codec, name).requires_grad_(name in recipe.model.parts)
    return codec.train()


def _training_record(folder: str | None) -> dict | None:
    """What the folder of a model that this trainer saved tells of its training; a Hub id tells nothing here."""
    record = Path(model_location(folder)) / TRAINING_RECORD if folder else None
    return json.loads(record.read_text()) if record and record.is_file() else None


def _moved(model: PreTrainedCodec, overrides: dict) -> PreTrainedCodec:
    """A model with the same weights and another configuration; statistics of running norms may be new."""
    moved = type(model)(type(model.config).from_dict(model.config.to_dict() | overrides))
    weights, places = model.state_dict(), moved.state_dict()
    new = {name for name in places.keys() - weights.keys() if not name.split(".")[-1].startswith("running_")}
    misfits = sorted(new | (weights.keys() - places.keys()))
    misfits += [name for name in weights.keys() & places.keys() if weights[name].shape != places[name].shape]
    if misfits:
        raise ValueError(f"with {overrides} the model's {misfits[0]} has no place: train from a preset instead")
    moved.load_state_dict(weights, strict=False)
    return moved


def _split(batch: dict[str, torch.Tensor], num_parts: int) -> list[dict[str, torch.Tensor]]:
    chunks = {name: tensor.chunk(num_parts) for name, tensor in batch.items()}
    return [dict(zip(chunks, parts)) for parts in zip(*chunks.values())]


def _chunks(items: Sequence, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _drop_lines_after(path: Path, step: int):
    """What a run logged after its last state is logged again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with atomic_path(path) as unfinished:
            unfinished.write_text("".join(kept))
