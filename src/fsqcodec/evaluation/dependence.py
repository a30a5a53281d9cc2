"""Which input a frame depends on, measured in two ways.

By gradients, for `CodecModel`: the squared derivative of what the frame is made of with respect to every step of the
input. It finds all of it, however little it matters.

By changes, for any codec: one frame's length of audio, or one frame of tokens, is replaced, and what changes at the
other end is noted. It finds what matters enough, so what it says of the farthest input is a lower bound.

The input is noise whose loudness beats at 4 Hz, as syllables do.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..codecs import Codec
from ..models.convolution import ClipNorm
from ..models.modeling_codec import CodecModel

MAX_ENCODER_SECONDS = 32.0  # of audio before the frame, for gradients: seconds of work and up to 4 GB of memory
MAX_DECODER_SECONDS = 12.0
MARGIN_FRAMES = 8  # after all that can be heard
NUM_DIRECTIONS = 3  # in which the decoder's audio is differentiated
CLIP_SECONDS = 4.0  # of a clip with a change in its middle
NUM_CHANGES = 24
RMS = 0.1


@dataclass(frozen=True)
class Dependence:
    """How much one frame depends on the input around it.

    Attributes:
        energy: float64 `(num_steps,)`, of each step of the input, in any unit.
        first: samples from the frame's first one to that of the first step; negative where the input begins before.
        step_length: samples of a step: 1 where the input is audio, a frame's where it is tokens.
        frame_length: samples of the frame.
        sampling_rate: Hz.
    """

    energy: np.ndarray
    first: int
    step_length: int
    frame_length: int
    sampling_rate: int

    def reach(self, share: float = 1.0) -> tuple[int, int]:
        """Samples before the frame's first one and after its last one that hold `share` of the energy, half of the rest
        lying before and half after; `share` 1 is from the first step to the last one that have any. (0, 0) where there
        is no energy at all."""
        if not self.energy.any():
            return 0, 0
        left_out = (1 - share) / 2 * self.energy.sum()
        first_step = int(np.argmax(np.cumsum(self.energy) > left_out))
        last_step = len(self.energy) - 1 - int(np.argmax(np.cumsum(self.energy[::-1]) > left_out))
        look_back = -(self.first + first_step * self.step_length)
        look_ahead = self.first + (last_step + 1) * self.step_length - self.frame_length
        return max(0, look_back), max(0, look_ahead)

    def share_outside(self, look_back: int, look_ahead: int) -> float:
        """Share in [0, 1] of the energy that lies more than `look_back` samples before the frame's first one, or more
        than `look_ahead` after its last one; 0 where there is no energy at all."""
        start = self.first + self.step_length * np.arange(len(self.energy))
        inside = (start >= -look_back) & (start + self.step_length <= self.frame_length + look_ahead)
        return float(self.energy[~inside].sum() / (self.energy.sum() or 1.0))


def encoder_gradients(model: CodecModel) -> Dependence:
    """What a token depends on: squared derivatives of the numbers that are rounded to it, the quantizer's positions,
    with respect to every sample. The frame is the last of its attention block, which looks back furthest."""
    config = model.config
    frame = _last_of_block(config, config.encoder_context_samples, MAX_ENCODER_SECONDS)
    num_frames = frame + 1 - -config.encoder_lookahead_samples // config.hop_length + MARGIN_FRAMES
    audio = torch.from_numpy(noise(num_frames * config.hop_length, config.sampling_rate))
    audio = audio.to(model.device)[None, None].requires_grad_()
    frozen = copy.deepcopy(model).requires_grad_(False)
    latents = frozen.encode(audio, output_latents=True).latents[0, :, frame]
    positions = frozen.quantizer.positions(latents)
    energy = _gradient_energy(positions, audio, torch.eye(len(positions), device=positions.device))[0, 0]
    return Dependence(energy, -frame * config.hop_length, 1, config.hop_length, config.sampling_rate)


def decoder_gradients(model: CodecModel, hold_statistics: bool = False) -> Dependence:
    """What a frame's audio depends on: squared derivatives of its samples, in a few random directions, with respect to
    the values of every token.

    Through the statistics of the enhance blocks it depends on the whole clip, before and after; `hold_statistics`
    leaves out what comes that way.
    """
    config = model.config
    frame = _last_of_block(config, config.decoder_context_samples, MAX_DECODER_SECONDS)
    num_frames = frame + 1 + config.decoder_lookahead_samples // config.hop_length + MARGIN_FRAMES
    generator = torch.Generator().manual_seed(0)
    quantizer = model.quantizer
    codes = torch.randint(config.codebook_size, (1, num_frames), generator=generator).to(model.device)
    values = quantizer.digits_to_values(quantizer.indices_to_digits(codes)).requires_grad_()
    frozen = copy.deepcopy(model).requires_grad_(False)
    if hold_statistics:
        for module in frozen.modules():
            if isinstance(module, ClipNorm):
                module.statistics = _without_gradient(module.statistics)
    decoded = frozen.decoder(frozen.quantizer.values_to_features(values), None)[0, :, 0]
    audio = decoded[frame * config.hop_length : (frame + 1) * config.hop_length]
    directions = torch.randn(NUM_DIRECTIONS, config.hop_length, generator=generator).to(model.device)
    energy = _gradient_energy(audio, values, directions)[0].sum(axis=-1)
    return Dependence(energy, -frame * config.hop_length, config.hop_length, config.hop_length, config.sampling_rate)


def encoder_changes(codec: Codec) -> Dependence:
    """What tokens depend on, of any codec: how often they change where a frame's length of audio is replaced, counted
    at the replaced sample that is nearest to the token's frame."""
    frame_length = _frame_length(codec, codec.input_sampling_rate)
    num_samples = round(CLIP_SECONDS * codec.input_sampling_rate)
    clip, replacement = (noise(num_samples, codec.input_sampling_rate, codec.num_channels, seed) for seed in (0, 1))
    (codes,) = codec.encode([clip])
    farthest = num_samples // 2 - 2 * frame_length  # that every change can be seen from, on both sides
    counts = np.zeros(2 * farthest + 1)
    for number in range(NUM_CHANGES):
        start = num_samples // 2 + number * frame_length // NUM_CHANGES
        changed = clip.copy()
        changed[..., start : start + frame_length] = replacement[..., start : start + frame_length]
        (changed_codes,) = codec.encode([changed])
        for frame in np.flatnonzero((changed_codes != codes).any(axis=0)):
            frame_start = frame * frame_length
            distance = np.clip(frame_start, start, start + frame_length - 1) - frame_start
            if abs(distance) <= farthest:
                counts[farthest + distance] += 1
    return Dependence(counts, -farthest, 1, frame_length, codec.input_sampling_rate)


def decoder_changes(codec: Codec) -> Dependence:
    """What audio depends on, of any codec: the energy by which the audio of frames changes where one frame's tokens are
    replaced."""
    frame_length = _frame_length(codec, codec.output_sampling_rate)
    num_samples = round(CLIP_SECONDS * codec.input_sampling_rate)
    (codes,) = codec.encode([noise(num_samples, codec.input_sampling_rate, codec.num_channels)])
    (audio,) = codec.decode([codes])
    num_frames = min(codes.shape[-1], audio.shape[-1] // frame_length)
    rng = np.random.default_rng(0)
    farthest = (num_frames - NUM_CHANGES) // 2  # frames, that every change can be seen from, on both sides
    energy = np.zeros(2 * farthest + 1)
    for changed_frame in range(farthest, farthest + NUM_CHANGES):
        changed = codes.copy()
        shift = rng.integers(1, codec.codebook_sizes)
        changed[:, changed_frame] = (changed[:, changed_frame] + shift) % codec.codebook_sizes
        (changed_audio,) = codec.decode([changed])
        change = np.square(changed_audio.astype(np.float64) - audio)[..., : num_frames * frame_length]
        by_frame = change.reshape(-1, num_frames, frame_length).sum(axis=(0, 2))
        # seen from a later frame, the changed one lies further back
        energy += by_frame[changed_frame - farthest : changed_frame + farthest + 1][::-1]
    return Dependence(energy, -farthest * frame_length, frame_length, frame_length, codec.output_sampling_rate)


def noise(num_samples: int, sampling_rate: int, num_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Gaussian noise, float32 `(num_samples,)` or `(num_channels, num_samples)`, RMS 0.1, loudness beating at 4 Hz."""
    shape = (num_samples,) if num_channels == 1 else (num_channels, num_samples)
    loudness = 1 + 0.9 * np.sin(2 * np.pi * 4 * np.arange(num_samples) / sampling_rate)
    audio = loudness * np.random.default_rng(seed).standard_normal(shape)
    return (audio * RMS / np.sqrt(np.square(audio).mean())).astype(np.float32)


def _last_of_block(config, context_samples: int, max_seconds: float) -> int:
    """The first frame that ends an attention block and has its whole context before it, if that is not too long."""
    window_size = config.attention_window_size
    frame = (-(-context_samples // config.hop_length) // window_size + 1) * window_size - 1
    return min(frame, int(max_seconds * config.frame_rate))


def _gradient_energy(output: torch.Tensor, source: torch.Tensor, directions: Iterable[torch.Tensor]) -> np.ndarray:
    """Sum over `directions` of `output` of the squared gradients with respect to `source`, float64 of its shape."""
    energy = torch.zeros_like(source, dtype=torch.float64)
    for direction in directions:
        (gradient,) = torch.autograd.grad(output @ direction, source, retain_graph=True)
        energy += gradient.double().square()
    return energy.cpu().numpy()


def _without_gradient(function):
    return lambda *arguments: tuple(result.detach() for result in function(*arguments))


def _frame_length(codec: Codec, sampling_rate: int) -> int:
    if codec.frame_rate is None:
        raise ValueError(f"{codec.name} is a classical codec, which has no tokens: a neural one is wanted")
    return round(sampling_rate / codec.frame_rate)
