"""Losses of decoded audio: one value for each clip, whatever batch the clip is padded into, and their mean.

Every loss takes the `reference` and the `estimate`, float `(batch, 1, num_samples)`, and the `padding_mask`
`(batch, num_samples)`, 1 where a sample is audio, and returns float `(batch,)`, float32 or better: means over each
clip's own audio, 0 for a clip without any. It raises `ValueError` for other shapes. What lies outside the mask is
replaced by silence and does not count. `batch_mean` makes of these values the one that is minimised.

The frames of an STFT are centred on the samples 0, `hop_length`, 2 `hop_length`, ...; before the clip and after it is
silence. A frame counts where the sample that it is centred on is audio.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from ..evaluation.metrics import FLOOR, MULTISCALE_MELS, mel_filters
from ..models.precision import at_least_float32

STFT_SIZES = (32, 64, 128, 256, 512, 1024)  # window lengths of L3AC, samples; hop length a quarter
STFT_FLOOR = 1e-8  # of magnitudes, before the logarithm of L3AC
CONVERGENCE_STFT_SIZES = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # FFT, hop and window length, samples
CONVERGENCE_FLOOR = 1e-8  # of squared magnitudes
COMPLEX_STFT_SIZES = (256, 512, 1024)  # window lengths, samples; hop length a quarter
COMPLEX_EXPONENT = 0.3  # that magnitudes are compressed with
COMPLEX_FLOOR = 1e-6  # of squared magnitudes
BUZZ_WINDOW = 2048  # samples
BUZZ_REACH = 768  # samples; repeats further apart hardly fit in a window
BUZZ_FROM_HZ = 2000  # below, what repeats is the voice
BUZZ_FLOOR = 1e-4  # of the power of a window: what is quieter has no buzz


def waveform_loss(reference: torch.Tensor, estimate: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the samples."""
    reference, estimate = _pair(reference, estimate, padding_mask)
    return _mean_over_time((reference - estimate).abs(), padding_mask)


def stft_loss(reference: torch.Tensor, estimate: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
    """Multi-resolution STFT loss of L3AC (https://github.com/zhai-lw/L3AC, branch `train`, `MultiStft`): mean absolute
    difference of the magnitudes plus that of the log10 of their squares, magnitudes at least 1e-8, mean over Hann
    windows of 32 to 1024 samples.

    With so low a floor the gradient of the logarithm is large, though finite, where the estimate is nearly silent.
    """
    reference, estimate = _pair(reference, estimate, padding_mask)
    loss = 0
    for window_length in STFT_SIZES:
        a, b = (_magnitudes(audio, window_length) for audio in (reference, estimate))
        distances = (a - b).abs() + 2 * (a.clamp(min=STFT_FLOOR).log10() - b.clamp(min=STFT_FLOOR).log10()).abs()
        loss = loss + _mean_over_time(distances.mean(dim=1), padding_mask[:, :: window_length // 4])
    return loss / len(STFT_SIZES)


def convergence_stft_loss(
    reference: torch.Tensor,
    estimate: torch.Tensor,
    padding_mask: torch.Tensor,
    sizes: Sequence[tuple[int, int, int]] = CONVERGENCE_STFT_SIZES,
) -> torch.Tensor:
    """Multi-resolution STFT loss of Parallel WaveGAN (Yamamoto et al. 2020, arXiv:1910.11480, section 2.2): spectral
    convergence, the Frobenius norm of the difference of the magnitudes over that of the reference's, plus the mean
    absolute difference of their natural logarithms, mean over the resolutions of `sizes`: length of the Fourier
    transform, hop length and window length, samples; the three of the paper if not given.

    Of one clip it is the `MultiResolutionSTFTLoss` of auraloss 0.4 (https://github.com/csteinmetz1/auraloss), which
    takes the norms of several clips over the whole batch.
    """
    reference, estimate = _pair(reference, estimate, padding_mask)
    loss = 0
    for n_fft, hop_length, window_length in sizes:
        window = torch.hann_window(window_length, dtype=reference.dtype, device=reference.device)
        spectra = (spectrum(audio, n_fft, hop_length, window) for audio in (reference, estimate))
        powers = (torch.view_as_real(s).square().sum(dim=-1) for s in spectra)
        a, b = (power.clamp(min=CONVERGENCE_FLOOR).sqrt() for power in powers)
        frame_mask = padding_mask[:, ::hop_length]
        counted = frame_mask[:, None].bool()
        convergence = _norm((a - b) * counted) / _norm(a * counted).clamp(min=CONVERGENCE_FLOOR)
        loss = loss + convergence + _mean_over_time((a.log() - b.log()).abs().mean(dim=1), frame_mask)
    return loss / len(sizes)


def complex_stft_loss(
    reference: torch.Tensor,
    estimate: torch.Tensor,
    padding_mask: torch.Tensor,
    window_lengths: Sequence[int] = COMPLEX_STFT_SIZES,
) -> torch.Tensor:
    """Squared distance of spectra whose magnitudes are compressed by a power: |m - m'|^2 + |c - c'|^2 of the magnitudes
    m = |S|^0.3 and the complex c = S |S|^-0.7, mean over frequencies, frames and Hann windows of `window_lengths`
    samples. |S|^2 is at least 1e-6 in the powers.

    Compression makes quiet partials count, the complex part keeps the phase. The complex loss is that of ESC (Gu and
    Diao 2024, arXiv:2404.19441); both together are those of Ephrat et al. 2018 (arXiv:1804.03619) and Braun and Tashev
    2020 (arXiv:2009.12286) for speech enhancement.
    """
    reference, estimate = _pair(reference, estimate, padding_mask)
    loss = 0
    for window_length in window_lengths:
        hop_length = window_length // 4
        window = torch.hann_window(window_length, dtype=reference.dtype, device=reference.device)
        (a, compressed_a), (b, compressed_b) = (
            _compressed(spectrum(audio, window_length, hop_length, window)) for audio in (reference, estimate)
        )
        distances = (a - b).square() + (compressed_a - compressed_b).square().sum(dim=-1)
        loss = loss + _mean_over_time(distances.mean(dim=1), padding_mask[:, ::hop_length])
    return loss / len(window_lengths)


def mel_loss(
    reference: torch.Tensor,
    estimate: torch.Tensor,
    padding_mask: torch.Tensor,
    sampling_rate: int,
    window_lengths: Sequence[int] = tuple(MULTISCALE_MELS),
) -> torch.Tensor:
    """Multi-scale log-mel loss, the metric `mel_distance_multiscale` to train on: mean absolute difference of log10 mel
    magnitudes, at least 1e-5, mean over the seven scales of DAC (https://github.com/descriptinc/descript-audio-codec,
    conf/final), which takes their sum, or over those of them with one of `window_lengths` (samples). `sampling_rate` is
    in Hz."""
    reference, estimate = _pair(reference, estimate, padding_mask)
    loss = 0
    for window_length in window_lengths:
        num_mels = MULTISCALE_MELS[window_length]
        filters = _mel_filters(sampling_rate, window_length, num_mels, reference.dtype, reference.device)
        with torch.autocast(reference.device.type, enabled=False):
            a, b = ((filters @ _magnitudes(audio, window_length)).clamp(min=FLOOR) for audio in (reference, estimate))
        distances = (a.log10() - b.log10()).abs().mean(dim=1)
        loss = loss + _mean_over_time(distances, padding_mask[:, :: window_length // 4])
    return loss / len(window_lengths)


def drawn(window_lengths: Sequence[int], num_drawn: int | None) -> tuple[int, ...]:
    """`num_drawn` of the scales of a loss, at random, each as likely as the others, or all where it is `None` or there
    are no more: a step with few of them costs less, and what is expected of its loss is the same."""
    if num_drawn is None or num_drawn >= len(window_lengths):
        return tuple(window_lengths)
    return tuple(window_lengths[k] for k in torch.randperm(len(window_lengths))[:num_drawn].tolist())


def buzz_loss(
    reference: torch.Tensor, estimate: torch.Tensor, padding_mask: torch.Tensor, sampling_rate: int, hop_length: int
) -> torch.Tensor:
    """How much more, or less, what lies above 2 kHz repeats itself from frame to frame than in the reference: absolute
    difference of its autocorrelations, normalised, in Hann windows of 2048 samples, each mean over the clip, mean over
    the multiples of the hop up to 768 samples. A single window of noise repeats itself by chance, and to imitate that
    would cost what the other losses want.

    A decoder that works on frames fills what it can't know with one shape in all of them. The other losses hardly
    mind; the ear hears a tone at the frame rate. `sampling_rate` is in Hz, `hop_length` in samples. Raises
    `ValueError` for a longer hop.
    """
    if hop_length > BUZZ_REACH:
        raise ValueError(f"the loss 'buzz' is for hops of up to {BUZZ_REACH} samples, not {hop_length}")
    reference, estimate = _pair(reference, estimate, padding_mask)
    frequencies = torch.arange(BUZZ_WINDOW // 2 + 1, dtype=reference.dtype, device=reference.device) / BUZZ_WINDOW
    frequencies = frequencies[frequencies * sampling_rate > BUZZ_FROM_HZ]
    lags = torch.arange(hop_length, BUZZ_REACH + 1, hop_length, dtype=reference.dtype, device=reference.device)
    waves = torch.cos(2 * torch.pi * lags[:, None] * frequencies)  # power spectra to autocorrelations
    with torch.autocast(reference.device.type, enabled=False):
        powers = (_magnitudes(audio, BUZZ_WINDOW)[:, -len(frequencies) :].square() for audio in (reference, estimate))
        a, b = (waves @ power / (power.sum(dim=1, keepdim=True) + BUZZ_FLOOR) for power in powers)
    return _mean_over_time(a - b, padding_mask[:, None, :: BUZZ_WINDOW // 4]).abs().mean(dim=1)


def cap(loss: torch.Tensor, maximum: float) -> torch.Tensor:
    """`loss`, any shape, where it is below `maximum`; elsewhere `maximum`, with the gradient times `maximum / loss`.

    The "clamp-max" weights of L3AC (branch `train`, `AutoScaleWeight`): a term can't outweigh the others however large
    it is, and still pulls. Of the values `(batch,)` of clips the result does not depend on how they are split over
    processes; of their mean, which the original caps, it does. Raises `ValueError` for a maximum that is not positive.
    """
    if not maximum > 0:
        raise ValueError(f"maximum is {maximum}: a loss can be capped at positive values only")
    return loss * (maximum / loss.detach().clamp(min=maximum))


def batch_mean(
    clip_losses: torch.Tensor, padding_mask: torch.Tensor, num_valid_samples: int | torch.Tensor
) -> torch.Tensor:
    """Mean of the losses `(batch,)` of clips, weighted by their durations: `()`.

    `num_valid_samples` is the count of samples that are audio in the whole batch, of which this may be a part: another
    process or accumulation step has the rest. The values of the parts, and their gradients, then add up to those of
    the whole. Where gradients are averaged over the parts instead, as DistributedDataParallel does, give the mean count
    of a part. Without parts it is `padding_mask.sum()`.
    """
    return (clip_losses * padding_mask.sum(dim=-1)).sum() / num_valid_samples


def num_of_share(share: float, batch_size: int) -> int:
    """Clips of a batch that a costly loss looks at, at least 1: the first ones, as crops are in random order."""
    return max(1, round(share * batch_size))


def of_whole_batch(clip_losses: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Losses of the first clips of a batch as those of all `(batch_size,)`: weighted up for the others, which have 0,
    so that their mean stays."""
    others = clip_losses.new_zeros(batch_size - len(clip_losses))
    return torch.cat([clip_losses * (batch_size / len(clip_losses)), others])


def silence_padding(audio: torch.Tensor, padding_mask: torch.Tensor, name: str) -> torch.Tensor:
    """Audio `(batch, 1, num_samples)` as `(batch, num_samples)`, float32 or better, 0 where `padding_mask` is.

    Raises a `ValueError` that calls it `name` where the shapes don't fit.
    """
    if audio.ndim != 3 or audio.shape[1] != 1 or audio[:, 0].shape != padding_mask.shape:
        raise ValueError(
            f"{name} is {tuple(audio.shape)} and padding_mask {tuple(padding_mask.shape)}: (batch, 1, num_samples) and "
            "(batch, num_samples) are wanted"
        )
    return at_least_float32(audio[:, 0]).masked_fill(~padding_mask.bool(), 0)


def spectrum(audio: torch.Tensor, n_fft: int, hop_length: int, window: torch.Tensor) -> torch.Tensor:
    """STFT of audio `(batch, num_samples)`: complex `(batch, n_fft // 2 + 1, ceil(num_samples / hop_length))`, the
    frames centred as this module says. A `window` shorter than `n_fft` is centred in it."""
    frames = torch.stft(
        audio, n_fft, hop_length, len(window), window.to(audio.dtype), pad_mode="constant", return_complex=True
    )
    return frames[..., : -(-audio.shape[-1] // hop_length)]


def _pair(reference, estimate, padding_mask) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        silence_padding(reference, padding_mask, "reference"),
        silence_padding(estimate, padding_mask, "estimate"),
    )


def _magnitudes(audio: torch.Tensor, window_length: int) -> torch.Tensor:
    """`(batch, window_length // 2 + 1, num_frames)` of a Hann window, hop length a quarter."""
    window = torch.hann_window(window_length, dtype=audio.dtype, device=audio.device)
    return spectrum(audio, window_length, window_length // 4, window).abs()


def _compressed(spectra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitudes of complex `spectra`, compressed, and the spectra with these magnitudes as pairs of real numbers,
    `(..., 2)`."""
    pairs = torch.view_as_real(spectra)
    power = pairs.square().sum(dim=-1) + COMPLEX_FLOOR
    magnitudes = power ** (COMPLEX_EXPONENT / 2)
    return magnitudes, pairs * (magnitudes * power.rsqrt()).unsqueeze(-1)


def _mean_over_time(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(..., num_steps)` where the mask, which broadcasts to it, is 1; 0 where it is nowhere: `(...)`."""
    return (values * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


@lru_cache
def _mel_filters(sampling_rate: int, window_length: int, num_mels: int, dtype, device) -> torch.Tensor:
    with torch.inference_mode(False):
        return mel_filters(sampling_rate, window_length, num_mels).to(device, dtype, copy=True)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(values, dim=(1, 2))
