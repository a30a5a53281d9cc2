"""Lycodec weights (commit 8040de3) -> LycodecModel weights: which tensor is which, and which sizes they tell."""

import re
from pathlib import Path

import torch

from ..models.configuration_lycodec import LycodecConfig
from ..models.encoder_lycodec import ROTARY_BASE, first_chunk_mask
from ..models.modeling_lycodec import LycodecModel
from .original_weights import HINT, CheckpointError, load_torch_file, summarize

PROCESSES_PREFIX = "module."  # of every key, where several processes trained
UNUSED = r"stereo\.|(.+\.)?rope\.|encoder\.chunked_mask$"  # not needed for audio, or follows from the configuration
OTHER_VERSIONS = ("quantizer.", "shared_proj.", "corrector.")
RENAMES = {
    r"patch\.l(\d+)\.net\.0\.": lambda match: f"encoder.conv_blocks.{int(match[1]) - 1}.conv1.",
    r"patch\.l(\d+)\.net\.1\.": lambda match: f"encoder.conv_blocks.{int(match[1]) - 1}.norm1.",
    r"patch\.l(\d+)\.net\.3\.": lambda match: f"encoder.conv_blocks.{int(match[1]) - 1}.conv2.",
    r"patch\.l(\d+)\.net\.4\.": lambda match: f"encoder.conv_blocks.{int(match[1]) - 1}.norm2.",
    r"enc_proj\.": "encoder.input_proj.",
    r"resampler\.": "encoder.resampler.",
    r"to_token\.": "encoder.output_proj.",
    r"encoder\.blocks\.(\d+)\.attn\.": r"encoder.layers.\1.self_attn.",
    r"encoder\.blocks\.(\d+)\.ln1\.": r"encoder.layers.\1.input_layernorm.",
    r"encoder\.blocks\.(\d+)\.ln2\.": r"encoder.layers.\1.post_attention_layernorm.",
    r"encoder\.blocks\.(\d+)\.ff\.0\.": r"encoder.layers.\1.mlp.fc1.",
    r"encoder\.blocks\.(\d+)\.ff\.3\.": r"encoder.layers.\1.mlp.fc2.",
    r"hybrid\.alpha$": "quantizer.residual_scale",
    r"hybrid\.residual_net\.0\.": "quantizer.residual_mlp.fc1.",
    r"hybrid\.residual_net\.3\.": "quantizer.residual_mlp.fc2.",
    r"cond\.proj\.": "decoder.conditioner.token_proj.",
    r"cond\.conv\.": "decoder.conditioner.output_proj.",
    r"cond\.noise_embed\.0\.": "decoder.conditioner.noise_mlp.fc1.",
    r"cond\.noise_embed\.2\.": "decoder.conditioner.noise_mlp.fc2.",
    r"decoder\.noise_embed\.0\.": "decoder.network.noise_mlp.fc1.",
    r"decoder\.noise_embed\.2\.": "decoder.network.noise_mlp.fc2.",
    r"decoder\.token_proj\.": "decoder.network.token_proj.",
    r"decoder\.patch_embed\.proj\.": "decoder.network.patch_embedding.",
    r"decoder\.pos_embed$": "decoder.network.patch_position_embedding",
    r"decoder\.token_pos_embed$": "decoder.network.token_position_embedding",
    r"decoder\.blocks\.(\d+)\.adaln_self\.scale_shift\.1\.": r"decoder.network.layers.\1.self_attn_norm.modulation.",
    r"decoder\.blocks\.(\d+)\.adaln_cross\.scale_shift\.1\.": r"decoder.network.layers.\1.cross_attn_norm.modulation.",
    r"decoder\.blocks\.(\d+)\.adaln_mlp\.scale_shift\.1\.": r"decoder.network.layers.\1.mlp_norm.modulation.",
    r"decoder\.blocks\.(\d+)\.(self|cross)_attn\.": r"decoder.network.layers.\1.\2_attn.",
    r"decoder\.blocks\.(\d+)\.mlp\.0\.": r"decoder.network.layers.\1.mlp.fc1.",
    r"decoder\.blocks\.(\d+)\.mlp\.3\.": r"decoder.network.layers.\1.mlp.fc2.",
    r"decoder\.final_ln\.": "decoder.network.norm.",
    r"decoder\.unpatchify\.upsample\.(\d+)\.": lambda match: (
        f"decoder.network.upsampler.{int(match[1]) // 3}.{('conv', 'norm', 'unknown')[int(match[1]) % 3]}."
    ),
    r"decoder\.unpatchify\.final_proj\.": "decoder.network.output_conv.",
    r"bands\.(low|high)_head\.0\.": r"decoder.band_head.\1.conv1.",
    r"bands\.(low|high)_head\.1\.": r"decoder.band_head.\1.norm.",
    r"bands\.(low|high)_head\.3\.": r"decoder.band_head.\1.conv2.",
    r"bands\.high_cond\.0\.": "decoder.band_head.condition.conv1.",
    r"bands\.high_cond\.2\.": "decoder.band_head.condition.conv2.",
    r"bands\.blend_weight$": "decoder.band_head.band_logits",
}
PACKED = r"(.*_attn\.)in_proj_(weight|bias)"  # queries, keys and values, one below the other


def read_lycodec(path: Path, ema: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a file that the original's trainer wrote, `step_<n>.pt` or `latest.pt`, by the original's names.

    `ema` takes the averaged parameters under "ema" instead of those under "model". Raises [`CheckpointError`] for a
    damaged file, one that holds something else, and one of another version of Lycodec.
    """
    contents = load_torch_file(path)
    part = "ema" if ema else "model"
    if isinstance(contents, dict) and part in contents:
        contents = contents[part]
        contents = contents["shadow"] if isinstance(contents, dict) and "shadow" in contents else contents
    elif ema:
        raise CheckpointError(
            f"{path} has no averaged parameters, an entry 'ema': the original's latest.pt holds them as its model"
        )
    if not isinstance(contents, dict) or not all(isinstance(value, torch.Tensor) for value in contents.values()):
        raise CheckpointError(f"{path} is no checkpoint of Lycodec: a dictionary of tensors is wanted, under 'model'")
    weights = {key.removeprefix(PROCESSES_PREFIX): tensor for key, tensor in contents.items()}
    foreign = [key for key in weights if key.startswith(OTHER_VERSIONS)]
    if foreign:
        raise CheckpointError(
            f"{path} is of a later version of Lycodec, a different model with other quantizers "
            f"({summarize(foreign)}): only the version with Group FSQ, commit 8040de3, can be converted"
        )
    return weights


def lycodec_sizes(weights: dict[str, torch.Tensor]) -> LycodecConfig:
    """The configuration that the tensors' shapes tell. What they don't tell is as in the original: the number of heads,
    lengths of crop and transform. Raises [`CheckpointError`] where a tensor that tells a size is missing."""

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise CheckpointError(f"the checkpoint has no {key!r}: it is no Lycodec")
        return weights[key].shape

    def count(prefix: str) -> int:
        return len({match[1] for match in (re.match(rf"{prefix}\.(\d+)\.", key) for key in weights) if match})

    return LycodecConfig(
        frames_per_crop=shape("decoder.token_pos_embed")[1],
        encoder_channels=[shape(f"patch.l{i}.net.0.weight")[0] for i in range(1, 5)],
        hidden_size=shape("enc_proj.weight")[0],
        num_layers=count(r"encoder\.blocks"),
        use_rotary_embedding=not _lacks_rotary_embedding(weights),
        latent_dim=shape("to_token.weight")[0],
        conditioner_channels=shape("cond.proj.weight")[0],
        decoder_hidden_size=shape("decoder.patch_embed.proj.weight")[0],
        decoder_num_layers=count(r"decoder\.blocks"),
        decoder_patch_size=shape("decoder.patch_embed.proj.weight")[-1],
    )


def convert_lycodec(weights: dict[str, torch.Tensor], config: LycodecConfig) -> dict[str, torch.Tensor]:
    """All of the model's tensors by our names, float32. Raises [`CheckpointError`] unless all have their match, and for
    buffers that contradict `config`."""
    _check_buffers(weights, config)
    converted = {}
    for key, tensor in weights.items():
        if not re.match(UNUSED, key):
            converted |= _converted(key, tensor)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LycodecModel(config).state_dict().items()}
    for fault, names in (
        ("lacks tensors of this model", shapes.keys() - converted.keys()),
        ("has tensors this model does not have", converted.keys() - shapes.keys()),
    ):
        if names:
            raise CheckpointError(f"the checkpoint {fault}: {summarize(names)}; {HINT}")
    for name, tensor in converted.items():
        if tensor.numel() != shapes[name].numel() or tensor.shape != (*shapes[name], 1)[: tensor.ndim]:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)} in the checkpoint, {tuple(shapes[name])} is wanted: is the "
                "preset or config the right one?"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds NaN or infinite numbers: the checkpoint is damaged")
    return {name: tensor.reshape(shapes[name]).to(torch.float32).clone() for name, tensor in converted.items()}


def _converted(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The original's tensor by our name, or its three parts; a key without a match stays as it is."""
    for pattern, replacement in RENAMES.items():
        name, num_replaced = re.subn(f"^{pattern}", replacement, key)
        if num_replaced:
            break
    else:
        return {key: tensor}
    packed = re.fullmatch(PACKED, name)
    if packed:
        return {f"{packed[1]}{letter}_proj.{packed[2]}": part for letter, part in zip("qkv", tensor.chunk(3))}
    return {name.replace("_attn.out_proj.", "_attn.o_proj."): tensor}


def _lacks_rotary_embedding(weights: dict[str, torch.Tensor]) -> bool:
    """Whether the file has the encoder's buffers, and no rotary ones among them."""
    return "encoder.chunked_mask" in weights and not any(".rope." in key for key in weights)


def _check_buffers(weights: dict[str, torch.Tensor], config: LycodecConfig):
    """What follows from the configuration must not say something else in the file."""
    if config.use_rotary_embedding and _lacks_rotary_embedding(weights):
        raise CheckpointError(
            "the checkpoint has no rotary embedding: use_rotary_embedding must be false in the config"
        )
    frequencies = weights.get("encoder.rope.inv_freq")
    if frequencies is not None:
        expected = ROTARY_BASE ** (-torch.arange(0, config.hidden_size, 2) / config.hidden_size)
        if frequencies.shape == expected.shape and not torch.allclose(frequencies.float(), expected, rtol=1e-4):
            raise CheckpointError(f"encoder.rope.inv_freq has another base than {ROTARY_BASE:g}: it is no Lycodec")
    cosines = weights.get("encoder.rope.cos_cached")
    if cosines is not None and cosines.numel() > 1 and not cosines.any():
        raise CheckpointError(
            "encoder.rope.cos_cached is all zero: the run ended by copying back what its averaging began with, so "
            "these are weights before training. Convert one of its step_<n>.pt"
        )
    mask = weights.get("encoder.chunked_mask")
    if mask is not None:
        seen = first_chunk_mask(config.frames_per_crop, config.attention_chunk_size, mask.device)
        if mask.shape != seen.shape or not torch.equal(mask == 0, seen):
            raise CheckpointError(
                f"encoder.chunked_mask is not that of the first {config.attention_chunk_size} of "
                f"{config.frames_per_crop} frames: is the preset or config the right one?"
            )
