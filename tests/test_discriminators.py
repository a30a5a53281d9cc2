"""Discriminators against plain convolutions, their losses against closed forms, and what padding must not change."""

import pytest
import torch
import torch.nn.functional as F

from clips import speech
from fsqcodec.training.discriminators import (
    BandDiscriminator,
    Discriminator,
    Features,
    PeriodDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    leveled,
)

LENGTHS = (4000, 3001, 517)
SMALL_CHANNELS = (4, 8, 8, 8, 8)


def generator_loss(real, fake) -> torch.Tensor:
    """With the weights of HiFi-GAN (arXiv:2010.05646, equation 5), DAC and L3AC."""
    return adversarial_loss(fake) + 2 * feature_matching_loss(real, fake)


def small_discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(period_channels=SMALL_CHANNELS, band_channels=4).double()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Speech, the same with noise, and the mask; beyond their ends the clips go on."""
    clips = torch.from_numpy(speech()[8000:]).double().unfold(0, max(LENGTHS), 16000)[: len(LENGTHS), None].clone()
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0), dtype=clips.dtype)
    return clips, 0.7 * clips + 0.02 * noise, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def features(*rows: list[float], num_valid: int | None = None) -> Features:
    """One layer of one channel, a row for each clip, of which `num_valid` steps are audio."""
    values = torch.tensor(rows)[:, None, :, None]
    mask = torch.arange(values.shape[2]) < (values.shape[2] if num_valid is None else num_valid)
    return Features(values, mask[None, None, :, None].expand_as(values))


def test_layers_and_losses_of_a_clip_are_the_same_alone_and_padded():
    discriminator = small_discriminator()
    real, fake, mask = batch()
    outputs = [discriminator(audio, mask) for audio in (real, fake)]
    for i, n in enumerate(LENGTHS):
        alone = [discriminator(audio[i : i + 1, :, :n], torch.ones(1, n)) for audio in (real, fake)]
        for network, network_alone in zip(outputs[0], alone[0]):
            for layer, layer_alone in zip(network, network_alone):
                num_steps = layer_alone.values.shape[2]
                torch.testing.assert_close(layer.values[i : i + 1, :, :num_steps], layer_alone.values)
                assert not layer.values[i, :, num_steps:].any()
                assert layer.mask[i].sum() == layer_alone.mask.sum()
        for loss in (discriminator_loss, generator_loss):
            assert loss(*outputs)[i].item() == pytest.approx(loss(*alone).item())


def test_a_period_discriminator_convolves_each_phase_on_its_own():
    torch.manual_seed(0)
    network = PeriodDiscriminator(3, SMALL_CHANNELS)
    audio = torch.randn(1, 100)
    layers = network(audio, torch.ones(1, 100))
    for phase in range(3):
        x = audio[:, None, phase::3]
        for i, layer in enumerate([*network.layers, network.verdict]):
            convolution = layer.convolution
            stride, padding = (1, 1) if i == 5 else (1, 2) if i == 4 else (3, 2)
            x = F.conv1d(x, convolution.weight[..., 0], convolution.bias, stride, padding)
            x = x if i == 5 else F.leaky_relu(x, 0.1)
            torch.testing.assert_close(layers[i].values[:, :, : x.shape[2], phase], x)
            assert layers[i].mask[0, 0, :, phase].sum() == x.shape[2]


def test_a_band_discriminator_convolves_each_band_of_the_spectrum():
    torch.manual_seed(0)
    network = BandDiscriminator(126, 4)
    audio = F.pad(torch.randn(1, 1000), (63, 64))  # silent ends: torch.stft may mirror them
    layers = iter(network(audio, torch.ones(audio.shape)))
    spectrum = torch.stft(audio, 126, 31, window=torch.hann_window(126) ** 0.5, return_complex=True)
    bins = torch.stack([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)
    ends = []
    for (low, high), stack in zip([(0, 6), (6, 16), (16, 32), (32, 48), (48, 64)], network.stacks):
        x = bins[..., low:high]
        for (stride, padding), layer in zip([(1, 4), (2, 4), (2, 4), (2, 4), (1, 1)], stack):
            convolution = layer.convolution
            x = F.conv2d(x, convolution.weight, convolution.bias, (1, stride), (1, padding))
            x = F.leaky_relu(x, 0.1)
            torch.testing.assert_close(next(layers).values, x, atol=1e-4, rtol=1e-4)
        ends.append(x)
    verdict = network.verdict.convolution
    expected = F.conv2d(torch.cat(ends, dim=-1), verdict.weight, verdict.bias, padding=1)
    torch.testing.assert_close(next(layers).values, expected, atol=1e-4, rtol=1e-4)
    assert next(layers, None) is None


def test_weight_norm_splits_every_convolution_into_direction_and_length():
    def size(num_inputs, num_outputs, kernel_size):
        return num_outputs * (num_inputs * kernel_size + 2)  # bias and length of each output

    channels = [1, 32, 128, 512, 1024, 1024]
    period = sum(size(a, b, 5) for a, b in zip(channels, channels[1:])) + size(1024, 1, 3)
    band = 5 * (size(2, 32, 27) + 3 * size(32, 32, 27) + size(32, 32, 9)) + size(32, 1, 9)
    with torch.device("meta"):
        assert sum(weight.numel() for weight in PeriodDiscriminator(2).parameters()) == period
        assert sum(weight.numel() for weight in BandDiscriminator(126).parameters()) == band
        assert sum(weight.numel() for weight in Discriminator().parameters()) == 5 * period + 4 * band


def test_audio_is_leveled_over_what_is_audio():
    real, _, mask = batch()
    audio = (real[:, 0] + 0.1) * 0.1
    output = leveled(audio * mask, mask)
    assert not output[~mask].any()
    for clip, n in zip(output, LENGTHS):
        assert clip[:n].mean().item() == pytest.approx(0, abs=1e-9)
        assert clip[:n].abs().max().item() == pytest.approx(0.8)
    assert leveled(1e-5 * audio * mask, mask).abs().max() < 0.1


def test_silent_and_empty_clips_have_finite_gradients():
    discriminator = small_discriminator()
    audio, mask = torch.zeros(2, 1, 2000, dtype=torch.float64, requires_grad=True), torch.ones(2, 2000)
    mask[1] = 0
    real, fake = discriminator(torch.randn_like(audio), mask), discriminator(audio, mask)
    losses = generator_loss(real, fake)
    losses.sum().backward()
    assert losses[1].item() == 0
    assert audio.grad.isfinite().all()
    assert audio.grad[0].any()
    assert not audio.grad[1].any()


def test_least_squares_losses_of_known_verdicts():
    hidden = features([7.0], [7.0])
    real = [[hidden, features([1.0, 0.5], [1.0, 1.0])], [hidden, features([0.0], [1.0])]]
    fake = [[hidden, features([0.0, 1.0], [0.0, 0.0])], [hidden, features([2.0], [0.0])]]
    assert discriminator_loss(real, fake).tolist() == [0.125 + 0.5 + 1 + 4, 0]
    assert adversarial_loss(fake).tolist() == [0.5 + 1, 2]


def test_feature_matching_sums_the_mean_distances_of_all_layers_but_the_last():
    real = [[features([1.0, 2.0]), features([0.0]), features([9.0])], [features([3.0]), features([5.0])]]
    fake = [[features([1.0, 0.0]), features([4.0]), features([0.0])], [features([0.0]), features([0.0])]]
    assert feature_matching_loss(real, fake).tolist() == [1 + 4 + 3]
    assert generator_loss(real, fake).tolist() == [2 * 8 + 1 + 1]


def test_what_is_no_audio_does_not_count():
    real, fake = [[features([1.0, 2.0, 50.0], num_valid=2)] * 2], [[features([0.0, 0.0, -50.0], num_valid=2)] * 2]
    assert discriminator_loss(real, fake).tolist() == [0.5]
    assert adversarial_loss(fake).tolist() == [1]
    assert feature_matching_loss(real, fake).tolist() == [1.5]


def test_recorded_features_get_no_gradient_from_feature_matching():
    real, fake = features([1.0]), features([3.0])
    for layer in (real, fake):
        layer.values.requires_grad_()
    feature_matching_loss([[real, real]], [[fake, fake]]).sum().backward()
    assert real.values.grad is None
    assert fake.values.grad.item() == 1


def test_gradients_reach_the_audio_where_it_is_audio_and_every_weight():
    discriminator = small_discriminator()
    real, fake, mask = batch()
    fake.requires_grad_()
    generator_loss(discriminator(real, mask), discriminator(fake, mask)).sum().backward()
    assert fake.grad[:, 0][mask].count_nonzero() > 0.99 * mask.sum()
    assert not fake.grad[:, 0][~mask].any()
    assert all(weight.grad.any() for weight in discriminator.parameters())


def test_it_learns_to_tell_speech_from_noise():
    torch.manual_seed(0)
    discriminator = Discriminator(periods=[3], window_lengths=[126], period_channels=(8, 16, 16), band_channels=8)
    real, _, mask = batch()
    real, fake = real.float(), torch.randn(real.shape)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    for _ in range(20):
        loss = discriminator_loss(discriminator(real, mask), discriminator(fake, mask)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8 * 2 * 0.5  # two networks that answer 0.5 to everything reach 2 * 0.5


def test_autocast_on_a_cpu_does_not_change_it():
    discriminator = small_discriminator().float()
    real, fake, mask = (x.float() for x in batch())
    expected = generator_loss(discriminator(real, mask), discriminator(fake, mask))
    for _ in range(3):  # NaN, where there are any, depend on what the memory held
        with torch.autocast("cpu", torch.bfloat16):
            losses = generator_loss(discriminator(real, mask), discriminator(fake, mask))
        assert losses.tolist() == expected.tolist()


def test_losses_of_half_precision_layers_are_summed_in_float32():
    real, fake = features([1.0] * 4099), features([0.0] * 4099)
    half = [[layer._replace(values=layer.values.bfloat16())] * 2 for layer in (real, fake)]
    losses = feature_matching_loss(half[:1], half[1:])
    assert losses.dtype == torch.float32
    assert losses.tolist() == [1]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"audio is \(1, 100\) and padding_mask \(1, 100\)"):
        small_discriminator()(torch.zeros(1, 100), torch.ones(1, 100))
