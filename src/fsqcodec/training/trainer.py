"""The training run: steps, what they log, the state they can be resumed from.

    trainer = Trainer(load_recipe("speech-cpu.yaml"), "run")
    trainer.run()

In the output folder:
    recipe.json         what was asked for
    log.jsonl           losses, learning rate, use of the codebook, one line for some steps
    validation.jsonl    metrics of the averaged weights on the held-out clips
    state.pt            to go on from, after any interruption
    last/, best/        the model: ordinary folders, with a card; best is by PESQ-WB
    samples/, curve.png held-out clips as decoded, and the learning curve
"""

import copy
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from ..atomic import atomic_path
from ..codecs import load_model, model_location
from ..data import find_clips
from ..hub.cards import TRAINING_RECORD
from ..models.configuration_codec import CodecConfig
from ..models.modeling_codec import CodecModel
from . import losses
from .data import Crops, check_disjoint, collate, corpora, crop_batches, hold_out_clips, hold_out_speakers, without
from .discriminators import Discriminator, adversarial_loss, discriminator_loss, feature_matching_loss
from .normalization import recalibrate_norms
from .optimizers import make_optimizers
from .perceptual import PerceptualLoss
from .precision import run_in_bf16, run_units_in_bf16
from .quantization import CodeUseWindow, check_collapse, digit_noise_probability, prepare_quantizer, recalibrate
from .recipe import Recipe, as_dict
from .schedules import ema_weight, learning_rate_share
from .validation import Validation

LOG_EVERY_STEPS = 10
PARTS = ("encoder", "quantizer", "decoder")
NUM_CALIBRATION_CROPS = 96


class Trainer:
    """One run of a recipe, or the rest of one whose state lies in `output_dir`.

    Args:
        recipe: see `training.recipe`.
        output_dir: of the run; made if needed.
        accelerator: for a run in several processes or on a GPU that is set up elsewhere; by default what
            `accelerate launch` and the machine give.

    Raises:
        ValueError: an output folder with another recipe's run; clips or speakers of the evaluation in training.
        FileNotFoundError: sources or a model that are not there.
    """

    def __init__(self, recipe: Recipe, output_dir: str | os.PathLike, accelerator: Accelerator | None = None):
        self.recipe, self.output_dir = recipe, Path(output_dir)
        self.accelerator = accelerator or Accelerator(log_with=recipe.trackers or None, project_dir=self.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._claim_output_dir()
        set_seed(recipe.seed)
        model = _initial_model(recipe)
        self.config = model.config
        self._prepare_data()
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False).to(self.accelerator.device)
        self.accelerator.init_trackers("training")
        self.model, *self.optimizers = self.accelerator.prepare(model, *make_optimizers(model, recipe.optimizer))
        if recipe.precision == "bf16":
            run_units_in_bf16(self._unwrapped)
        self.perceptual = None
        if recipe.perceptual_model is not None:
            self.perceptual = PerceptualLoss(recipe.perceptual_model, self.config.sampling_rate)
            self.perceptual.to(self.accelerator.device)
        self.discriminator = self.discriminator_optimizer = None
        if any({"adversarial", "feature_matching"} & set(phase.losses) for phase in recipe.phases):
            self._prepare_discriminator()
        self.code_use = CodeUseWindow(self.config.quantization_levels, recipe.check_collapse_steps)
        self.step = 0
        self.seconds = 0.0  # spent training, over all resumed runs
        self.validation = Validation(self.validation_clips, self.output_dir)
        if (self.output_dir / "state.pt").exists():
            self._load_state()

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
                    check_collapse(self.code_use.use())
                last = self.step == recipe.num_steps
                if last or self._due(validated, recipe.validate_minutes):
                    self.validate()
                    validated = time.monotonic()
                if last or self._due(saved, recipe.save_minutes):
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
            num_workers=recipe.data.num_workers,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        for batch in loader:
            yield {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """One update by a batch `input_values (batch, 1, num_samples)`, `padding_mask (batch, num_samples)`; returns
        what is logged of it."""
        recipe, step = self.recipe, self.step
        torch.manual_seed(hash((recipe.seed, step, self.accelerator.process_index)) % 2**63)
        phase = recipe.phase(step)
        learning_rate = recipe.optimizer.learning_rate * learning_rate_share(step, recipe.num_steps, recipe.optimizer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        for name in PARTS:
            getattr(self._unwrapped, name).train(name in recipe.model.parts)
        noise = recipe.digit_noise
        if "quantizer" in recipe.model.parts:
            self._unwrapped.quantizer.noise_probability = digit_noise_probability(
                step, noise.first_step, noise.ramp_steps, noise.probability
            )
        # gradients are averaged over processes, so each divides by the mean count
        num_valid = self.accelerator.reduce(batch["padding_mask"].sum().float(), reduction="mean")
        judged = self.discriminator is not None and bool({"adversarial", "feature_matching"} & set(phase.losses))
        update_discriminator = judged and step % recipe.discriminators.every == 0
        totals: dict[str, torch.Tensor] = {}
        parts = _split(batch, recipe.accumulation_steps)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                output = self.model(**part)
                if update_discriminator:
                    self._train_discriminator(part, output.audio_values.detach(), num_valid, is_last)
                values = self._losses(part, output.audio_values, phase, judged)
                means = {
                    name: losses.batch_mean(value, part["padding_mask"], num_valid) for name, value in values.items()
                }
                self.accelerator.backward(sum(means.values()))
            self.code_use.add(output.audio_codes, output.audio_codes_mask)
            for name, mean in means.items():
                totals[name] = totals.get(name, 0) + mean.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._update_average(ema_weight(step, recipe.ema_decay))
        return {"learning_rate": learning_rate, "gradient_norm": norm, "num_valid": num_valid, **totals}

    def validate(self):
        """Measure the averaged weights on the held-out clips and save them to last/, and to best/ if they are."""
        if "quantizer" in self.recipe.model.parts:
            recalibrate(self.averaged, self._calibration_batches())
        if "decoder" in self.recipe.model.parts:
            recalibrate_norms(self.averaged, self._calibration_batches())
        if self.accelerator.is_main_process:
            self._track(self.validation(self.averaged, self._record()))
        self.accelerator.wait_for_everyone()

    def _calibration_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The first crops of the stream: this process's share, as many as every other's."""
        num_crops = NUM_CALIBRATION_CROPS // self.accelerator.num_processes
        first = num_crops * self.accelerator.process_index
        for chunk in _chunks(range(first, first + num_crops), self.recipe.batch_size):
            batch = collate([self.crops[k] for k in chunk])
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

    @property
    def _unwrapped(self) -> CodecModel:
        return self.accelerator.unwrap_model(self.model)

    def _losses(self, batch: dict, decoded: torch.Tensor, phase, judged: bool) -> dict[str, torch.Tensor]:
        """Weighted and capped losses, `(batch,)` each, by name."""
        original, mask = batch["input_values"], batch["padding_mask"]
        functions = {
            "waveform": lambda: losses.waveform_loss(original, decoded, mask),
            "stft": lambda: losses.stft_loss(original, decoded, mask),
            "convergence_stft": lambda: losses.convergence_stft_loss(original, decoded, mask),
            "mel": lambda: losses.mel_loss(original, decoded, mask, self.config.sampling_rate),
            "perceptual": lambda: self.perceptual(original, decoded, mask),
        }
        if judged:
            self.discriminator.requires_grad_(False)
            with torch.no_grad():
                real = self.discriminator(original, mask)
            fake = self.discriminator(decoded, mask)
            self.discriminator.requires_grad_(True)
            functions["adversarial"] = lambda: adversarial_loss(fake)
            functions["feature_matching"] = lambda: feature_matching_loss(real, fake)
        weighted = {name: weight * functions[name]() for name, weight in phase.losses.items()}
        return {
            name: losses.cap(loss, phase.caps[name]) if name in phase.caps else loss for name, loss in weighted.items()
        }

    def _prepare_discriminator(self):
        sizes = self.recipe.discriminators
        discriminator = Discriminator(period_channels=sizes.period_channels, band_channels=sizes.band_channels)
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=sizes.learning_rate, betas=(0.8, 0.99))
        self.discriminator, self.discriminator_optimizer = self.accelerator.prepare(discriminator, optimizer)
        if self.recipe.precision == "bf16":
            run_in_bf16(self.discriminator)

    def _train_discriminator(self, batch: dict, decoded: torch.Tensor, num_valid: torch.Tensor, is_last: bool):
        mask = batch["padding_mask"]
        loss = discriminator_loss(self.discriminator(batch["input_values"], mask), self.discriminator(decoded, mask))
        self.accelerator.backward(losses.batch_mean(loss, mask, num_valid))
        if is_last:
            self.accelerator.clip_grad_norm_(self.discriminator.parameters(), self.recipe.discriminators.clip_norm)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()

    @torch.no_grad()
    def _update_average(self, weight: float):
        for average, parameter in zip(self.averaged.parameters(), self._unwrapped.parameters()):
            if parameter.requires_grad:
                average.lerp_(parameter, weight)

    def _prepare_data(self):
        data = self.recipe.data
        evaluation = find_clips(data.evaluation)
        clips = without(find_clips(data.train), evaluation)
        check_disjoint(clips, evaluation)
        self.validation_clips = []
        if data.hold_out_speakers and any(clip.speaker for clip in clips):
            clips, held_out = hold_out_speakers(clips, data.hold_out_speakers, self.recipe.seed)
            step = max(1, len(held_out) // data.num_validation_clips)
            self.validation_clips = held_out[::step][: data.num_validation_clips]
        elif data.hold_out_speakers:
            clips, self.validation_clips = hold_out_clips(clips, data.num_validation_clips, self.recipe.seed)
        self.crops = Crops(
            clips,
            self.config.sampling_rate,
            data.crop_seconds,
            self.recipe.seed,
            normalize_level=data.normalize_level,
            gain_db=data.gain_db,
            flip_polarity=data.flip_polarity,
            speed=data.speed,
        )

    def _log(self, facts: dict, progress: tqdm):
        use = self.code_use.use()
        hours = self._hours_of_audio()
        line = {
            "step": self.step,
            "hours_of_audio": hours,
            "audio_seconds_per_second": 3600 * hours / max(self.seconds, 1e-9),
            **{name: float(value) for name, value in facts.items()},
            "token_bits": use.bits,
            "digit_bits": use.digit_bits,
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
            if json.loads(path.read_text()) != asked:
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
                "model": self._unwrapped.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "best": self.validation.best,
                "code_use": self.code_use.state_dict(),  # of the main process
            }
            if self.discriminator is not None:
                state["discriminator"] = self.accelerator.unwrap_model(self.discriminator).state_dict()
                state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
            with atomic_path(self.output_dir / "state.pt") as path, path.open("wb") as file:
                torch.save(state, file)
        self.accelerator.wait_for_everyone()

    def _load_state(self):
        state = torch.load(self.output_dir / "state.pt", map_location=self.accelerator.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.validation.best = state["best"]
        self.code_use.load_state_dict(state["code_use"])
        self._unwrapped.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(its_state)
        if self.discriminator is not None:
            self.accelerator.unwrap_model(self.discriminator).load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        if self.accelerator.is_main_process:
            for name in ("log.jsonl", "validation.jsonl"):
                _drop_lines_after(self.output_dir / name, self.step)


def _initial_model(recipe: Recipe) -> CodecModel:
    if recipe.model.preset is not None:
        model = CodecModel(CodecConfig.from_preset(recipe.model.preset, **recipe.model.overrides))
    else:
        model = load_model(recipe.model.folder, device="cpu")
        if not isinstance(model, CodecModel):
            raise ValueError(f"{recipe.model.folder} is a {type(model).__name__}: only a CodecModel can be trained")
        if recipe.model.overrides:
            model = _moved(model, recipe.model.overrides)
    if "quantizer" in recipe.model.parts:
        prepare_quantizer(model)
    for name in PARTS:
        getattr(model, name).requires_grad_(name in recipe.model.parts)
    return model.train()


def _training_record(folder: str | None) -> dict | None:
    """What the folder of a model that this trainer saved tells of its training; a Hub id tells nothing here."""
    record = Path(model_location(folder)) / TRAINING_RECORD if folder else None
    return json.loads(record.read_text()) if record and record.is_file() else None


def _moved(model: CodecModel, overrides: dict) -> CodecModel:
    """A model with the same weights and another configuration; statistics of running norms may be new."""
    moved = CodecModel(CodecConfig.from_dict(model.config.to_dict() | overrides))
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
