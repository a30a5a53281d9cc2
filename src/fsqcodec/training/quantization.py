"""A codec's quantizer in training: digits that keep moving, and statistics that fold away when the model is saved.

From random weights the pre-activations of the digits drift until the bound has no gradient and tokens are constant.
`prepare_quantizer` whitens them over the batch, with a gain at which the levels of a digit are used most evenly; at
inference this is a linear map, and `folded` gives the model its published architecture back:

    quantizer = prepare_quantizer(model)
    for step, batch in enumerate(batches):
        quantizer.noise_probability = digit_noise_probability(step, first_step=2000, ramp_steps=2000)
        output = model(**batch)
        ...
    recalibrate(model, some_batches)
    with folded(model):
        model.save_pretrained(folder)
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ..models.convolution import sum_over_processes
from ..models.modeling_codec import CodecModel
from ..models.padding import zero_padding
from ..models.precision import Float32Linear
from ..models.quantization import FiniteScalarQuantizer, indices_to_digits

VARIANCE_EPS = 1e-6
SHRINKAGE = 0.01  # of the digits' correlations towards none
HEAVY_TAILS = 1.6  # on the gain for normal pre-activations: those of speech crowd at 0 in its pauses


def prepare_quantizer(model: CodecModel, momentum: float = 0.1, whitens: bool = True) -> "TrainingQuantizer":
    """Put a `TrainingQuantizer` in the place of the model's quantizer, with the same parameters, and return it.

    Until it is trained or recalibrated the model computes at inference what it did before: for a model that was trained
    so and saved `folded`, training goes on where it stopped. `model(...)` tells the quantizer which frames are padding.
    Copies of the model (`copy.deepcopy`, for an average of its weights) have their own statistics.

    Args:
        momentum: weight of the last batch in the running statistics, in (0, 1].
        whitens: `False` keeps the statistics that the model has, in training too. A trained model doesn't collapse at a
            gentle rate, and the statistics of a small batch are noise: with 32 crops of a second they make the mel
            distance of `speech-3kbps` in training a third larger than it is.

    Raises:
        ValueError: it has one already.
    """
    if isinstance(model.quantizer, TrainingQuantizer):
        raise ValueError("the model's quantizer is prepared for training already: prepare it once")
    model.quantizer = TrainingQuantizer(model.quantizer, momentum, whitens).train(model.training)
    model.register_forward_pre_hook(_tell_padding, with_kwargs=True)
    return model.quantizer


@contextmanager
def folded(model: CodecModel) -> Iterator[CodecModel]:
    """Within the block the model has its published architecture, to be evaluated and saved."""
    training_quantizer = model.quantizer
    model.quantizer = training_quantizer.fold()
    try:
        yield model
    finally:
        model.quantizer = training_quantizer


@torch.no_grad()
def recalibrate(model: CodecModel, batches: Iterable[dict[str, torch.Tensor]]):
    """Replace the running statistics, which lag behind the weights, by the exact ones over all frames of `batches`.

    Args:
        model: with a `TrainingQuantizer`; of an average of weights, the averaged model. It runs in eval mode.
        batches: arguments of `CodecModel.encode`, on the model's device; each process gives its own, and statistics
            are those of all together.

    Raises:
        ValueError: no batches.
    """
    was_training = model.training
    model.eval()
    projection = model.quantizer.project_in
    count, total, products = 0, 0, 0
    for batch in batches:
        encoded = model.encode(**batch, output_latents=True)
        latents = encoded.latents.transpose(1, 2)[encoded.audio_codes_mask.bool()]
        z = projection.unwhitened(latents).double().cpu()
        count, total, products = count + len(z), total + z.sum(dim=0), products + z.T @ z
    model.train(was_training)
    count, total, products = (sum(sums) for sums in zip(*_of_all_processes((count, total, products))))
    if not count:
        raise ValueError("there are no batches to recalibrate on: a few dozen clips are wanted")
    mean = total / count
    projection.running_mean.copy_(mean)
    projection.running_covariance.copy_(products / count - mean.outer(mean))


class TrainingQuantizer(FiniteScalarQuantizer):
    """A `FiniteScalarQuantizer` whose pre-activations are whitened, and whose digits can be noisy in training.

    It has the parameters of the quantizer it is made of, under the same names, and the running statistics as buffers
    `project_in.running_mean` and `project_in.running_covariance`.

    `noise_probability`, in [0, 1]: in training, each digit independently reaches the decoder unrounded with this
    probability, with noise added that is uniform over one distance between levels (half of it on either side), as in
    https://github.com/zhai-lw/L3AC (branch `train`; there, a little narrower). Tokens are the rounded digits all the
    same. 0 at first; see `digit_noise_probability`.

    `dropout_probability`, in [0, 1]: in training, each clip independently reaches the decoder unrounded with this
    probability: encoder and decoder learn together first, and the rounding comes later, as in ESC (Gu and Diao 2024,
    arXiv:2404.19441). 0 at first.

    Make it with `prepare_quantizer`.
    """

    def __init__(self, quantizer: FiniteScalarQuantizer, momentum: float, whitens: bool = True):
        with torch.device("meta"):
            super().__init__(quantizer.project_in.in_features, quantizer.quantization_levels, quantizer.bound)
        device = quantizer.project_in.weight.device
        _, shift, _ = self._bound_constants(device)
        gain = HEAVY_TAILS * torch.tensor([most_even_gain(n) for n in self.quantization_levels], device=device)
        self.project_in = WhitenedLinear(quantizer.project_in, gain, -shift, momentum, whitens)
        self.project_out = quantizer.project_out
        self.noise_probability = 0.0
        self.dropout_probability = 0.0

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `FiniteScalarQuantizer`: latents `(batch, num_frames, latent_dim)` to the decoder's input, with gradients
        that pass rounding and noise unchanged, and indices `(batch, num_frames)`."""
        if not (self.training and (self.noise_probability or self.dropout_probability)):
            return super().forward(latents)
        positions = self.positions(latents)
        digits = self.round(positions)
        is_noisy = torch.rand_like(positions) < self.noise_probability
        noisy_positions = positions + torch.rand_like(positions) - 0.5
        heard = torch.where(is_noisy, noisy_positions, digits.to(positions.dtype))
        is_unrounded = torch.rand_like(positions[:, :1, :1]) < self.dropout_probability
        heard = torch.where(is_unrounded, positions, heard)
        soft_values = self._to_values(positions)
        values = soft_values + (self._to_values(heard) - soft_values).detach()
        return self.values_to_features(values), self.digits_to_indices(digits)

    def positions_beside(
        self, latents: torch.Tensor, clean_latents: torch.Tensor, clean_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of latents `(num_clips, num_frames, latent_dim)`, and of the clean ones `(batch, num_frames,
        latent_dim)`, both whitened by the statistics of the clean ones over the frames of `clean_mask` `(batch,
        num_frames)`, bool: what the model makes of both would differ by more if each had its own."""
        projection = self.project_in
        clean = projection.unwhitened(clean_latents)
        mean, covariance = projection.statistics(clean, clean_mask)
        half_range, shift, offset = self._bound_constants(latents.device)

        def bounded(z: torch.Tensor) -> torch.Tensor:
            return torch.tanh(projection.whitened(z, mean, covariance) + shift) * half_range + offset

        return bounded(projection.unwhitened(latents)), bounded(clean)

    def fold(self) -> FiniteScalarQuantizer:
        """A quantizer of the published architecture that computes what this one does now, in eval mode."""
        with torch.device("meta"):
            quantizer = FiniteScalarQuantizer(self.project_in.in_features, self.quantization_levels, self.bound)
        quantizer.project_in = self.project_in.fold()
        quantizer.project_out = self.project_out
        return quantizer.train(self.training)


class WhitenedLinear(Float32Linear):
    """A linear layer whose outputs are uncorrelated, with mean `offset` and standard deviation `gain`: over the valid
    frames of the batch in all processes in training, whose statistics go into the running ones, and by the running
    ones in eval mode, where no gradient reaches its parameters.

    Digits that repeat each other waste bits, and each one's own normalisation doesn't keep them from it. The outputs
    are multiplied by the inverse Cholesky factor of their covariance (Siarohin et al. 2018,
    https://arxiv.org/abs/1806.00420, section 3.1), whose correlations are shrunk a little, so that what hardly varies
    is not blown up.

    Args:
        linear: whose parameters it shares.
        gain, offset: `(out_features,)`.
        momentum: weight of the last batch in the running statistics.
        whitens: `False` for the running statistics, which stay, in training too.
    """

    def __init__(
        self, linear: nn.Linear, gain: torch.Tensor, offset: torch.Tensor, momentum: float, whitens: bool = True
    ):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.momentum, self.whitens = momentum, whitens
        self.frame_mask: torch.Tensor | None = None  # bool (batch, num_frames), of the next batch only
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("running_mean", offset.clone())  # with these two it changes nothing
        self.register_buffer("running_covariance", torch.diag(gain.square() - VARIANCE_EPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, num_frames, in_features)` to `(batch, num_frames, out_features)`, float32."""
        mask, self.frame_mask = self.frame_mask, None
        if not self.training:
            return self.fold()(x)
        z = self.unwhitened(x)
        mean, covariance = self.statistics(z, mask)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_covariance.lerp_(covariance, self.momentum)
        return self.whitened(z, mean, covariance)

    def statistics(self, z: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance to whiten by: of `z`, made by `unwhitened`, over the frames of `mask`, or the running
        ones where nothing is whitened in training."""
        return _mean_and_covariance(z, mask) if self.whitens else (self.running_mean, self.running_covariance)

    def whitened(self, z: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        """The layer's output where `z`, of `unwhitened`, has this mean and covariance."""
        return (z - mean) @ self._whitening(covariance).T + self.offset

    def unwhitened(self, x: torch.Tensor) -> torch.Tensor:
        """What the linear layer alone computes."""
        return super().forward(x)

    @torch.no_grad()
    def fold(self) -> Float32Linear:
        """The linear layer that computes what this one does in eval mode."""
        whitening = self._whitening(self.running_covariance)
        linear = Float32Linear(self.in_features, self.out_features, device="meta")
        linear.weight = nn.Parameter((whitening @ self.weight.to(whitening.dtype)).to(self.weight.dtype))
        bias = whitening @ (self.bias - self.running_mean) + self.offset
        linear.bias = nn.Parameter(bias.to(self.bias.dtype))
        return linear

    def _whitening(self, covariance: torch.Tensor) -> torch.Tensor:
        """The matrix that gives outputs of this covariance the variances `gain ** 2` and no correlation."""
        scale = (covariance.diagonal() + VARIANCE_EPS).rsqrt()
        correlation = covariance * scale[:, None] * scale
        identity = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
        factor = torch.linalg.cholesky(correlation.lerp(identity, SHRINKAGE))
        return self.gain[:, None] * torch.linalg.solve_triangular(factor, torch.diag(scale), upper=False)


def _tell_padding(model: CodecModel, args: tuple, kwargs: dict):
    """Before `model.forward`: which frames hold audio, as its own `audio_codes_mask` says afterwards."""
    padding_mask = kwargs.get("padding_mask", args[1] if len(args) > 1 else None)
    if padding_mask is not None and isinstance(model.quantizer, TrainingQuantizer):
        model.quantizer.project_in.frame_mask = padding_mask[:, :: model.config.hop_length].bool()


def _mean_and_covariance(z: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `z (batch, num_frames, num_digits)` over the frames of `mask (batch, num_frames)` in all processes:
    `(num_digits,)` and `(num_digits, num_digits)`, with the count as divisor. Gradients reach all processes' frames."""
    mask = torch.ones_like(z[..., 0], dtype=torch.bool) if mask is None else mask
    z = zero_padding(z, mask.unsqueeze(-1))
    count = mask.sum().to(z.dtype).expand(1)
    *total, count = sum_over_processes(torch.cat([z.sum(dim=(0, 1)), count])).unbind()
    mean = torch.stack(total) / count
    centred = zero_padding(z - mean, mask.unsqueeze(-1)).flatten(0, 1)
    return mean, sum_over_processes(centred.T @ centred) / count


def most_even_gain(num_levels: int) -> float:
    """The standard deviation of a normal pre-activation at which its digit, bounded by tanh, has most entropy.

    Level i lies between atanh((2i - L) / (L - 1)) and the same for i + 1, the outermost ones reach to infinity; the
    highest entropy is looked for in steps of 0.01. 2 levels are used evenly at any gain: 1.
    """
    if num_levels == 2:
        return 1.0
    gains = torch.arange(0.1, 3.0, 0.01, dtype=torch.float64)
    edges = torch.atanh((2 * torch.arange(1, num_levels, dtype=torch.float64) - num_levels) / (num_levels - 1))
    below = torch.special.ndtr(edges / gains[:, None])
    shares = torch.diff(below, dim=1, prepend=torch.zeros(len(gains), 1), append=torch.ones(len(gains), 1))
    return gains[torch.special.entr(shares).sum(dim=1).argmax()].item()


def digit_noise_probability(step: int, first_step: int, ramp_steps: int, probability: float = 0.5) -> float:
    """A schedule for `TrainingQuantizer.noise_probability`: 0 up to `first_step`, then in a straight line of
    `ramp_steps` up to `probability`, where it stays.

    A decoder that hears noise from the start takes the digits for noise; so it begins late. 0.5 is the original's.
    """
    return probability * min(max((step - first_step) / max(ramp_steps, 1), 0.0), 1.0)


@dataclass(frozen=True)
class CodeUse:
    """How much of a codebook the tokens of some steps use.

    Args:
        num_frames: tokens counted.
        num_used: different ones.
        bits: entropy of the tokens, at most log2(num_frames).
        digit_bits: entropy of each digit.
        quantization_levels: of the codebook.
    """

    num_frames: int
    num_used: int
    bits: float
    digit_bits: tuple[float, ...]
    quantization_levels: tuple[int, ...]

    @property
    def most_bits(self) -> float:
        """What `bits` could be: of the codebook, and of so few tokens."""
        return math.log2(min(math.prod(self.quantization_levels), max(self.num_frames, 1)))


class CodeUseWindow:
    """The tokens of the last `num_batches` batches, to tell a quantizer that collapses from one that works.

    Raises:
        ValueError: fewer than one batch.
    """

    def __init__(self, quantization_levels, num_batches: int):
        if num_batches < 1:
            raise ValueError(f"a window of {num_batches} batches holds nothing: at least 1 is wanted")
        self.quantization_levels = tuple(quantization_levels)
        self._batches = deque(maxlen=num_batches)

    def add(self, audio_codes: torch.Tensor, audio_codes_mask: torch.Tensor):
        """One batch's tokens, as `CodecModel` returns them: `(batch, 1, num_frames)`, and `(batch, num_frames)`."""
        self._batches.append((audio_codes.detach()[:, 0], audio_codes_mask))

    def state_dict(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """This process's batches, for `load_state_dict` of a run that goes on."""
        return list(self._batches)

    def load_state_dict(self, batches: list[tuple[torch.Tensor, torch.Tensor]]):
        """Replace the window by what `state_dict` gave."""
        self._batches.clear()
        self._batches.extend(batches)

    def use(self) -> CodeUse:
        """Of the window, over all processes: every process has to ask, and all get the same."""
        codes = torch.cat([codes[mask.bool()] for codes, mask in self._batches] or [torch.zeros(0).long()])
        seen = _of_all_processes(tuple(each.cpu() for each in codes.unique(return_counts=True)))
        codes, inverse = torch.cat([codes for codes, _ in seen]).unique(return_inverse=True)
        counts = torch.zeros_like(codes).index_add_(0, inverse, torch.cat([counts for _, counts in seen]))
        digits = indices_to_digits(codes, self.quantization_levels)
        levels = [
            torch.bincount(digits[:, i], weights=counts.double(), minlength=num_levels)
            for i, num_levels in enumerate(self.quantization_levels)
        ]
        return CodeUse(
            num_frames=int(counts.sum()),
            num_used=len(codes),
            bits=_entropy(counts),
            digit_bits=tuple(map(_entropy, levels)),
            quantization_levels=self.quantization_levels,
        )


def check_collapse(use: CodeUse, least_digit_share: float = 0.3, least_token_share: float = 0.3):
    """Stop a run whose tokens have become worthless.

    A digit fed with whitened, roughly normal numbers carries nearly all its bits, so these bounds are far off. Ask
    once the window has some thousand frames of different clips: a few seconds of silence look like a collapse too.

    Args:
        use: of `CodeUseWindow.use`.
        least_digit_share: of log2(levels) that every digit must carry, in [0, 1].
        least_token_share: of `use.most_bits` that the tokens must carry; digits that repeat each other fail here.

    Raises:
        RuntimeError: it does not.
    """
    shown = f"in the last {use.num_frames} frames {use.num_used} different tokens"
    advice = "the quantizer collapses; go back to an earlier state with a lower learning rate or less digit noise"
    for number, (bits, num_levels) in enumerate(zip(use.digit_bits, use.quantization_levels)):
        if bits < least_digit_share * math.log2(num_levels):
            raise RuntimeError(
                f"digit {number} carries {bits:.2f} of {math.log2(num_levels):.2f} bits ({shown}), less than "
                f"{least_digit_share:.0%}: {advice}"
            )
    if use.bits < least_token_share * use.most_bits:
        raise RuntimeError(
            f"tokens carry {use.bits:.2f} of {use.most_bits:.2f} bits ({shown}), less than {least_token_share:.0%}, "
            f"though their digits vary: they repeat each other; {advice}"
        )


def _of_all_processes(value) -> list:
    """Every process's `value`, of whatever kind, on every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _entropy(counts: torch.Tensor) -> float:
    """Bits, of the shares of `counts`."""
    shares = counts.double() / counts.sum().clamp(min=1)
    return float(torch.special.entr(shares).sum() / math.log(2))
