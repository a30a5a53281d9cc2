"""Crops cut on a GPU, from clips that all lie there: the same stream as `Crops`, without work for the processor."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .data import FULL_SCALE, NUM_THREADS, Crops, made_ahead

LARGEST_SHARE = 0.25  # of a GPU's free memory that clips may take
CUTOFF, STEEPNESS = 0.9556, 100.0  # of soxr at its very high quality, in units of the lower Nyquist frequency
SPACE_SAMPLES = 64  # of silence after a crop, so that its end does not ring into its beginning


class ResidentCrops:
    """The crops of `Crops`, with all clips on a device as 16 bits: two bytes a sample, 1.2 GB for ten hours at 16 kHz.

    Without changes of speed a crop is to the bit what `Crops` makes of the same position. With them it is resampled by
    `resampled` and not by soxr, and the difference is 45 dB and more below the crop.

    Args:
        crops: the stream. All its clips are read at once, and not kept elsewhere.
        device: where they lie and crops are made.

    Raises:
        FileNotFoundError, ValueError: a clip that can't be read, as `fsqcodec.audio.read_audio`.
    """

    def __init__(self, crops: Crops, device: torch.device | str):
        self.crops, self.device = crops, torch.device(device)
        self._first_samples = np.cumsum(crops.clip_lengths) - crops.clip_lengths
        self._audio = torch.empty(crops.num_channels, crops.clip_lengths.sum(), dtype=torch.int16, device=device)
        numbers = range(len(crops.clips))
        for clip, first in zip(made_ahead(crops.read_clip, numbers, 2 * NUM_THREADS), self._first_samples.tolist()):
            self._audio[:, first : first + clip.shape[-1]] = torch.from_numpy(clip)

    @property
    def clips(self):
        """Those of the stream."""
        return self.crops.clips

    def batch(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """As `Crops.batch`, on the device, which is not waited for."""
        draws, sampling_rate, num_samples = self.crops.draw(positions), self.crops.sampling_rate, self.crops.num_samples
        starts = self._first_samples[draws.clips] + draws.starts
        integers = np.stack([starts, draws.num_played, draws.played_rates, draws.num_samples])
        starts, num_played, played_rates, lengths = self._sent(integers)[..., None]
        if self.crops.speed == (1, 1):
            audio = self._played(starts, num_played, num_samples)
        else:
            most_played = math.ceil(num_samples * round(sampling_rate * self.crops.speed[1]) / sampling_rate)
            played = self._played(starts, num_played, most_played)
            audio = resampled(played, played_rates, sampling_rate, num_samples)
        is_audio = torch.arange(num_samples, device=self.device) < lengths
        audio = (audio * self._sent(draws.gains)[:, None, None]).clamp_(-1, 1)
        return {"input_values": audio * is_audio[:, None], "padding_mask": is_audio.to(torch.int64)}

    def batches(self, shares: Iterable[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
        """`batch` of each share."""
        return map(self.batch, shares)

    def _played(self, starts: Tensor, num_played: Tensor, most_played: int) -> Tensor:
        """Clips from `starts (batch, 1)` on, float32 `(batch, num_channels, most_played)`, zero after `num_played`."""
        offsets = torch.arange(most_played, device=self.device)
        positions = (starts + offsets).clamp_(max=self._audio.shape[-1] - 1)
        samples = self._audio[:, positions].transpose(0, 1).to(torch.float32) / FULL_SCALE
        return samples * (offsets < num_played)[:, None]

    def _sent(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def resident_if_they_fit(crops: Crops, device: torch.device) -> Crops | ResidentCrops:
    """Crops made on the device, if it is a GPU and the clips take at most a quarter of its free memory."""
    if device.type != "cuda":
        return crops
    num_bytes = 2 * crops.num_channels * int(crops.clip_lengths.sum())
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return ResidentCrops(crops, device) if num_bytes <= LARGEST_SHARE * free_bytes else crops


def resampled(played: Tensor, played_rates: Tensor, sampling_rate: int, num_samples: int) -> Tensor:
    """Resample a batch, each item from a rate of its own: `(batch, num_channels, num_played)` at `played_rates (batch,
    1)` Hz, int64, to `(batch, num_channels, num_samples)` at `sampling_rate` Hz.

    The spectrum, without what is above the lower Nyquist frequency, is evaluated at the new times, as chirp z-transform
    (Bluestein 1970): for bin k, time t and a = rate / sampling_rate / fft_size,
    exp(2 pi i a k t) = chirp(k) chirp(t) / chirp(t - k) with chirp(n) = exp(i pi a n^2).
    """
    fft_size = _power_of_two(played.shape[-1] + SPACE_SAMPLES)
    num_bins = fft_size // 2
    bins = torch.arange(num_bins, device=played.device)
    bin_shares = bins / num_bins * (played_rates / sampling_rate).clamp(min=1)  # of the lower Nyquist frequency
    filters = torch.special.ndtr((CUTOFF - bin_shares) * STEEPNESS) * (2 - (bins == 0).float()) / fft_size
    spectrum = torch.fft.rfft(played, fft_size)[..., :num_bins] * filters[:, None]

    n = torch.arange(max(num_bins, num_samples), device=played.device)
    turns = n * n * played_rates % (2 * sampling_rate * fft_size)  # exact
    angles = (turns * (math.pi / (sampling_rate * fft_size))).to(torch.float32)
    chirps = torch.polar(torch.ones_like(angles), angles)
    convolution_size = _power_of_two(num_bins + num_samples)
    kernels = torch.zeros(len(played), convolution_size, dtype=chirps.dtype, device=played.device)
    kernels[:, :num_samples] = chirps[:, :num_samples].conj()
    kernels[:, 1 - num_bins :] = chirps[:, 1:num_bins].flip(-1).conj()
    product = torch.fft.fft(spectrum * chirps[:, None, :num_bins], convolution_size) * torch.fft.fft(kernels)[:, None]
    audio = (torch.fft.ifft(product)[..., :num_samples] * chirps[:, None, :num_samples]).real
    as_it_was = torch.nn.functional.pad(played, (0, max(0, num_samples - played.shape[-1])))[..., :num_samples]
    return torch.where(played_rates[:, None] == sampling_rate, as_it_was, audio)


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
