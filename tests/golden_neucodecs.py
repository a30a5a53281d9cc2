"""The vectors of the original NeuCodec package: their folder, their configurations, and checkpoints made of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fsqcodec import DistillNeuCodecConfig, FsqNeuCodecConfig

GOLDEN_DIR = Path(os.environ.get("FSQCODEC_GOLDEN", Path(__file__).parent.parent.parent / "shared" / "golden"))
GOLDEN_NAMES = sorted(
    path.stem
    for kind in ("neucodec_small_*.json", "distill_neucodec_small_*.json")
    for path in GOLDEN_DIR.glob(kind)
    if path.with_suffix(".safetensors").is_file()
)
GOLDEN_PARAMETERS = GOLDEN_NAMES or [
    pytest.param("none", marks=pytest.mark.skip(reason=f"no golden vectors in {GOLDEN_DIR}: set FSQCODEC_GOLDEN"))
]


class GoldenNeuCodec:
    """One pair of files: `origin`, `config`, `state_dict` by the original's keys, and `clips`, a dictionary each."""

    def __init__(self, name: str):
        facts = json.loads((GOLDEN_DIR / f"{name}.json").read_text())
        tensors = load_file(GOLDEN_DIR / f"{name}.safetensors")
        self.origin = {"NeuCodec": "neucodec", "DistillNeuCodec": "distill-neucodec"}[facts["model"]]
        self.config = (_config if self.origin == "neucodec" else _distill_config)(facts)
        self.state_dict = _below(tensors, "state_dict.")
        self.clips = [_below(tensors, f"io.{number}.") for number in range(len(facts["clips"]))]

    def save(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> Path:
        """The checkpoint as the original publishes it, or another state dict in its place."""
        folder.mkdir(exist_ok=True)
        torch.save(self.state_dict if state_dict is None else state_dict, folder / "pytorch_model.bin")
        return folder


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _decoder_fields(facts: dict) -> dict:
    sizes = facts["sizes"]
    return {
        "hidden_size": sizes["hidden"],
        "intermediate_size": 4 * sizes["hidden"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"],
        "head_dim": sizes["hidden"] // sizes["heads"],
        "quantization_levels": facts["codec"]["levels"],
    }


def _config(facts: dict) -> FsqNeuCodecConfig:
    sizes = facts["sizes"]
    return FsqNeuCodecConfig(
        **_decoder_fields(facts),
        encoder_hidden_size=sizes["ngf"],
        quantization_dim=sizes["hidden"] + sizes["sem_hidden"],
        semantic_model_config={"model_type": "wav2vec2-bert", **facts["semantic_config"], "num_hidden_layers": 16},
    )


def _distill_config(facts: dict) -> DistillNeuCodecConfig:
    sizes = facts["sizes"]
    return DistillNeuCodecConfig(
        **_decoder_fields(facts),
        quantization_dim=sizes["vq_dim"],
        semantic_adapter_size=sizes["sem_adapter"],
        encoder_hidden_sizes=sizes["dims"],
        encoder_latent_dim=sizes["feat"],
        encoder_head_dim=sizes["feat"] // 4,
        attention_window_size=sizes["window"],
        acoustic_hidden_size=sizes["acoustic"],
        semantic_model_config={"model_type": "hubert", **facts["semantic_config"]},
    )
