"""What is particular to training a `LycodecModel`: a consistency model, taught by the average of its own weights.

The noise levels and the distance are those of the original (https://github.com/mini-kio/Lycodec at commit 8040de3),
whose trainer can't run; the distance is that of "Improved Techniques for Training Consistency Models" (Song and
Dhariwal 2023, https://arxiv.org/abs/2310.14189, equation 7), taken over samples.
"""

import math
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import nn

from ..models.configuration_lycodec import LycodecConfig
from ..models.feature_extraction_lycodec import LycodecFeatureExtractor
from ..models.modeling_lycodec import LycodecModel
from ..models.precision import at_least_float32
from .losses import convergence_stft_loss
from .perceptual import TokenAlignment
from .precision import run_in_bf16
from .quantization import most_even_gain
from .recipe import Phase, Recipe

HIGHEST_NOISE_LEVEL = 80.0
LEVEL_EXPONENT = 7  # of the levels' distribution, as in Karras et al. 2022
LARGEST_STEP = 0.2  # from one level to the next, of it
HUBER_CONSTANT = 0.00054
STFT_SIZES = tuple((size, size // 4, size) for size in (512, 1024, 2048, 4096))  # FFT, hop and window, samples
LEAST_DIGIT_SHARE = 0.1  # of log2(levels) that the digits must carry on average
MOMENTUM = 0.1  # of the last batch in the latents' running moments
LEAST_VARIANCE = 1e-8  # of latents


class LycodecTraining:
    """As `CodecTraining`, for Lycodec. Crops are those that the codec codes apart from each other.

    From random weights the latents hardly differ from frame to frame, so their digits are constant, and where they grow
    the bound has no gradient. So in a new model, one with the boundary "exact", the encoder's last layer is rescaled
    before each step: over the last batches every latent has the mean 0 and the deviation at which its levels are used
    most evenly. It is a linear layer before and after.

    Losses are "consistency" (`consistency_loss`), "stft" (of audio decoded from `config.noise_level`, in four
    resolutions) and "alignment" (`TokenAlignment`).

    Raises:
        ValueError: crops of another length.
    """

    config_class, model_class, extractor_class = LycodecConfig, LycodecModel, LycodecFeatureExtractor
    metrics = ("stft_distance", "mel_distance", "si_sdr_db")
    score_weights = {"stft_distance": -1.0}

    def __init__(self, recipe: Recipe, codec: LycodecModel, average: LycodecModel, accelerator: Accelerator):
        config = codec.config
        if round(recipe.data.crop_seconds * config.sampling_rate) != config.crop_length:
            raise ValueError(
                f"crop_seconds is {recipe.data.crop_seconds}: this codec's crops, {config.algorithmic_latency} s, are "
                "what it is trained on"
            )
        self.recipe, self.codec, self.accelerator = recipe, codec, accelerator
        alignment = None
        if any("alignment" in phase.losses for phase in recipe.phases):
            alignment = TokenAlignment(recipe.perceptual_model, config.latent_dim, config.sampling_rate)
        self.module = LycodecStep(codec, average, alignment)
        self._code_counts = torch.zeros(config.num_codebooks, config.codebook_size, device=accelerator.device)
        self._rescales = config.boundary == "exact" and "encoder" in recipe.model.parts
        self._deviation = most_even_gain(config.codebook_size)
        self._moments: torch.Tensor | None = None  # of the latents, (2, latent_dim): means and means of squares

    @staticmethod
    def prepare(codec: LycodecModel, recipe: Recipe):
        """Nothing: no module takes another's place."""

    def run_fast(self, in_bf16: bool, compiles: bool):
        """Run the encoder and the decoder's network in bfloat16; transforms, scales and the heads of the bands don't.
        Raises `ValueError` where units are to be compiled: it has none."""
        if compiles:
            raise ValueError("compile is for the residual units of CodecModel, Lycodec has none: leave it out")
        if in_bf16:
            run_in_bf16(self.codec.encoder)
            run_in_bf16(self.codec.decoder.network)

    def start_step(self, step: int, phase: Phase):
        """Rescale the latents, and draw whether the quantizer is left out of this step, the same in all processes."""
        generator = torch.Generator().manual_seed(hash((self.recipe.seed, step)) % 2**63)
        self._quantizes = torch.rand((), generator=generator).item() >= phase.quantizer_dropout
        self._wanted = tuple(phase.losses)
        if self._moments is not None:
            means, mean_squares = self._moments
            rescale_outputs(self.codec.encoder.output_proj, means, mean_squares, self._deviation)
            self._moments = torch.stack([torch.zeros_like(means), torch.full_like(means, self._deviation**2)])

    def loss_functions(
        self, module: nn.Module, batch: dict, num_valid: torch.Tensor, is_last: bool
    ) -> dict[str, Callable[[], torch.Tensor]]:
        """As `CodecTraining.loss_functions`."""
        values, latents = module(batch["input_values"], batch["padding_mask"], self._quantizes, self._wanted)
        digits = self.codec.quantizer.round(latents)
        is_level = digits.flatten(0, 1).T[..., None] == torch.arange(self._code_counts.shape[1], device=digits.device)
        self._code_counts += is_level.sum(dim=1)
        if self._rescales:
            latents = at_least_float32(latents.flatten(0, 1))
            moments = torch.stack([latents.mean(dim=0), latents.square().mean(dim=0)])
            moments = self.accelerator.reduce(moments, reduction="mean")
            self._moments = moments if self._moments is None else self._moments.lerp(moments, MOMENTUM)
        return {name: lambda value=value: value for name, value in values.items()}

    def log_facts(self) -> dict[str, float]:
        """How much the levels are used since the last check for a collapse: bits of a digit, mean of all."""
        return {"digit_bits": self._digit_bits()}

    def check_collapse(self):
        """Raise `RuntimeError` where most digits are constant."""
        bits, most_bits = self._digit_bits(), math.log2(self._code_counts.shape[1])
        self._code_counts.zero_()
        if bits < LEAST_DIGIT_SHARE * most_bits:
            raise RuntimeError(
                f"digits carry {bits:.2f} of {most_bits:.2f} bits on average, less than {LEAST_DIGIT_SHARE:.0%}: the "
                "quantizer collapses; go back to an earlier state with a lower learning rate"
            )

    def finish_average(self, batches: Callable[[], Iterable[dict[str, torch.Tensor]]]):
        """Nothing: the average of rescaled layers is taken as it is."""

    def state_dict(self) -> dict:
        """As `CodecTraining.state_dict`."""
        return {"code_counts": self._code_counts, "latent_moments": self._moments}

    def load_state_dict(self, state: dict):
        """As `CodecTraining.load_state_dict`."""
        self._code_counts.copy_(state["code_counts"])
        self._moments = state["latent_moments"]

    def _digit_bits(self) -> float:
        counts = self.accelerator.reduce(self._code_counts.double(), reduction="sum")
        shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        return float(torch.special.entr(shares).sum(dim=1).mean() / math.log(2))


class LycodecStep(nn.Module):
    """All that a step computes of crops, in one call: losses by name, `(batch,)` each, and latents.

    The teacher is no part of the module. It decodes the same features as the codec.
    """

    def __init__(self, codec: LycodecModel, teacher: LycodecModel, alignment: TokenAlignment | None = None):
        super().__init__()
        self.codec = codec
        self.alignment = alignment
        self._teacher = [teacher]  # a list keeps it from being registered

    def forward(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor, quantizes: bool, wanted: tuple[str, ...]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Float `(batch, 2, crop_length)` and `(batch, crop_length)` to the wanted losses, and latents `(batch,
        frames_per_crop, latent_dim)` without a gradient. Without `quantizes` the decoder gets the bounded latents
        unrounded."""
        codec, quantizer = self.codec, self.codec.quantizer
        clean = codec.spectrogram(input_values)
        latents = codec.encoder(clean)
        features, _ = quantizer(latents)
        if not quantizes:
            features = quantizer.values_to_features(torch.tanh(at_least_float32(latents)))
        values = {}
        if "consistency" in wanted:
            values["consistency"] = self._consistency(clean, features, padding_mask)
        if "stft" in wanted:
            values["stft"] = self._stft(input_values, clean, features, padding_mask)
        if "alignment" in wanted:
            values["alignment"] = self.alignment(input_values, features)
        elif self.alignment is not None:  # processes wait for gradients of all parameters
            nothing = 0 * sum(parameter.sum() for parameter in self.alignment.parameters())
            values = {name: value + nothing for name, value in values.items()}
        return values, latents.detach()

    def _consistency(self, clean: torch.Tensor, features: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        codec, (teacher,) = self.codec, self._teacher
        lower, higher = draw_noise_levels(len(clean), codec.config.min_noise_level, clean.device)
        noise = torch.randn_like(clean)
        student_audio = self._decode(codec, features, clean + _spread(higher) * noise, higher)
        with torch.no_grad():
            teacher_audio = self._decode(teacher, features.detach(), clean + _spread(lower) * noise, lower)
        return consistency_loss(student_audio, teacher_audio, padding_mask, higher - lower)

    def _stft(self, input_values, clean: torch.Tensor, features: torch.Tensor, padding_mask) -> torch.Tensor:
        levels = torch.full((len(clean),), self.codec.config.noise_level, device=clean.device)
        decoded = self._decode(self.codec, features, _spread(levels) * torch.randn_like(clean), levels)
        num_channels = decoded.shape[1]
        original, decoded = (audio.flatten(0, 1).unsqueeze(1) for audio in (input_values, decoded))
        mask = padding_mask.repeat_interleave(num_channels, dim=0)
        return convergence_stft_loss(original, decoded, mask, STFT_SIZES).unflatten(0, (-1, num_channels)).mean(dim=1)

    @staticmethod
    def _decode(codec: LycodecModel, features, noisy: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return codec.spectrogram.inverse(codec.decoder(features, noisy, levels))


@torch.no_grad()
def rescale_outputs(linear: nn.Linear, means: torch.Tensor, mean_squares: torch.Tensor, deviation: float):
    """Give each output of a layer that has these moments, `(out_features,)` each, the mean 0 and this deviation."""
    scales = deviation * (mean_squares - means.square()).clamp(min=LEAST_VARIANCE).rsqrt()
    linear.weight.mul_(scales[:, None])
    linear.bias.sub_(means).mul_(scales)


def draw_noise_levels(num_levels: int, lowest: float, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of neighbours, each `(num_levels,)`: a level from `lowest` to 80, whose seventh root is uniform, and one up
    to a fifth above it. The lower one comes first."""
    shares, steps = torch.rand(2, num_levels, device=device)
    root = 1 / LEVEL_EXPONENT
    top, bottom = HIGHEST_NOISE_LEVEL**root, lowest**root
    lower = (top + shares * (bottom - top)) ** LEVEL_EXPONENT
    return lower, lower * (1 + LARGEST_STEP * steps.clamp(min=1e-3))


def consistency_loss(
    student_audio: torch.Tensor, teacher_audio: torch.Tensor, padding_mask: torch.Tensor, level_steps: torch.Tensor
) -> torch.Tensor:
    """Pseudo-Huber distance by the step between the noise levels, of each clip: `(batch,)`.

    The distance is sqrt(e + c^2) - c with e the mean squared difference of the samples that are audio and c = 0.00054,
    which is that of the paper by the root of the number of samples. (The original divides by the batch's mean step;
    then a clip's loss depends on those beside it.)

    Args:
        student_audio, teacher_audio: float `(batch, num_channels, num_samples)`; the latter gets no gradient.
        padding_mask: `(batch, num_samples)`, 1 for audio.
        level_steps: `(batch,)`, above 0.
    """
    squares = (student_audio - teacher_audio.detach()).square().mean(dim=1)
    errors = (squares * padding_mask).sum(dim=-1) / padding_mask.sum(dim=-1).clamp(min=1)
    return ((errors + HUBER_CONSTANT**2).sqrt() - HUBER_CONSTANT) / level_steps


def _spread(levels: torch.Tensor) -> torch.Tensor:
    """`(batch,)` for a product with spectrograms."""
    return levels[:, None, None, None]
