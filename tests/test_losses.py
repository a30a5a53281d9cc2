"""Losses against closed forms, auraloss, the metrics and the original's formulas, and what padding must not change."""

from functools import partial

import auraloss
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clips import speech
from fsqcodec.evaluation.metrics import mel_distance_multiscale
from fsqcodec.training.losses import (
    batch_mean,
    buzz_loss,
    cap,
    complex_stft_loss,
    convergence_stft_loss,
    drawn,
    mel_loss,
    stft_loss,
    waveform_loss,
)

LOSSES = {
    "waveform": waveform_loss,
    "stft": stft_loss,
    "convergence_stft": convergence_stft_loss,
    "complex_stft": complex_stft_loss,
    "mel": partial(mel_loss, sampling_rate=16000),
    "buzz": partial(buzz_loss, sampling_rate=16000, hop_length=96),
}
LENGTHS = (12000, 7001, 2500)
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def batch(lengths=LENGTHS, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Speech, the same with noise, and the mask; beyond their ends the clips go on."""
    clips = torch.from_numpy(speech()[8000:]).to(dtype).unfold(0, max(lengths), 16000)[: len(lengths), None].clone()
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return clips, 0.7 * clips + 0.02 * noise, mask


def clip_with_silent_ends() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One clip whose last frame, at every hop length, is where torch.stft has it: mirrored ends are silent as well."""
    reference, estimate, _ = batch([12000])
    reference, estimate = (F.pad(audio, (2048, 2049)) for audio in (reference, estimate))
    return reference, estimate, torch.ones(1, reference.shape[-1])


@each_loss
def test_a_clip_has_the_same_loss_alone_and_padded(loss):
    reference, estimate, mask = batch()
    alone = [
        loss(reference[i : i + 1, :, :n], estimate[i : i + 1, :, :n], torch.ones(1, n)) for i, n in enumerate(LENGTHS)
    ]
    for kind in (torch.bool, torch.int64):
        assert loss(reference, estimate, mask.to(kind)).tolist() == pytest.approx(torch.cat(alone).tolist(), rel=1e-12)


@each_loss
def test_parts_of_a_batch_have_together_the_value_and_gradient_of_the_whole(loss):
    def value_and_gradient(rows, num_valid_samples):
        reference, estimate, mask = (x[rows] for x in batch())
        gain = torch.ones((), dtype=torch.float64, requires_grad=True)
        value = batch_mean(loss(reference, gain * estimate, mask), mask, num_valid_samples)
        value.backward()
        return np.array([value.item(), gain.grad.item()])

    whole = value_and_gradient(slice(None), sum(LENGTHS))
    halves = [slice(0, 1), slice(1, None)]
    assert sum(value_and_gradient(rows, sum(LENGTHS)) for rows in halves) == pytest.approx(whole)
    assert np.mean([value_and_gradient(rows, sum(LENGTHS) / 2) for rows in halves], axis=0) == pytest.approx(whole)


@each_loss
def test_equal_silent_and_empty_clips_have_finite_gradients(loss):
    speech_clip, _, _ = batch([4000], torch.float32)
    silence = torch.zeros_like(speech_clip)
    reference = torch.cat([speech_clip, speech_clip, silence, silence, speech_clip])
    estimate = torch.cat([speech_clip, silence, speech_clip, silence, silence]).requires_grad_()
    mask = torch.ones(5, 4000)
    mask[4] = 0
    losses = loss(reference, estimate, mask)
    assert losses[[0, 3, 4]].tolist() == [0, 0, 0]
    assert losses[[1, 2]].min() > 0
    (gradient,) = torch.autograd.grad(losses.sum(), estimate)
    assert gradient.isfinite().all()
    assert not gradient[4].any()
    assert gradient[2].any()


@each_loss
def test_gradients_are_those_of_finite_differences_and_none_beyond_the_end(loss):
    reference, estimate, mask = (x[..., 1000:1080] for x in batch([2000, 1050]))
    assert torch.autograd.gradcheck(lambda e: loss(reference, e, mask), estimate.clone().requires_grad_(), atol=1e-4)
    estimate = estimate.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(reference, estimate, mask).sum(), estimate)
    assert not gradient[1, 0, 50:].any()
    assert gradient[1, 0, :50].any()


@each_loss
def test_half_precision_is_computed_in_float32(loss):
    reference, estimate, mask = batch(dtype=torch.bfloat16)
    expected = loss(reference.float(), estimate.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        losses = loss(reference, estimate, mask)
    assert losses.dtype == torch.float32
    assert losses.tolist() == expected.tolist()


@each_loss
def test_shapes_that_do_not_fit_are_refused(loss):
    audio, mask = torch.zeros(2, 1, 100), torch.ones(2, 100)
    with pytest.raises(ValueError, match=r"estimate is \(2, 1, 99\) and padding_mask \(2, 100\)"):
        loss(audio, audio[..., :99], mask)
    with pytest.raises(ValueError, match=r"reference is \(2, 100\)"):
        loss(audio[:, 0], audio, mask)
    with pytest.raises(ValueError, match=r"reference is \(2, 2, 100\)"):
        loss(audio.expand(2, 2, 100), audio, mask)


def test_waveform_loss_is_the_mean_absolute_difference():
    reference, estimate, mask = batch()
    expected = [(reference - estimate)[i, 0, :n].abs().mean().item() for i, n in enumerate(LENGTHS)]
    assert waveform_loss(reference, estimate, mask).tolist() == pytest.approx(expected)
    whole = np.average(expected, weights=LENGTHS)
    assert batch_mean(waveform_loss(reference, estimate, mask), mask, mask.sum()).item() == pytest.approx(whole)


def test_stft_loss_is_the_originals():
    reference, estimate, mask = clip_with_silent_ends()

    def original(n_fft):
        window = torch.hann_window(n_fft, dtype=reference.dtype)
        a, b = (
            torch.stft(audio[0], n_fft, n_fft // 4, window=window, return_complex=True).abs()
            for audio in (reference, estimate)
        )
        return F.l1_loss(a, b) + F.l1_loss(a.clamp(1e-8).pow(2).log10(), b.clamp(1e-8).pow(2).log10())

    expected = sum(original(2**i) for i in range(5, 11)) / 6
    assert stft_loss(reference, estimate, mask).item() == pytest.approx(expected.item())


def test_convergence_stft_loss_is_that_of_auraloss():
    reference, estimate, mask = clip_with_silent_ends()
    estimate.requires_grad_()
    reference_loss = auraloss.freq.MultiResolutionSTFTLoss()
    for stft in reference_loss.stft_losses:
        stft.window = stft.window.double()
    expected = reference_loss(estimate, reference)
    loss = convergence_stft_loss(reference, estimate, mask)
    # auraloss computes its windows in float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient, expected_gradient = (torch.autograd.grad(value.sum(), estimate)[0] for value in (loss, expected))
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_complex_stft_loss_compresses_magnitudes_and_keeps_phases():
    """Against the formula in polar form, above the floor; a gain moves magnitudes, a change of sign phases alone."""
    reference, estimate, mask = clip_with_silent_ends()
    expected = 0
    for window_length in (256, 512, 1024):
        window = torch.hann_window(window_length, dtype=reference.dtype)
        a, b = (
            torch.stft(audio[0], window_length, window_length // 4, window=window, return_complex=True)[0, :, :-1]
            for audio in (reference, estimate)
        )
        a, b = (torch.polar((spectrum.abs() ** 2 + 1e-6) ** 0.15, spectrum.angle()) for spectrum in (a, b))
        expected += ((a.abs() - b.abs()) ** 2 + (a - b).abs() ** 2).mean() / 3
    assert complex_stft_loss(reference, estimate, mask).item() == pytest.approx(expected.item(), rel=0.03)
    loud = 1e4 * reference  # nothing is near the floor
    louder, turned = (complex_stft_loss(loud, gain * loud, mask).item() for gain in (2, -1))
    size = complex_stft_loss(loud, torch.zeros_like(loud), mask).item() / 2
    assert louder == pytest.approx(2 * (2**0.3 - 1) ** 2 * size, rel=0.02)
    assert turned == pytest.approx(4 * size, rel=0.02)


def test_a_few_scales_have_the_expectation_of_all():
    reference, estimate, mask = batch()
    scales = (256, 512, 1024)
    each = [complex_stft_loss(reference, estimate, mask, [scale]) for scale in scales]
    torch.testing.assert_close(complex_stft_loss(reference, estimate, mask), sum(each) / 3)
    torch.manual_seed(0)
    draws = [drawn(scales, 2) for _ in range(3000)]
    assert all(len(set(draw)) == 2 for draw in draws)
    for scale in scales:
        assert sum(scale in draw for draw in draws) == pytest.approx(2000, abs=100)
    assert drawn(scales, None) == drawn(scales, 7) == scales
    some = mel_loss(reference, estimate, mask, 16000, (512, 64))
    both = mel_loss(reference, estimate, mask, 16000, (512,)), mel_loss(reference, estimate, mask, 16000, (64,))
    torch.testing.assert_close(some, sum(both) / 2)


@pytest.mark.parametrize("sampling_rate", [16000, 24000])
def test_mel_loss_is_the_metric(sampling_rate):
    reference, estimate, mask = clip_with_silent_ends()
    expected = mel_distance_multiscale(reference[0, 0].numpy(), estimate[0, 0].numpy(), sampling_rate)
    assert mel_loss(reference, estimate, mask, sampling_rate).item() == pytest.approx(expected)


def test_mel_loss_has_gradients_after_an_evaluation_in_inference_mode():
    sampling_rate = 16001  # filters of no other test
    reference, estimate, mask = batch()
    with torch.inference_mode():
        mel_loss(reference, estimate, mask, sampling_rate)
    mel_loss(reference, estimate.requires_grad_(), mask, sampling_rate).sum().backward()
    assert estimate.grad.any()


def test_a_cap_bounds_the_value_and_scales_the_gradient():
    losses = torch.tensor([0.0, 2.0, 5.0, 20.0], requires_grad=True)
    capped = cap(losses, 5)
    assert capped.tolist() == [0, 2, 5, 5]
    capped.sum().backward()
    assert losses.grad.tolist() == [1, 1, 1, 0.25]
    with pytest.raises(ValueError, match="maximum is 0"):
        cap(losses, 0)


def test_tones_buzz_as_their_period_fits_the_hop():
    """One fits the hop 30 times and repeats; one fits 30.5 times and is turned over each time. Voice below 2 kHz is not
    looked at."""
    repeating, turned, voice = (torch.sin(2 * np.pi * k * torch.arange(160_000.0) / 96) for k in (30, 30.5, 3.7))
    window = F.pad(torch.hann_window(2048), (0, 2048))
    overlaps = [(window * window.roll(96 * hops)).sum() / window.square().sum() for hops in (1, 3, 5, 7)]
    loss = partial(LOSSES["buzz"], padding_mask=torch.ones(1, 160_000))
    expected = pytest.approx(float(2 * sum(overlaps) / 8), rel=0.02)
    assert float(loss(repeating[None, None], turned[None, None])) == expected
    assert float(loss((repeating + voice)[None, None], (turned - voice)[None, None])) == expected


def test_noise_does_not_buzz_until_it_repeats_itself():
    noises = torch.randn(2, 1, 160_000, generator=torch.Generator().manual_seed(0))
    repeating = noises[1:, :, :96].repeat(1, 1, 1667)[..., :160_000]
    loss = partial(LOSSES["buzz"], padding_mask=torch.ones(1, 160_000))
    assert float(loss(noises[:1], noises[1:])) < 0.02
    assert float(loss(noises[:1], repeating)) > 0.5


def test_frames_too_long_to_find_a_buzz_are_refused():
    reference, estimate, mask = batch()
    with pytest.raises(ValueError, match="up to 768 samples, not 769"):
        buzz_loss(reference, estimate, mask, sampling_rate=16000, hop_length=769)
