"""What is particular to training a `CodecModel`: its quantizer, the losses of decoded audio, discriminators."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn

from ..evaluation.metrics import MULTISCALE_MELS
from ..models.configuration_codec import CodecConfig
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.modeling_codec import CodecModel
from . import losses
from .compilation import compile_units
from .consistency import consistency_loss
from .discriminators import Discriminator, adversarial_loss, discriminator_loss, feature_matching_loss
from .normalization import recalibrate_norms
from .perceptual import FeatureLoss, PerceptualLoss
from .precision import run_in_bf16, run_units_in_bf16
from .quantization import CodeUseWindow, check_collapse, digit_noise_probability, prepare_quantizer, recalibrate
from .recipe import Phase, Recipe

ADVERSARIAL = {"adversarial", "feature_matching"}


class CodecTraining:
    """Another family of codecs has a class with the same methods; see `LycodecTraining`.

    Args:
        recipe: of the run.
        codec: what is trained; it is prepared for that.
        average: of its weights, during the run.
        accelerator: of the run.
    """

    config_class, model_class, extractor_class = CodecConfig, CodecModel, CodecFeatureExtractor
    metrics = ("pesq_wb", "stoi", "mel_distance", "si_sdr_db")  # of validation
    score_weights = {"pesq_wb": 1 / 4.5, "stoi": 1.0, "mel_distance": -1.0, "dwer": -1.0}  # tell which model is best

    def __init__(self, recipe: Recipe, codec: CodecModel, average: CodecModel, accelerator: Accelerator):
        self.recipe, self.codec, self.average, self.accelerator = recipe, codec, average, accelerator
        self.module: nn.Module = codec  # what a step calls, and whose parameters are trained
        num_batches = recipe.check_collapse_steps * recipe.accumulation_steps
        self.code_use = CodeUseWindow(codec.config.quantization_levels, num_batches)
        self.perceptual = self.features = None
        if any("perceptual" in phase.losses for phase in recipe.phases):
            self.perceptual = PerceptualLoss(recipe.perceptual_model, codec.config.sampling_rate)
            self.perceptual.to(accelerator.device)
        if any("features" in phase.losses for phase in recipe.phases):
            self.features = FeatureLoss(recipe.perceptual_model, codec.config.sampling_rate, recipe.features.layers)
            self.features.to(accelerator.device)
        self.discriminator = self.discriminator_optimizer = None
        if any(ADVERSARIAL & set(phase.losses) for phase in recipe.phases):
            self._prepare_discriminator()

    @staticmethod
    def prepare(codec: CodecModel, recipe: Recipe):
        """Before the codec is copied for the average of its weights."""
        if "quantizer" in recipe.model.parts:
            prepare_quantizer(codec, whitens=recipe.whiten)

    def run_fast(self, in_bf16: bool, compiles: bool):
        """From now on run in bfloat16, compiled, or both; the average does not."""
        if not (compiles and compile_units(self.codec, in_bf16)) and in_bf16:
            run_units_in_bf16(self.codec)
        for module in (self.discriminator, self.features):
            if in_bf16 and module is not None:
                run_in_bf16(module)

    def start_step(self, step: int, phase: Phase):
        """Set what changes with the step."""
        noise = self.recipe.digit_noise
        if "quantizer" in self.recipe.model.parts:
            self.codec.quantizer.noise_probability = digit_noise_probability(
                step, noise.first_step, noise.ramp_steps, noise.probability
            )
            self.codec.quantizer.dropout_probability = phase.quantizer_dropout
        self._is_judged = self.discriminator is not None and bool(ADVERSARIAL & set(phase.losses))
        self._updates_discriminator = self._is_judged and step % self.recipe.discriminators.every == 0

    def loss_functions(
        self, module: nn.Module, batch: dict, num_valid: torch.Tensor, is_last: bool
    ) -> dict[str, Callable[[], torch.Tensor]]:
        """Run a part of a batch; functions that return a loss of its clips, `(batch,)`, by name.

        Args:
            module: `self.module`, as accelerate has prepared it.
            batch: `input_values` and `padding_mask`.
            num_valid: samples of audio in the whole batch.
            is_last: part of the batch.
        """
        output = module(**batch, output_latents=True)
        self.code_use.add(output.audio_codes, output.audio_codes_mask)
        if self._updates_discriminator:
            self._train_discriminator(batch, output.audio_values.detach(), num_valid, is_last)
        original, decoded, mask = batch["input_values"], output.audio_values, batch["padding_mask"]
        config, num_drawn = self.codec.config, self.recipe.scales_per_step
        functions = {
            "waveform": lambda: losses.waveform_loss(original, decoded, mask),
            "stft": lambda: losses.stft_loss(original, decoded, mask),
            "convergence_stft": lambda: losses.convergence_stft_loss(original, decoded, mask),
            "complex_stft": lambda: losses.complex_stft_loss(
                original, decoded, mask, losses.drawn(losses.COMPLEX_STFT_SIZES, num_drawn)
            ),
            "mel": lambda: losses.mel_loss(
                original, decoded, mask, config.sampling_rate, losses.drawn(tuple(MULTISCALE_MELS), num_drawn)
            ),
            "buzz": lambda: losses.buzz_loss(original, decoded, mask, config.sampling_rate, config.hop_length),
            "perceptual": lambda: self.perceptual(original, decoded, mask),
            "features": lambda: self._feature_loss(original, decoded, mask),
            "token_consistency": lambda: consistency_loss(
                self.codec, batch, output.latents, decoded, self.recipe.consistency
            ),
        }
        if self._is_judged:
            self.discriminator.requires_grad_(False)
            with torch.no_grad():
                real = self.discriminator(original, mask)
            fake = self.discriminator(decoded, mask)
            self.discriminator.requires_grad_(True)
            functions["adversarial"] = lambda: adversarial_loss(fake)
            functions["feature_matching"] = lambda: feature_matching_loss(real, fake)
        return functions

    def _feature_loss(self, original: torch.Tensor, decoded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of the share of the batch that is looked at."""
        num_clips = losses.num_of_share(self.recipe.features.share, len(decoded))
        values = self.features(original[:num_clips], decoded[:num_clips], mask[:num_clips])
        return losses.of_whole_batch(values, len(decoded))

    def log_facts(self) -> dict[str, float | tuple[float, ...]]:
        """How much of the codebook is used, bits."""
        use = self.code_use.use()
        return {"token_bits": use.bits, "digit_bits": use.digit_bits}

    def check_collapse(self):
        """Raise `RuntimeError` where the quantizer collapses."""
        check_collapse(self.code_use.use())

    def finish_average(self, batches: Callable[[], Iterable[dict[str, torch.Tensor]]]):
        """Give the averaged weights statistics of their own, before they are measured and saved; `batches` makes some
        of the training's."""
        if "quantizer" in self.recipe.model.parts and self.recipe.whiten:
            recalibrate(self.average, batches())
        if "decoder" in self.recipe.model.parts:
            recalibrate_norms(self.average, batches())

    def state_dict(self) -> dict:
        """What a run that goes on needs beside the module and its optimizers; the use of codes is this process's."""
        state = {"code_use": self.code_use.state_dict()}
        if self.discriminator is not None:
            state["discriminator"] = self.accelerator.unwrap_model(self.discriminator).state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict):
        """Of a `state_dict`, which may hold more."""
        self.code_use.load_state_dict(state["code_use"])
        if self.discriminator is not None:
            self.accelerator.unwrap_model(self.discriminator).load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    def _prepare_discriminator(self):
        sizes = self.recipe.discriminators
        discriminator = Discriminator(period_channels=sizes.period_channels, band_channels=sizes.band_channels)
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=sizes.learning_rate, betas=(0.8, 0.99))
        self.discriminator, self.discriminator_optimizer = self.accelerator.prepare(discriminator, optimizer)

    def _train_discriminator(self, batch: dict, decoded: torch.Tensor, num_valid: torch.Tensor, is_last: bool):
        mask = batch["padding_mask"]
        loss = discriminator_loss(self.discriminator(batch["input_values"], mask), self.discriminator(decoded, mask))
        self.accelerator.backward(losses.batch_mean(loss, mask, num_valid))
        if is_last:
            self.accelerator.clip_grad_norm_(self.discriminator.parameters(), self.recipe.discriminators.clip_norm)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()
