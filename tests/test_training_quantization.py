"""Normalised digits in training, and the published architecture at the end."""

import copy
import math
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fsqcodec.models.quantization import FiniteScalarQuantizer
from fsqcodec.training.quantization import (
    CodeUseWindow,
    TrainingQuantizer,
    check_collapse,
    digit_noise_probability,
    folded,
    most_even_gain,
    prepare_quantizer,
    recalibrate,
)
from small_configs import small_model, speech_like_clip

KINDS = [("tanh", (7, 9, 5)), ("fsq", (8, 5, 3, 4))]


def random_latents(*shape, seed=0):
    """Of unequal channels, far from zero: what a drifting encoder puts out."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.2 + 3 * torch.rand(shape[-1], generator=generator)
    return 2 + spread * torch.randn(shape, generator=generator)


def random_quantizer(bound="tanh", levels=(7, 9, 5), latent_dim=10) -> TrainingQuantizer:
    torch.manual_seed(1)
    return TrainingQuantizer(FiniteScalarQuantizer(latent_dim, levels, bound), momentum=0.1)


def clips_and_mask(model, num_clips=3, num_frames=40):
    """Clips of unequal length, in frames and a bit."""
    hop_length = model.config.hop_length
    clips = torch.stack([speech_like_clip(num_frames * hop_length, seed) for seed in range(num_clips)])
    lengths = torch.linspace(num_frames / 3, num_frames, num_clips).mul(hop_length).int() - 1
    mask = torch.arange(clips.shape[1]) < lengths[:, None]
    return {"input_values": (clips * mask).unsqueeze(1), "padding_mask": mask.long()}


def test_until_it_is_trained_a_prepared_model_computes_what_it_did(model):
    batch = clips_and_mask(model)
    with torch.no_grad():
        before = model(**batch)
        prepare_quantizer(model)
        after = model(**batch)
        with folded(model):
            in_fold = model(**batch)
    for output in (after, in_fold):
        assert torch.equal(output.audio_codes, before.audio_codes)
        torch.testing.assert_close(output.audio_values, before.audio_values, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="prepared for training already"):
        prepare_quantizer(model)


def test_the_folded_model_is_the_published_architecture_and_computes_the_same(model, tmp_path):
    batch = clips_and_mask(model)
    names = set(model.state_dict())
    prepare_quantizer(model)
    model.train()
    for _ in range(3):
        model(**batch)
    model.eval()
    with torch.no_grad():
        trained = model(**batch, output_latents=True)
        with folded(model):
            assert set(model.state_dict()) == names
            model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        saved = loaded(**batch, output_latents=True)
    assert isinstance(model.quantizer, TrainingQuantizer) and type(loaded.quantizer) is FiniteScalarQuantizer
    for name in ("latents", "audio_codes", "audio_values"):
        torch.testing.assert_close(saved[name], trained[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("bound, levels", KINDS)
@torch.no_grad()
def test_with_the_statistics_of_a_batch_the_folded_quantizer_does_to_it_what_training_did(bound, levels):
    quantizer = random_quantizer(bound, levels).double()
    quantizer.project_in.momentum = 1.0
    latents = 100 * random_latents(4, 50, 10).double()
    features, indices = quantizer(latents)
    assert len(indices.unique()) > 50
    for at_inference in (quantizer.fold(), quantizer.eval()):
        assert torch.equal(at_inference(latents)[1], indices)
        torch.testing.assert_close(at_inference(latents)[0], features, atol=1e-12, rtol=1e-12)
    quantizer.train()
    torch.testing.assert_close(quantizer.positions(latents), quantizer.fold().positions(latents), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bound, levels", KINDS)
@torch.no_grad()
def test_pre_activations_are_whitened_over_valid_frames(bound, levels):
    quantizer = random_quantizer(bound, levels).double()
    latents = random_latents(3, 60, 10).double()
    mask = torch.arange(60) < torch.tensor([60, 25, 41])[:, None]
    layer = quantizer.project_in
    before = layer.running_mean.clone(), layer.running_covariance.clone()

    layer.frame_mask = mask
    white = ((layer(latents) - layer.offset) / layer.gain)[mask]
    assert white.mean(dim=0).abs().max() < 1e-12
    correlation = torch.cov(white.T, correction=0)
    torch.testing.assert_close(correlation, torch.eye(len(levels)).double(), atol=0.1, rtol=0)  # shrunk by SHRINKAGE

    z = nn.functional.linear(latents, layer.weight, layer.bias)[mask]
    torch.testing.assert_close(layer.running_mean, 0.9 * before[0] + 0.1 * z.mean(dim=0))
    torch.testing.assert_close(layer.running_covariance, 0.9 * before[1] + 0.1 * torch.cov(z.T, correction=0))
    each_alone = (z - z.mean(dim=0)) / z.std(dim=0, correction=0)
    torch.testing.assert_close(white[:, 0], each_alone[:, 0], atol=1e-5, rtol=1e-4)  # the first keeps its direction


def test_digits_that_repeat_each_other_are_told_apart():
    """Three pre-activations that are nearly one: alone they agree, whitened they share little."""
    quantizer = random_quantizer(levels=(7, 7, 7))
    direction = torch.randn(10)
    with torch.no_grad():
        quantizer.project_in.weight.copy_(direction + 0.05 * torch.randn(3, 10))
    digits = quantizer.indices_to_digits(quantizer(random_latents(8, 500, 10))[1]).flatten(0, 1).double()
    assert (torch.corrcoef(digits.T) - torch.eye(3)).abs().max() < 0.4
    z = quantizer.project_in.unwhitened(random_latents(8, 500, 10)).flatten(0, 1)
    assert torch.corrcoef(z.T).min() > 0.95


def test_whitening_passes_exact_gradients():
    quantizer = random_quantizer().double()
    latents = random_latents(1, 12, 10).double().requires_grad_()
    quantizer.project_in.momentum = 0.0
    assert torch.autograd.gradcheck(quantizer.project_in, (latents,))


def test_the_model_leaves_padding_out_of_the_statistics(model):
    batch = clips_and_mask(model)
    ends = batch["padding_mask"].sum(dim=1)
    hop_length = model.config.hop_length
    prepare_quantizer(model)
    model = copy.deepcopy(model).train()  # a copy has statistics of its own
    output = model(**batch)
    statistics = model.quantizer.project_in.running_covariance.diagonal().clone()
    z = model.encode(**batch, output_latents=True).latents.transpose(1, 2)
    z = model.quantizer.project_in.unwhitened(z)
    valid = [clip[: -(-int(end) // hop_length)] for clip, end in zip(z, ends)]
    assert sum(map(len, valid)) == output.audio_codes_mask.sum()
    variance = torch.cat(valid).var(dim=0, correction=0)
    before = model.quantizer.project_in.gain**2
    torch.testing.assert_close(statistics, 0.9 * before + 0.1 * variance, atol=1e-5, rtol=1e-4)
    assert (z.flatten(0, 1).var(dim=0, correction=0) - variance).abs().max() > 1e-3  # padding would show


def test_a_collapsed_quantizer_uses_its_levels_again():
    quantizer = random_quantizer()
    with torch.no_grad():
        quantizer.project_in.bias += torch.tensor([-24.0, 15.0, 8.0])
    latents = random_latents(8, 500, 10)
    plain = FiniteScalarQuantizer(10, (7, 9, 5), "tanh")
    plain.load_state_dict({name: value for name, value in quantizer.state_dict().items() if "running" not in name})
    assert len(plain(latents)[1].unique()) <= 2
    assert len(quantizer(latents)[1].unique()) > 0.8 * 7 * 9 * 5


@pytest.mark.parametrize("num_levels", [3, 4, 7, 8, 9])
def test_the_gain_makes_the_use_of_levels_most_even(num_levels):
    gain = most_even_gain(num_levels)
    z = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)  # a normal sample

    def bits(gain):
        quantizer = FiniteScalarQuantizer(1, (num_levels,), "tanh")
        quantizer.project_in.weight.data.fill_(gain)
        quantizer.project_in.bias.data.zero_()
        digits = quantizer.round(quantizer.positions(z.float()[:, None]))[:, 0]
        shares = torch.bincount(digits, minlength=num_levels).double() / len(z)
        return float(torch.special.entr(shares).sum() / math.log(2))

    assert bits(gain) > 0.98 * math.log2(num_levels)
    assert bits(gain) > max(bits(0.9 * gain), bits(1.1 * gain))


@torch.no_grad()
def test_recalibration_finds_the_statistics_of_all_frames_however_batched(model):
    prepare_quantizer(model).train()
    batch = clips_and_mask(model, num_clips=4)
    projection = model.quantizer.project_in
    one_by_one = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(4)]
    recalibrate(model, one_by_one)
    statistics = projection.running_mean.clone(), projection.running_covariance.clone()
    encoded = model.encode(**batch, output_latents=True)
    z = projection.unwhitened(encoded.latents.transpose(1, 2))[encoded.audio_codes_mask.bool()]
    torch.testing.assert_close(statistics[0], z.mean(dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(statistics[1], torch.cov(z.T, correction=0), atol=1e-5, rtol=1e-4)
    recalibrate(model, [batch])
    torch.testing.assert_close(projection.running_covariance, statistics[1], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="no batches"):
        recalibrate(model, [])


@pytest.mark.parametrize("bound, levels", KINDS)
def test_noise_reaches_the_decoder_on_some_digits_and_leaves_tokens_and_gradients(bound, levels):
    quantizer = random_quantizer(bound, levels, latent_dim=len(levels))
    with torch.no_grad():
        quantizer.project_out.weight.copy_(torch.eye(len(levels)))
        quantizer.project_out.bias.zero_()
    latents = random_latents(4, 2000, len(levels)).requires_grad_()
    clean, indices = quantizer(latents)
    quantizer.noise_probability = 0.3
    noisy, noisy_indices = quantizer(latents)
    assert torch.equal(indices, noisy_indices)
    is_noisy = (noisy - clean).abs() > 1e-6
    assert is_noisy.float().mean(dim=(0, 1)).sub(0.3).abs().max() < 0.03
    level_distance = 2 * (quantizer.digits_to_values(torch.ones(len(levels))) + 1) / 2
    soft = quantizer.latents_to_features(latents)
    noise = ((noisy - soft) / level_distance)[is_noisy]
    assert 0.49 < noise.abs().max() < 0.5 + 1e-4 and noise.mean().abs() < 0.03
    weight = torch.randn_like(noisy)
    gradient, wanted = (torch.autograd.grad((x * weight).sum(), latents)[0] for x in (noisy, soft))
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
    quantizer.eval()
    assert torch.equal(quantizer(latents)[0], quantizer(latents)[0])


def test_noise_begins_late_and_rises_to_its_probability():
    probabilities = [digit_noise_probability(step, first_step=10, ramp_steps=4) for step in range(20)]
    assert probabilities == [0.0] * 11 + [0.125, 0.25, 0.375] + [0.5] * 6


def test_the_use_of_codes_is_that_of_the_window():
    levels = (3, 4)
    window = CodeUseWindow(levels, num_batches=2)
    window.add(torch.zeros(5, 1, 100, dtype=torch.int64), torch.ones(5, 100))
    every_code = torch.arange(12).reshape(2, 1, 6)
    window.add(every_code, torch.ones(2, 6))
    assert window.use().num_frames == 512
    padded = torch.cat([every_code, torch.zeros(2, 1, 3, dtype=torch.int64)], dim=-1)
    window.add(padded, (torch.arange(9) < 6).expand(2, 9).long())  # pushes the zeros out
    use = window.use()
    assert (use.num_frames, use.num_used) == (24, 12)
    assert use.bits == pytest.approx(math.log2(12)) == pytest.approx(use.most_bits)
    assert use.digit_bits == pytest.approx([math.log2(3), 2])
    check_collapse(use)


def test_collapse_stops_the_run_with_the_reason():
    levels = (7, 7, 7)
    digits = torch.randint(7, (3, 4000), generator=torch.Generator().manual_seed(0))

    def use(first, second, third):
        window = CodeUseWindow(levels, num_batches=1)
        window.add((first + 7 * second + 49 * third)[None, None], torch.ones(1, 4000))
        return window.use()

    check_collapse(use(*digits))
    rarely = digits[1] * (torch.arange(4000) % 20 == 0)
    with pytest.raises(RuntimeError, match="digit 1 carries 0.* of 2.81 bits .*less than 30%: the quantizer collapses"):
        check_collapse(use(digits[0], rarely, digits[2]))
    check_collapse(use(digits[0], rarely, digits[2]), least_digit_share=0.1)
    with pytest.raises(RuntimeError, match="though their digits vary: they repeat each other"):
        check_collapse(use(digits[0], digits[0], digits[0]), least_token_share=0.4)


def two_process_case():
    """A quantizer, latents of four clips, their frames and the weights of a loss; the first two have most frames."""
    latents = random_latents(4, 30, 10, seed=5)
    latents[2:] += 1.5
    mask = torch.arange(30) < torch.tensor([30, 28, 9, 4])[:, None]
    weight = torch.randn(4, 30, 10, generator=torch.Generator().manual_seed(6))
    return random_quantizer(), latents, mask, weight * mask.unsqueeze(-1)


def gradients_of(quantizer, training_step, latents, mask, weight):
    latents = latents.requires_grad_()
    quantizer.project_in.frame_mask = mask
    features, indices = training_step(latents)
    (features * weight).sum().backward()
    return {
        "latents": latents.grad,
        "weight": quantizer.project_in.weight.grad,
        "running_mean": quantizer.project_in.running_mean,
        "running_covariance": quantizer.project_in.running_covariance,
        "indices": indices,
    }


def half_of_two_processes(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        save_results_of_a_half(rank, folder)
    finally:
        dist.destroy_process_group()


def save_results_of_a_half(rank, folder):
    quantizer, *tensors = two_process_case()
    share = slice(2 * rank, 2 * rank + 2)
    results = gradients_of(quantizer, DistributedDataParallel(quantizer), *(tensor[share] for tensor in tensors))
    window = CodeUseWindow(quantizer.quantization_levels, num_batches=1)
    window.add(results["indices"].unsqueeze(1), tensors[1][share])
    model = small_model("l3ac-fine")
    prepare_quantizer(model)
    batch = clips_and_mask(model, num_clips=4)
    recalibrate(model, [{name: value[share] for name, value in batch.items()}])
    torch.save((results, window.use(), model.quantizer.project_in.running_covariance), f"{folder}/{rank}.pt")


def second_half(_, folder):
    half_of_two_processes(1, folder)


def test_two_processes_have_the_statistics_gradients_and_use_of_one_with_the_whole_batch(tmp_path):
    quantizer, *tensors = two_process_case()
    whole = gradients_of(quantizer, quantizer, *tensors)
    window = CodeUseWindow(quantizer.quantization_levels, num_batches=1)
    window.add(whole["indices"].unsqueeze(1), tensors[1])
    model = small_model("l3ac-fine")
    prepare_quantizer(model)
    recalibrate(model, [clips_and_mask(model, num_clips=4)])

    second = mp.spawn(second_half, (str(tmp_path),), nprocs=1, join=False)
    half_of_two_processes(0, tmp_path)
    second.join()
    halves, uses, variances = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)))
    for name in ("latents", "indices"):
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), whole[name], atol=1e-5, rtol=1e-4)
    for half, use, variance in zip(halves, uses, variances):
        torch.testing.assert_close(half["running_mean"], whole["running_mean"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(half["running_covariance"], whole["running_covariance"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(2 * half["weight"], whole["weight"], atol=1e-4, rtol=1e-4)  # DDP takes the mean
        assert use == window.use()
        torch.testing.assert_close(variance, model.quantizer.project_in.running_covariance, atol=1e-6, rtol=1e-5)


def test_clips_skip_the_rounding_as_often_as_asked():
    quantizer = random_quantizer().train()
    latents = random_latents(400, 5, 10)
    quantizer.dropout_probability = 1.0
    unrounded, _ = quantizer(latents)
    expected = quantizer.values_to_features(quantizer._to_values(quantizer.positions(latents)))
    torch.testing.assert_close(unrounded, expected)
    quantizer.dropout_probability = 0.0
    rounded, codes = quantizer(latents)
    quantizer.dropout_probability = 0.3
    mixed, mixed_codes = quantizer(latents)
    assert torch.equal(mixed_codes, codes)
    is_unrounded = (mixed - unrounded).abs().amax(dim=(1, 2)) < 1e-6
    is_rounded = (mixed - rounded).abs().amax(dim=(1, 2)) < 1e-6
    assert (is_unrounded ^ is_rounded).all()
    assert is_unrounded.float().mean().item() == pytest.approx(0.3, abs=0.08)
    quantizer.eval()
    torch.testing.assert_close(quantizer(latents)[0], quantizer(latents)[0])


def test_without_whitening_training_computes_what_inference_does(model):
    """Values, gradients of the projection, and statistics that stay."""
    batch = clips_and_mask(model)
    with torch.no_grad():
        before = model(**batch, output_latents=True)
    quantizer = prepare_quantizer(model, whitens=False)
    model.train()
    for _ in range(2):
        output = model(**batch, output_latents=True)
        assert torch.equal(output.audio_codes, before.audio_codes)
        latents = output.latents.transpose(1, 2)
        beside, clean = quantizer.positions_beside(latents[:1], latents, output.audio_codes_mask.bool())
        torch.testing.assert_close(beside, clean[:1])
        torch.testing.assert_close(clean, quantizer.positions(latents))
    clean.sum().backward()
    assert quantizer.project_in.weight.grad.any()
