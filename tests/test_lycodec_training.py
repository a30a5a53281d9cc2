"""Training Lycodec: a true boundary, a consistency loss that is one, runs that learn and can be killed."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from fsqcodec import LycodecFeatureExtractor
from fsqcodec.codecs import load_codec
from fsqcodec.training.lycodec_training import (
    HIGHEST_NOISE_LEVEL,
    HUBER_CONSTANT,
    LycodecStep,
    consistency_loss,
    draw_noise_levels,
    rescale_outputs,
)
from fsqcodec.training.perceptual import TokenAlignment
from fsqcodec.training.quantization import most_even_gain
from fsqcodec.training.recipe import load_recipe
from fsqcodec.training.trainer import Trainer
from lycodec_models import SMALL, small_lycodec, stereo_clip
from test_perceptual import WAVEFORM_SIZES

RATE, CROP = 48000, SMALL["crop_length"]
EXACT = {"boundary": "exact", "noise_level": 80.0}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Stereo clips, of which one is shorter than a crop, a small model with an exact boundary, a recipe."""
    folder = tmp_path_factory.mktemp("lycodec")
    for number, length in enumerate((5000, 700, 4000)):
        soundfile.write(folder / f"{number}.wav", stereo_clip(length, number).T.numpy(), RATE)
    small_lycodec(**EXACT).save_pretrained(folder / "model")
    LycodecFeatureExtractor().save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(
        f"""
model: {{folder: {folder / "model"}}}
data: {{train: [{folder / "*.wav"}], hold_out_speakers: 0, crop_seconds: {CROP / RATE}}}
phases:
  - {{steps: 6, losses: {{consistency: 1, stft: 1}}, quantizer_dropout: 0.5}}
  - {{steps: 6, losses: {{consistency: 1}}, quantizer_dropout: 0.75}}
batch_size: 4
save_minutes: 0
"""
    )
    return folder


def recipe_of(workplace, **replaced):
    return load_recipe(workplace / "recipe.yaml", **replaced)


def logged(output) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "audio_seconds_per_second"} for line in lines]


@torch.no_grad()
def test_at_the_lowest_level_the_input_comes_back():
    """f(x, sigma_min) = x, whatever the weights and features, and nowhere else; the original's is another function."""
    features = torch.randn(3, SMALL.get("frames_per_crop", 18), SMALL["latent_dim"])
    for boundary, level, is_identity in (("exact", 0.002, True), ("exact", 0.02, False), ("original", 0.002, False)):
        model = small_lycodec(boundary=boundary, noise_level=80.0)
        noisy = torch.randn(3, 4, model.config.stft_bins, model.config.stft_frames)
        output = model.decoder(features, noisy, torch.full((3,), level))
        assert torch.allclose(output, noisy, atol=1e-6) == is_identity


def test_decoding_from_where_the_decoder_does_nothing_is_refused():
    model = small_lycodec(**EXACT)
    codes = torch.zeros(1, SMALL["latent_dim"], 18, dtype=torch.int64)
    with pytest.raises(ValueError, match="noise_level is 0.002: a number above 0.002 is wanted"):
        model.decode(codes, noise_level=0.002)
    with pytest.raises(Exception, match="it must be above min_noise_level"):
        small_lycodec(boundary="exact", noise_level=0.001)
    with pytest.raises(Exception, match="boundary is 'open': one of original, exact"):
        small_lycodec(boundary="open")


def test_levels_are_neighbours_and_spread_by_their_seventh_root():
    torch.manual_seed(0)
    lower, higher = draw_noise_levels(20000, 0.002, "cpu")
    assert lower.min() >= 0.002 and lower.max() <= HIGHEST_NOISE_LEVEL
    assert (higher / lower > 1).all() and (higher / lower <= 1.2001).all()
    low, high = 0.002 ** (1 / 7), HIGHEST_NOISE_LEVEL ** (1 / 7)
    shares = np.sort((lower.double().numpy() ** (1 / 7) - low) / (high - low))
    assert np.abs(shares - np.linspace(0, 1, len(shares))).max() < 0.02


def test_the_consistency_loss_is_the_papers_by_the_step():
    """The root of the squared distance and of c, not as `torch.nn.HuberLoss`; padding and the teacher are left out."""
    student, teacher = (torch.randn(2, 2, 50, requires_grad=True) for _ in range(2))
    mask = torch.ones(2, 50)
    mask[1, 20:] = 0
    loss = consistency_loss(student, teacher, mask, torch.tensor([0.5, 2.0]))
    for row, num_samples, step in ((0, 50, 0.5), (1, 20, 2.0)):
        difference = (student - teacher)[row, :, :num_samples].flatten()
        constant = HUBER_CONSTANT * len(difference) ** 0.5
        distance = (difference.square().sum() + constant**2).sqrt() - constant
        assert loss[row].item() == pytest.approx(distance.item() / len(difference) ** 0.5 / step, rel=1e-5)
    loss.sum().backward()
    assert teacher.grad is None and not student.grad[1, :, 20:].any() and student.grad[0].all()
    assert consistency_loss(student, student, mask, torch.ones(2)).abs().max() == 0


def test_a_step_trains_everything_that_sounds_and_leaves_the_teacher_alone():
    codec, teacher = small_lycodec(**EXACT), small_lycodec(1, **EXACT)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    audio, mask = stereo_clip(3 * CROP).unflatten(1, (3, CROP)).transpose(0, 1), torch.ones(3, CROP)
    step = LycodecStep(codec, teacher)
    assert not any("teacher" in name for name in step.state_dict())
    for quantizes in (True, False):
        codec.zero_grad()
        torch.manual_seed(0)
        values, latents = step(audio, mask, quantizes, ("consistency", "stft"))
        assert values.keys() == {"consistency", "stft"} and values["stft"].shape == (3,)
        assert torch.equal(latents, codec.encoder(codec.spectrogram(audio)))
        sum(value.sum() for value in values.values()).backward()
        silent = {"quantizer.residual_mlp.fc1.weight"}  # the residual is 0: codes hold none
        silent |= {name for name, _ in codec.named_parameters() if name.endswith("k_proj.bias")}  # of no effect
        for name, parameter in codec.named_parameters():
            assert name in silent or parameter.grad.abs().max() > 0, name
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_layers_that_are_computed_again_give_the_same_gradients():
    audio, mask = stereo_clip(2 * CROP).unflatten(1, (2, CROP)).transpose(0, 1), torch.ones(2, CROP)
    gradients = []
    for is_checkpointed in (False, True):
        codec = small_lycodec(**EXACT).train()
        num_kept = 0

        def count(tensor):
            nonlocal num_kept
            num_kept += tensor.numel()
            return tensor

        if is_checkpointed:
            codec.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            values, _ = LycodecStep(codec, small_lycodec(1, **EXACT))(audio, mask, True, ("consistency", "stft"))
        sum(value.sum() for value in values.values()).backward()
        gradients.append((num_kept, [parameter.grad for parameter in codec.parameters()]))
    (kept, whole), (kept_checkpointed, again) = gradients
    assert kept_checkpointed < 0.7 * kept
    for one, other in zip(whole, again):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "boundary, parts, is_rescaled",
    [
        ("exact", ["encoder", "decoder"], True),
        ("exact", ["decoder"], False),
        ("original", ["encoder", "decoder"], False),
    ],
)
def test_latents_of_a_new_model_get_the_deviation_at_which_digits_vary(
    workplace, tmp_path, boundary, parts, is_rescaled
):
    """Those of an original model, and of an encoder that is not trained, are left as they are."""
    codec = small_lycodec(boundary=boundary, noise_level=80.0)
    with torch.no_grad():
        codec.encoder.output_proj.weight.mul_(1e-3)  # latents that hardly differ from frame to frame
        codec.encoder.output_proj.bias.fill_(0.3)
    codec.save_pretrained(tmp_path / "model")
    LycodecFeatureExtractor().save_pretrained(tmp_path / "model")
    trainer = Trainer(recipe_of(workplace, model={"folder": str(tmp_path / "model"), "parts": parts}), tmp_path / "run")
    for batch, _ in zip(trainer.accelerator_batches(), range(4)):
        trainer.train_step(batch)
        trainer.step += 1
    with torch.no_grad():
        latents = trainer.codec.encoder(trainer.codec.spectrogram(batch["input_values"])).flatten(0, 1)
    share = latents.std(dim=0) / most_even_gain(11)
    assert (share > 0.4).all() and (share < 2).all() if is_rescaled else (share < 0.05).all()


def test_rescaled_outputs_have_the_wanted_moments():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(5, 3), 2 + torch.randn(1000, 5)
    with torch.no_grad():
        before = linear(x)
        rescale_outputs(linear, before.mean(dim=0), before.square().mean(dim=0), 0.7)
        after = linear(x)
    torch.testing.assert_close(after.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.std(dim=0, correction=0), torch.full((3,), 0.7), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_undisturbed_run_and_one_that_was_killed_end_alike(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("fsqcodec.training.trainer.LOG_EVERY_STEPS", 1)
    Trainer(recipe_of(workplace), tmp_path / "whole").run()
    program = (
        "from fsqcodec.training import recipe, trainer; trainer.LOG_EVERY_STEPS = 1;"
        f"trainer.Trainer(recipe.load_recipe({str(workplace / 'recipe.yaml')!r}), {str(tmp_path / 'killed')!r}).run()"
    )
    log, was_killed = tmp_path / "killed" / "log.jsonl", False
    while True:
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if not was_killed and log.exists() and log.read_text().count("\n") >= 7:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL and not was_killed
        was_killed = True
    assert was_killed
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    whole, killed = (load_codec(tmp_path / name / "last").model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(killed[name], tensor) for name, tensor in whole.items())
    assert [line["step"] for line in logged(tmp_path / "whole") if "stft" in line] == [1, 2, 3, 4, 5, 6]


def test_a_run_leaves_a_model_with_a_card_that_decodes(workplace, tmp_path):
    phases = [{"steps": 2, "losses": {"consistency": 1, "stft": 1}}]
    recipe = recipe_of(workplace, phases=phases, **{"data.hold_out_speakers": 1, "data.num_validation_clips": 1})
    trainer = Trainer(recipe, tmp_path / "run")
    trainer.validation.clips = trainer.crops.clips[:2]
    trainer.run()
    last = load_codec(tmp_path / "run" / "last")
    (codes,) = last.encode([stereo_clip(2000).numpy()])
    assert last.decode([codes], [2000])[0].shape == (2, 2000)
    assert last.model.config.boundary == "exact"
    line = json.loads((tmp_path / "run" / "validation.jsonl").read_text().splitlines()[-1])
    assert line["stft_distance"] > 0 and np.isfinite(line["si_sdr_db"])
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert "2 steps of 4 crops of 0.0225 s" in (tmp_path / "run" / "last" / "README.md").read_text()


@pytest.mark.slow
def test_one_clip_is_learned(workplace, tmp_path):
    phases = [{"steps": 120, "losses": {"consistency": 0.1, "stft": 1}}]
    replaced = {"phases": phases, "data.train": [str(workplace / "0.wav")], "optimizer": {"learning_rate": 3e-3}}
    trainer, losses = Trainer(recipe_of(workplace, **replaced), tmp_path), []
    for batch, _ in zip(trainer.accelerator_batches(), range(20)):
        losses.append(float(trainer.train_step(batch)["stft"]))
        trainer.step += 1
    assert losses[19] < 0.85 * losses[9]


def test_bf16_is_close_to_float32(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("fsqcodec.training.trainer.is_bf16_fast", lambda device: True)
    facts = {}
    for precision in ("float32", "bf16"):
        trainer = Trainer(recipe_of(workplace, precision=precision), tmp_path / precision, Accelerator())
        facts[precision] = trainer.train_step(next(trainer.accelerator_batches()))
        assert all(parameter.dtype == torch.float32 for parameter in trainer.codec.parameters())
    assert facts["bf16"]["stft"] != facts["float32"]["stft"]
    for name in ("stft", "consistency"):
        assert float(facts["bf16"][name]) == pytest.approx(float(facts["float32"][name]), rel=0.05)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A tiny HuBERT with random weights, that hears 16 kHz."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    HubertModel(HubertConfig(feat_extract_norm="layer", **WAVEFORM_SIZES)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def test_features_are_aligned_with_what_an_encoder_hears(teacher_folder):
    """The cosine to the states of the mean channel at the encoder's rate; only the map and the features learn."""
    torch.manual_seed(0)
    alignment = TokenAlignment(teacher_folder, 8, RATE)
    assert [name for name, _ in alignment.named_parameters()] == ["projection.weight", "projection.bias"]
    audio, features = stereo_clip(6 * CROP)[None], torch.randn(1, 18, 8, requires_grad=True)
    loss = alignment(audio, features)
    loss.sum().backward()
    assert loss.shape == (1,) and 0 <= loss.item() <= 2 and features.grad.any()
    assert torch.equal(alignment(audio.flip(1), features), loss)  # left and right count alike
    assert not torch.equal(alignment(audio[:, :1].expand(-1, 2, -1), features), loss)
    optimizer = torch.optim.Adam([features, *alignment.parameters()], 0.05)
    for _ in range(50):
        optimizer.zero_grad()
        alignment(audio, features).sum().backward()
        optimizer.step()
    assert alignment(audio, features).item() < 0.3 * loss.item()


def test_an_alignment_that_a_phase_does_without_has_gradients_of_zero(teacher_folder):
    """Processes that train together wait for those of all parameters."""
    model = small_lycodec()
    step = LycodecStep(model, model, TokenAlignment(teacher_folder, model.config.latent_dim, RATE))
    clip = stereo_clip(model.config.crop_length)[None]
    values, _ = step(clip, torch.ones(1, clip.shape[-1]), True, ("stft",))
    values["stft"].sum().backward()
    assert all((parameter.grad == 0).all() for parameter in step.alignment.parameters())


def test_a_run_with_an_alignment_goes_on_with_its_map(teacher_folder, tmp_path):
    """Crops of half a second, which the encoder needs for a frame of 20 ms."""
    soundfile.write(tmp_path / "clip.wav", stereo_clip(48000).T.numpy(), RATE)
    sizes = {**SMALL, "crop_length": 1800, "boundary": "exact", "noise_level": 80.0}
    recipe = {
        "model": {
            "preset": "lycodec-48khz",
            "overrides": {name: list(v) if isinstance(v, tuple) else v for name, v in sizes.items()},
        },
        "data": {"train": [str(tmp_path / "clip.wav")], "hold_out_speakers": 0, "crop_seconds": 1800 / RATE},
        "phases": [{"steps": 2, "losses": {"alignment": 1}}],
        "perceptual_model": str(teacher_folder),
        "batch_size": 2,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    trainer = Trainer(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    trainer.run()
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["model"]
    assert "alignment.projection.weight" in saved and not any("encoder.encoder" in name for name in saved)
    again = Trainer(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert again.step == 2
    assert torch.equal(again.family.module.alignment.projection.weight, saved["alignment.projection.weight"])


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"data.crop_seconds": 1.0}, "crop_seconds is 1.0: this codec's crops, 0.0225 s, are what it is trained on"),
        ({"phases": [{"steps": 1, "losses": {"mel": 1}}]}, "there is no loss 'mel'; the losses are: consistency, stft"),
        ({"phases": [{"steps": 1, "losses": {"alignment": 1}}]}, "the loss 'alignment' wants a perceptual_model"),
        ({"optimizer": {"name": "muon"}}, "muon is for the residual units of CodecModel"),
    ],
)
def test_what_does_not_fit_lycodec_is_said(workplace, tmp_path, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        Trainer(recipe_of(workplace, **change), tmp_path)
