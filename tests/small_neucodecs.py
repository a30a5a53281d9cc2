"""NeuCodecs small enough for a test in milliseconds, with random weights, none of them trivial."""

import torch

from fsqcodec import (
    DistillNeuCodecConfig,
    DistillNeuCodecFeatureExtractor,
    DistillNeuCodecModel,
    FsqNeuCodecConfig,
    FsqNeuCodecFeatureExtractor,
    FsqNeuCodecModel,
)
from fsqcodec.conversion.neucodec_table import convert_neucodec
from fsqcodec.conversion.original_weights import OriginalWeights
from small_configs import speech_like_clip

_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
CONFIGS = {
    "neucodec": FsqNeuCodecConfig(
        **_DECODER,
        encoder_hidden_size=2,
        quantization_dim=48,
        semantic_model_config={
            "model_type": "wav2vec2-bert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "feature_projection_input_dim": 160,
            "output_hidden_size": 16,
        },
    ),
    "distill-neucodec": DistillNeuCodecConfig(
        **_DECODER,
        quantization_dim=40,
        semantic_adapter_size=20,
        encoder_hidden_sizes=(4, 6, 8, 10),
        encoder_latent_dim=12,
        encoder_head_dim=3,
        attention_window_size=7,
        acoustic_hidden_size=18,
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    ),
}
MODELS = {"neucodec": FsqNeuCodecModel, "distill-neucodec": DistillNeuCodecModel}
FEATURE_EXTRACTORS = {"neucodec": FsqNeuCodecFeatureExtractor(), "distill-neucodec": DistillNeuCodecFeatureExtractor()}


@torch.no_grad()
def small_neucodec(origin: str, seed: int = 0):
    """A model in eval mode whose tokens vary over speech: its quantizer is aimed at the principal axes of a clip's
    features, each scaled to unit variance."""
    torch.manual_seed(seed)
    model = MODELS[origin](CONFIGS[origin]).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("alpha") or "log" in name:
            parameter.uniform_(-0.3, 0.3)
        elif parameter.ndim == 1:
            parameter.add_(0.2 * torch.rand_like(parameter) - 0.1)
        elif "original0" not in name:
            limit = 1.5 * parameter[0].numel() ** -0.5
            parameter.uniform_(-limit, limit)
    seen = []
    hook = model.quantizer.project_in.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    features = FEATURE_EXTRACTORS[origin](speech_like_clip(48000), sampling_rate=16000, return_tensors="pt")
    model.encode(**features)
    hook.remove()
    (found,) = seen
    _, spread, axes = torch.linalg.svd(found - found.mean(dim=0), full_matrices=False)
    project_in = model.quantizer.project_in
    num_axes = project_in.out_features
    project_in.weight.copy_(axes[:num_axes] * len(found) ** 0.5 / spread[:num_axes, None])
    project_in.bias.copy_(-project_in.weight @ found.mean(dim=0))
    return model


class _InventedWeights(OriginalWeights):
    """A checkpoint that has whatever the conversion asks for, with random values; `invented` keeps it."""

    def __init__(self):
        super().__init__({})
        self.invented = {}

    def take(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        if key not in self.tensors:
            limit = max(1, torch.Size(shape[1:]).numel()) ** -0.5
            self.tensors[key] = self.invented[key] = limit * (2 * torch.rand(shape) - 1)
        return super().take(key, shape)


def original_checkpoint(origin: str, config) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A random checkpoint by the original's keys, and what it is converted to."""
    torch.manual_seed(0)
    weights = _InventedWeights()
    tensors, _ = convert_neucodec(origin, weights, config)
    return weights.invented, tensors
