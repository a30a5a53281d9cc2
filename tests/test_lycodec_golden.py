"""Lycodec computes what the original's code computed, on vectors that it made with random weights."""

from functools import cache

import pytest
import torch

from fsqcodec.models import encoder_lycodec, layers_lycodec
from fsqcodec.models.layers_lycodec import interpolate_steps
from lycodec_models import golden_paths, load_golden

LATENTS_TOLERANCE = 5e-6
HIGHEST_LEVEL = 80.0  # the raw noise level enters a linear layer: rounding errors grow with it

cached_golden = cache(load_golden)


@pytest.fixture(params=golden_paths())
def golden(request):
    return cached_golden(request.param)


def clips(golden):
    """(audio, the clip's tensors, its facts) of each clip; audio is zero-padded by the model."""
    for i, facts in enumerate(golden.facts["clips"]):
        prefix = f"io.{i}."
        tensors = {name.removeprefix(prefix): x for name, x in golden.tensors.items() if name.startswith(prefix)}
        yield tensors["audio"], tensors, facts


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def encoding_holds(golden) -> bool:
    """Whether codes are equal and latents within the tolerance, for all clips."""
    for audio, tensors, _ in clips(golden):
        encoded = golden.model.encode(audio, output_latents=True)
        if not torch.equal(encoded.audio_codes.transpose(1, 2), tensors["codes"]):
            return False
        if error(encoded.latents.transpose(1, 2), tensors["latents"]) > LATENTS_TOLERANCE:
            return False
    return True


@torch.no_grad()
def test_golden_codes_are_equal_and_latents_close(golden):
    assert encoding_holds(golden)


@torch.no_grad()
def test_golden_stages_of_the_encoder(golden):
    model, encoder = golden.model, golden.model.encoder
    for audio, tensors, _ in clips(golden):
        crop = torch.nn.functional.pad(audio, (0, model.config.crop_length - audio.shape[-1]))
        spectrogram = model.spectrogram(crop)
        assert error(spectrogram, tensors["spec"]) < 1e-5
        x = spectrogram
        for block in encoder.conv_blocks:
            x = block(x)
        assert error(x, tensors["patch"]) < 1e-5
        pooled = encoder.input_proj(x).mean(dim=2)
        assert error(pooled, tensors["pooled"]) < 5e-6
        assert error(encoder.resampler(pooled), tensors["resampled"]) < 5e-6


@torch.no_grad()
def test_golden_mono_is_two_equal_channels(golden):
    for audio, tensors, facts in clips(golden):
        if facts["mono"]:
            codes = golden.model.encode(audio[:, :1]).audio_codes
            assert torch.equal(codes.transpose(1, 2), tensors["codes"])


@torch.no_grad()
def test_golden_features_with_and_without_the_residual(golden):
    quantizer = golden.model.quantizer
    for _, tensors, _ in clips(golden):
        values = quantizer.digits_to_values(tensors["codes"])
        assert error(values, tensors["disc"]) < 1e-6
        assert error(quantizer.values_to_features(values), tensors["tokens_codes_only"]) < 5e-6
        assert error(quantizer.latents_to_features(tensors["latents"]), tensors["tokens_hybrid"]) < 5e-6


@torch.no_grad()
def test_golden_audio_and_what_the_decoders_network_says(golden):
    model = golden.model
    heard = {}
    model.decoder.conditioner.register_forward_hook(lambda *call: heard.update(cond=call[-1]))
    model.decoder.network.patch_embedding.register_forward_hook(
        lambda *call: heard.update(patch_embed=call[-1].flatten(2).transpose(1, 2))
    )
    model.decoder.network.norm.register_forward_hook(lambda *call: heard.update(transformer=call[-1]))
    model.decoder.network.register_forward_hook(lambda *call: heard.update(network=call[-1]))
    model.decoder.band_head.register_forward_hook(lambda *call: heard.update(pre_bands=call[1][0], post_bands=call[-1]))
    compared = set()
    for _, tensors, facts in clips(golden):
        for decode in facts["decodes"]:
            of_codes = decode["tokens"] == "codes_only"
            given = {
                "audio_codes" if of_codes else "latents": tensors["codes" if of_codes else "latents"].transpose(1, 2)
            }
            audio = model.decode(**given, noise=tensors["noise"], noise_level=decode["sigma"]).audio_values
            is_high = decode["sigma"] == HIGHEST_LEVEL
            prefix = f"dec.{decode['index']}."
            assert error(audio, tensors[f"{prefix}recon"]) < (1e-5 if is_high else 2e-6)
            for name, ours in heard.items():
                if f"{prefix}{name}" in tensors:
                    theirs = tensors[f"{prefix}{name}"]
                    scale = 1 if name == "network" else max(1, theirs.abs().max().item())
                    assert error(ours, theirs) < (1e-4 if is_high else 1e-5) * scale, (name, decode)
                    compared.add(name)
    assert {"cond", "network", "post_bands"} <= compared


@torch.no_grad()
@pytest.mark.parametrize("broken", ["mask", "rotary embedding", "interpolation"])
def test_golden_vectors_tell_a_broken_part(golden, broken, monkeypatch):
    if broken == "mask":
        monkeypatch.setattr(golden.model.encoder, "chunk_size", golden.model.config.frames_per_crop)
    elif broken == "rotary embedding":
        monkeypatch.setattr(encoder_lycodec, "rotate", lambda x: x)
    else:
        half_pixel = lambda x, num_steps: torch.nn.functional.interpolate(x, num_steps, mode="linear")  # noqa: E731
        assert encoder_lycodec.interpolate_steps is layers_lycodec.interpolate_steps is interpolate_steps
        monkeypatch.setattr(encoder_lycodec, "interpolate_steps", half_pixel)
    assert not encoding_holds(golden)


def test_golden_weights_are_all_used(golden):
    ours = sum(parameter.numel() for parameter in golden.model.parameters())
    stereo = sum(tensor.numel() for key, tensor in golden.weights.items() if key.startswith("stereo."))
    assert ours + stereo == golden.facts["parameters"]
