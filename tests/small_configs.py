"""Codecs small enough for a test in milliseconds: one of each kind that the presets come in, and two more."""

import torch
from torch import nn

from fsqcodec import CodecConfig, CodecModel
from fsqcodec.models.convolution import ClipNorm, RunningNorm

# The original packages have six heads of a quarter of the latents' channels each.
_SHARED = {"num_attention_heads": 6, "sampling_rate": 16000}
_L3AC = {**_SHARED, "padding_frames": 1, "quantizer_bound": "tanh", "norm_eps": 1e-8}
_SQCODEC = {**_SHARED, "quantizer_bound": "fsq", "norm_eps": 2.0**-23}
_FRAMES = {
    **_SHARED,
    "encoder_stem": "frames",
    "decoder_head": "frames",
    "padding_frames": 1,
    "quantizer_bound": "tanh",
    "norm_eps": 1e-5,
    "latent_dim": 12,
    "head_dim": 3,
    "encoder_hidden_sizes": (16,),
    "encoder_depths": (2,),
    "decoder_hidden_sizes": (16,),
    "decoder_depths": (4,),
    "attention_window_size": 10,
    "quantization_levels": (7, 7, 5),
}

SMALL_CONFIGS = {
    "l3ac-coarse": {  # 18 samples a frame
        **_L3AC,
        "latent_dim": 16,
        "head_dim": 4,
        "downsampling_ratios": (3, 2),
        "encoder_hidden_sizes": (4, 6, 8),
        "encoder_depths": (1, 1, 2),
        "upsampling_ratios": (2, 3),
        "decoder_hidden_sizes": (12, 8, 4),
        "decoder_depths": (2, 1),
        "transformer_downsampling_ratio": 3,
        "encoder_transformer_depths": (1, 2),
        "decoder_transformer_depths": (3, 2),
        "attention_window_size": 10,
        "quantization_levels": (7, 7, 5),
    },
    "l3ac-fine": {  # 12 samples a frame, decoded in more stages than encoded
        **_L3AC,
        "latent_dim": 12,
        "head_dim": 3,
        "downsampling_ratios": (4, 3),
        "encoder_hidden_sizes": (4, 6, 8),
        "encoder_depths": (1, 2, 1),
        "upsampling_ratios": (3, 2, 2),
        "decoder_hidden_sizes": (12, 8, 6, 4),
        "decoder_depths": (1, 2, 1),
        "transformer_downsampling_ratio": 1,
        "encoder_transformer_depths": (0, 1),
        "decoder_transformer_depths": (3, 0),
        "attention_window_size": 20,
        "quantization_levels": (9, 7, 7),
    },
    "sqcodec-coarse": {  # 12 samples a frame
        **_SQCODEC,
        "latent_dim": 16,
        "head_dim": 4,
        "downsampling_ratios": (2, 3),
        "encoder_hidden_sizes": (4, 8, 12),
        "encoder_depths": (1, 1, 2),
        "upsampling_ratios": (3, 2),
        "decoder_hidden_sizes": (12, 8, 4),
        "decoder_depths": (2, 1),
        "transformer_downsampling_ratio": 2,
        "encoder_transformer_depths": (2, 3),
        "decoder_transformer_depths": (3, 2),
        "attention_window_size": 12,
        "quantization_levels": (7, 5, 5, 3),
        "padding_frames": 12,
    },
    "sqcodec-fine": {  # 10 samples a frame
        **_SQCODEC,
        "latent_dim": 20,
        "head_dim": 5,
        "downsampling_ratios": (5, 2),
        "encoder_hidden_sizes": (4, 6, 10),
        "encoder_depths": (1, 1, 1),
        "upsampling_ratios": (2, 5),
        "decoder_hidden_sizes": (10, 6, 4),
        "decoder_depths": (2, 1),
        "transformer_downsampling_ratio": 1,
        "encoder_transformer_depths": (0, 3),
        "decoder_transformer_depths": (3, 0),
        "attention_window_size": 15,
        "quantization_levels": (9, 7, 5),
        "padding_frames": 15,
    },
    "frames-plain": {  # as the presets of the family "speech", 8 samples a frame, without attention
        **_FRAMES,
        "downsampling_ratios": (8,),
        "upsampling_ratios": (8,),
        "transformer_downsampling_ratio": 1,
        "encoder_transformer_depths": (0, 0),
        "decoder_transformer_depths": (0, 0),
    },
    "frames-attention": {  # 12 samples a frame
        **_FRAMES,
        "downsampling_ratios": (6,),
        "upsampling_ratios": (6,),
        "transformer_downsampling_ratio": 2,
        "encoder_transformer_depths": (1, 1),
        "decoder_transformer_depths": (2, 1),
    },
}
# the originals' decoder without statistics of the clip
SMALL_CONFIGS["running"] = {**SMALL_CONFIGS["l3ac-coarse"], "enhance_normalization": "running"}


def small_config(name: str, **overrides) -> CodecConfig:
    return CodecConfig(**{**SMALL_CONFIGS[name], **overrides})


def small_model(name: str, seed: int = 0, **overrides) -> CodecModel:
    """A model in eval mode with random weights, none of them trivial, whose tokens vary over `speech_like_clip`."""
    model = CodecModel(small_config(name, **overrides)).eval()
    randomize(model, seed)
    return model


def speech_like_clip(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Gliding, pulsating harmonics in noise: float32 `(num_samples,)`, peak 0.5."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(num_samples, dtype=torch.float64) + 1000 * seed
    phase = 0.05 * steps + 3 * torch.sin(0.003 * steps)
    harmonics = sum(torch.sin(k * phase) / k for k in range(1, 6))
    noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
    clip = (0.02 + torch.sin(0.011 * steps).clamp(min=0)) * (harmonics + 0.5 * noise)
    return (0.5 * clip / clip.abs().max()).float()


@torch.no_grad()
def randomize(model: CodecModel, seed: int):
    """Replace every weight and buffer, so that none is zero or one, and aim the quantizer at the latents of a clip.

    Random encoders map all audio to a handful of tokens; the projection before the quantizer is therefore turned to the
    principal axes of the clip's latents, each scaled to unit variance. Audio comes out as loud as speech.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(parameter, low, high):
        parameter.copy_(low + (high - low) * torch.rand(parameter.shape, generator=generator))

    for module in model.modules():
        is_norm = isinstance(module, (nn.LayerNorm, ClipNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if name == "alpha":
                uniform(parameter, 0.5, 2.0)
            elif name == "bias":
                uniform(parameter, -0.2, 0.2)
            elif is_norm:
                uniform(parameter, 0.7, 1.3)
            else:
                limit = parameter[0].numel() ** -0.5
                uniform(parameter, -limit, limit)
        if isinstance(module, RunningNorm):
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_variance, 0.5, 2.0)
    clip = speech_like_clip(200 * model.config.hop_length)
    latents = model.encode(clip[None, None], output_latents=True).latents[0].T
    _, spread, axes = torch.linalg.svd(latents - latents.mean(dim=0), full_matrices=False)
    project_in = model.quantizer.project_in
    num_axes = project_in.out_features
    project_in.weight.copy_(axes[:num_axes] * len(latents) ** 0.5 / spread[:num_axes, None])
    project_in.bias.copy_(-project_in.weight @ latents.mean(dim=0))
    codes = torch.randint(model.config.codebook_size, (1, 1, 50), generator=generator)
    gain = 0.1 / torch.atanh(model.decode(codes).audio_values.clamp(-0.999, 0.999)).std()
    for parameter in model.decoder.to_waveform.parameters():
        parameter.mul_(gain)
