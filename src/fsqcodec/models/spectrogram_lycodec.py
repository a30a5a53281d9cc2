"""Stereo crops <-> spectrograms of mid and side, always in float32 (float64 for float64 audio)."""

import torch
from torch import nn

from .configuration_lycodec import LycodecConfig
from .precision import at_least_float32, no_autocast

LEAST_MAGNITUDE = 1e-5  # below it the compression of magnitudes is linear


class MidSideSpectrogram(nn.Module):
    """mid = (left + right) / 2 and side = (left - right) / 2, each a spectrogram of a centred Fourier transform.

    A spectrogram is real, `(batch, 4, stft_bins, stft_frames)`: mid real, mid imaginary, side real, side imaginary. Its
    magnitudes are raised to `config.spectrogram_exponent`, phases are kept, as in Richter et al. 2023
    (https://arxiv.org/abs/2208.05830, section III-B): music's spread over five decades, which a network that is
    normalised hardly spans, and the noise that the decoder's skip connection leaves would drown the quiet ones. It has
    no parameters and no buffers.
    """

    def __init__(self, config: LycodecConfig):
        super().__init__()
        self.size = config.stft_size
        self.hop_length = config.stft_hop_length
        self.window_length = config.stft_window_length
        self.exponent = config.spectrogram_exponent
        self.crop_length = config.crop_length

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """`(batch, 2, crop_length)` to a spectrogram."""
        left, right = at_least_float32(crops).unbind(dim=1)
        mid_side = torch.stack([(left + right) / 2, (left - right) / 2], dim=1)
        with no_autocast(crops.device.type):
            spectra = torch.stft(mid_side.flatten(0, 1), **self._settings(mid_side), return_complex=True)
        parts = torch.view_as_real(spectra).unflatten(0, (-1, 2)).movedim(-1, 2)
        return _raise_magnitudes(parts, self.exponent, LEAST_MAGNITUDE).flatten(1, 2)

    def inverse(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """A spectrogram to `(batch, 2, crop_length)`."""
        spectrogram = at_least_float32(spectrogram)
        parts = spectrogram.unflatten(1, (2, 2))
        parts = _raise_magnitudes(parts, 1 / self.exponent, LEAST_MAGNITUDE**self.exponent)
        parts = parts.movedim(2, -1).flatten(0, 1)
        with no_autocast(spectrogram.device.type):
            spectra = torch.view_as_complex(parts.contiguous())
            mid_side = torch.istft(spectra, **self._settings(spectrogram), length=self.crop_length)
        mid, side = mid_side.unflatten(0, (-1, 2)).unbind(dim=1)
        return torch.stack([mid + side, mid - side], dim=1)

    def _settings(self, x: torch.Tensor) -> dict:
        window = torch.hann_window(self.window_length, dtype=x.dtype, device=x.device)
        return {"n_fft": self.size, "hop_length": self.hop_length, "win_length": self.window_length, "window": window}


def _raise_magnitudes(parts: torch.Tensor, exponent: float, least: float) -> torch.Tensor:
    """Real and imaginary parts `(batch, 2, 2, stft_bins, stft_frames)`, the parts second, with their magnitudes raised
    to `exponent`; those below `least` are scaled as that one is, which the inverse with `least ** exponent` undoes."""
    if exponent == 1:
        return parts
    powers = parts.square().sum(dim=2, keepdim=True).clamp(min=least**2)
    return parts * powers ** ((exponent - 1) / 2)
