"""Tokens pulled to those of the clean clip: what is changed, what is compared, and that it helps."""

import copy

import pytest
import torch

from fsqcodec.training.consistency import consistency_loss, perturbed
from fsqcodec.training.quantization import prepare_quantizer
from fsqcodec.training.recipe import Consistency
from small_configs import small_model, speech_like_clip


def batch_of(num_clips: int, num_samples: int) -> dict[str, torch.Tensor]:
    clips = torch.stack([speech_like_clip(num_samples, seed) for seed in range(num_clips)]).unsqueeze(1)
    mask = torch.ones(num_clips, num_samples, dtype=torch.long)
    mask[1, num_samples // 2 :] = 0
    return {"input_values": clips * mask[:, None], "padding_mask": mask}


@pytest.fixture
def codec():
    model = small_model("frames-plain").train()
    prepare_quantizer(model)
    return model


def test_clips_are_changed_in_four_ways_each_as_often():
    torch.manual_seed(0)
    batch = batch_of(400, 960)
    audio, mask = batch["input_values"], batch["padding_mask"]
    decoded = torch.full_like(audio, 0.25)
    recipe = Consistency(noise_db=(20.0, 20.0), gain_db=(-6.0206, -6.0206), shift_samples=2)
    changed = perturbed(audio, decoded, mask, recipe)
    assert not changed[:, 0][mask == 0].any()
    kinds = {"decoded": [], "gain": [], "shift": [], "noise": []}
    for number, (clip, before) in enumerate(zip(changed[:, 0], audio[:, 0])):
        valid = mask[number].bool()
        shifts = [torch.roll(before, shift)[4:400] for shift in range(-2, 3)]
        if (clip[valid] == 0.25).all():
            kinds["decoded"].append(number)
        elif torch.allclose(clip, before / 2, atol=1e-5):
            kinds["gain"].append(number)
        elif any(torch.allclose(clip[4:400], shifted) for shifted in shifts):
            kinds["shift"].append(number)
        else:
            noise = (clip - before)[valid]
            kinds["noise"].append(float(10 * torch.log10(before[valid].square().sum() / noise.square().sum())))
    assert all(len(of_kind) > 60 for of_kind in kinds.values())
    assert torch.tensor(kinds["noise"]).mean().item() == pytest.approx(20, abs=0.2)


def test_a_clip_that_is_not_changed_is_at_no_distance(codec):
    batch = batch_of(4, 960)
    output = codec(**batch, output_latents=True)
    recipe = Consistency(share=0.5, noise_db=(300.0, 300.0), gain_db=(0.0, 0.0), shift_samples=0)
    values = consistency_loss(codec, batch, output.latents, batch["input_values"], recipe)
    assert values.shape == (4,) and values.abs().max() < 1e-3


def test_clips_that_are_left_out_have_none_and_the_mean_is_the_same_in_expectation(codec):
    batch = batch_of(4, 960)
    output = codec(**batch, output_latents=True)
    recipe = Consistency(share=0.5, noise_db=(0.0, 0.0))
    torch.manual_seed(0)
    values = consistency_loss(codec, batch, output.latents, output.audio_values, recipe)
    assert not values[2:].any() and values[:2].min() > 0
    torch.manual_seed(0)
    halved = {name: tensor[:2] for name, tensor in batch.items()}
    alone = consistency_loss(codec, halved, output.latents[:2], output.audio_values[:2], Consistency(1.0, (0.0, 0.0)))
    assert values[:2].mean().item() == pytest.approx(2 * alone.mean().item(), rel=0.3)  # other statistics


def test_training_on_it_keeps_tokens(codec):
    """A hundred steps of it alone: noise changes fewer digits than before."""
    batch = batch_of(8, 1920)
    recipe = Consistency(share=1.0, noise_db=(20.0, 20.0), gain_db=(0.0, 0.0), shift_samples=0)

    def changed_share(model):
        model = copy.deepcopy(model).eval()
        generator = torch.Generator().manual_seed(0)
        audio = batch["input_values"]
        noise = 0.1 * audio.square().mean(dim=-1, keepdim=True).sqrt() * torch.randn(audio.shape, generator=generator)
        with torch.no_grad():
            a, b = model.encode(audio).audio_codes, model.encode(audio + noise).audio_codes
        return (a != b).float().mean().item()

    before = changed_share(codec)
    optimizer = torch.optim.Adam([*codec.encoder.parameters(), *codec.quantizer.parameters()], 1e-3)
    torch.manual_seed(0)
    for _ in range(100):
        output = codec(**batch, output_latents=True)
        values = consistency_loss(codec, batch, output.latents, batch["input_values"], recipe)
        values.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert changed_share(codec) < 0.8 * before


def test_a_quantizer_that_is_not_trained_serves_as_well():
    codec, batch = small_model("frames-plain").train(), batch_of(4, 960)
    codec.quantizer.requires_grad_(False)
    output = codec(**batch, output_latents=True)
    values = consistency_loss(codec, batch, output.latents, output.audio_values, Consistency(share=1.0))
    values.sum().backward()
    assert values.min() > 0 and codec.encoder.stem.project.weight.grad.any()
