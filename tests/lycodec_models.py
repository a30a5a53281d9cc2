"""Lycodec models small enough for a test, and the golden vectors that the original's code made."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsqcodec import LycodecConfig, LycodecModel
from fsqcodec.conversion.lycodec_table import convert_lycodec

GOLDEN_DIR = Path(os.environ.get("FSQCODEC_GOLDEN", Path(__file__).parent.parent.parent / "shared" / "golden"))
SMALL = {  # crops of 1080 samples, 18 frames of 8 numbers
    "crop_length": 1080,
    "stft_size": 64,
    "stft_hop_length": 20,
    "stft_window_length": 64,
    "encoder_channels": (8, 8, 16, 16),
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "latent_dim": 8,
    "conditioner_channels": 3,
    "decoder_hidden_size": 64,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
    "decoder_patch_size": 8,
}


def small_lycodec(seed: int = 0, **overrides) -> LycodecModel:
    """A model in eval mode whose weights are all random, biases and norms included."""
    torch.manual_seed(seed)
    model = LycodecModel(LycodecConfig(**{**SMALL, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        model.encoder.output_proj.weight.mul_(4)  # codes that vary
    return model


def stereo_clip(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness beats, different in each channel, `(2, num_samples)`."""
    generator = torch.Generator().manual_seed(seed)
    beat = torch.sin(torch.arange(num_samples) * torch.tensor([[0.011], [0.007]])).clamp(min=0) + 0.1
    return 0.3 * beat * torch.randn(2, num_samples, generator=generator)


@dataclass
class Golden:
    """A model with the original's weights, and what the original computed."""

    facts: dict
    tensors: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    model: LycodecModel


def load_golden(path: Path) -> Golden:
    facts = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    weights = {key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")}
    given = facts["constructor"]
    fixed = {
        name: size["here"] if isinstance(size, dict) else size
        for name, size in facts["sizes_fixed_in_the_original"].items()
    }
    assert given["use_group_fsq"]  # of no effect on what is computed
    config = LycodecConfig(
        sampling_rate=given["sr"],
        crop_length=facts["crop_samples"],
        frames_per_crop=fixed["num_tokens"],
        stft_size=given["n_fft"],
        stft_hop_length=given["hop"],
        stft_window_length=given["win"],
        encoder_channels=fixed["encoder_widths"],
        hidden_size=given["hidden"],
        num_layers=given["layers"],
        num_heads=given["heads"],
        attention_chunk_size=fixed["attention_chunk"],
        use_rotary_embedding=given["use_rope"],
        latent_dim=given["token_dim"],
        quantization_levels=[fixed["fsq_levels"][0]],
        conditioner_channels=fixed["cond_channels"],
        decoder_hidden_size=fixed["decoder_embed_dim"],
        decoder_num_layers=given["decoder_depth"],
        decoder_num_heads=fixed["decoder_heads"],
        decoder_patch_size=given["decoder_patch_size"],
        band_split_hz=float(fixed["split_hz"]),
        sigma_data=fixed["sigma_data"],
    )
    model = LycodecModel(config).eval()
    model.load_state_dict(convert_lycodec(weights, config))
    return Golden(facts, tensors, weights, model)


def golden_paths() -> list:
    """The json files of the golden vectors; one that skips where there are none."""
    paths = sorted(GOLDEN_DIR.glob("lycodec_small_*.json"))
    reason = f"no lycodec_small_*.json in {GOLDEN_DIR}: set FSQCODEC_GOLDEN to the folder with golden vectors"
    return [pytest.param(path, id=path.stem) for path in paths] or [
        pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")
    ]
