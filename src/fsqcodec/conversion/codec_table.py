"""L3AC and SQCodec weights -> CodecModel weights: which module is which, and what is folded.

Folded are weight norm, GRN and the Snake constants inside units; `ConvUnit` says why that changes nothing. Folding runs
in float64 and rounds once, to float32.
"""

from collections.abc import Iterator

import torch

from ..models.configuration_codec import TAIL_DILATIONS, TREND_CHANNELS, TREND_KERNEL_SIZES, CodecConfig
from ..models.modeling_codec import CodecModel
from .original_weights import OriginalWeights

FILE_STEMS = ["encoder", "decoder", "quantizer", "en_encoder", "en_decoder"]
SMALLEST_ALPHA = 1e-6  # Snake is the identity at 0, and u + sin(u)^2 with u = 1e-6 h is it to 1e-6


def convert_codec(weights: OriginalWeights, config: CodecConfig) -> dict[str, torch.Tensor]:
    """All of the model's tensors by our names, float32. Raises [`CheckpointError`] unless all have their match."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in CodecModel(config).state_dict().items()}
    converted = {}
    for convert, ours, theirs in module_table(config):
        converted |= convert(weights, shapes, ours, theirs)
    if "en_encoder.cache_token" in weights.tensors:
        weights.take("en_encoder.cache_token", (1, 0, config.latent_dim))  # SQCodec saves this one, of length zero
    weights.check_empty()
    return {name: tensor.reshape(shapes[name]).to(torch.float32).contiguous() for name, tensor in converted.items()}


def module_table(config: CodecConfig) -> Iterator[tuple]:
    """(converter, our module, original module) for each module with weights; original paths start with the file."""
    yield from encoder_table(config, "encoder", "")

    for num_layers, ours, theirs in (
        (config.decoder_transformer_depths[0], "decoder.transformer.frame_layers", "en_decoder.local_trans"),
        (config.decoder_transformer_depths[1], "decoder.transformer.fine_layers", "en_decoder.up_trans.trans"),
    ):
        yield from _transformer_table(num_layers, ours, theirs)

    yield _linear, "quantizer.project_in", "quantizer.project_in"
    yield _linear, "quantizer.project_out", "quantizer.project_out"

    yield _linear, "decoder.from_latents", "decoder.blocks.0"
    for stage, depth in enumerate(config.decoder_depths):
        for unit in range(depth):
            yield _unit, f"decoder.stages.{stage}.units.{unit}", f"decoder.blocks.{3 * stage + 1}.{unit}.module"
        yield _enhance, f"decoder.stages.{stage}.enhance", f"decoder.blocks.{3 * stage + 2}"
        yield _pointwise, f"decoder.stages.{stage}.project", f"decoder.blocks.{3 * stage + 3}.0"
        yield _linear, f"decoder.stages.{stage}.norm", f"decoder.blocks.{3 * stage + 3}.2"
    tail = f"decoder.blocks.{3 * len(config.upsampling_ratios) + 1}.block"
    for unit in range(len(TAIL_DILATIONS)):
        yield _snake_unit, f"decoder.tail_units.{unit}", f"{tail}.0.{unit}.module.block"
    yield _snake, "decoder.tail_snake", f"{tail}.1"
    yield _linear, "decoder.to_waveform", f"{tail}.2"


def encoder_table(config, ours: str, theirs: str) -> Iterator[tuple]:
    """The rows of a [`CodecEncoder`] named `ours`. `config` has the fields that the encoder reads; `theirs` is what the
    original's "encoder." and "en_encoder." come after."""
    blocks = f"{theirs}encoder.blocks"
    for stage, depth in enumerate(config.encoder_depths[:-1]):
        for unit in range(depth):
            yield _unit, f"{ours}.stages.{stage}.units.{unit}", f"{blocks}.{2 * stage + 1}.{unit}.module"
        yield _linear, f"{ours}.stages.{stage}.downsample", f"{blocks}.{2 * stage + 2}.0"
        if config.norm_eps is not None:
            yield _linear, f"{ours}.stages.{stage}.norm", f"{blocks}.{2 * stage + 2}.1"
    last = 2 * len(config.downsampling_ratios) + 1
    yield _stem, f"{ours}.stem", f"{blocks}.0"
    for unit in range(config.encoder_depths[-1]):
        yield _unit, f"{ours}.units.{unit}", f"{blocks}.{last}.{unit}.module"
    yield _linear, f"{ours}.to_latents", f"{blocks}.{last + 1}"

    transformer = f"{ours}.transformer"
    if config.transformer_downsampling_ratio > 1:
        yield _linear, f"{transformer}.downsample", f"{theirs}en_encoder.down_trans.down_layer"
    num_fine_layers, num_frame_layers = config.encoder_transformer_depths
    yield from _transformer_table(num_fine_layers, f"{transformer}.fine_layers", f"{theirs}en_encoder.down_trans.trans")
    yield from _transformer_table(num_frame_layers, f"{transformer}.frame_layers", f"{theirs}en_encoder.local_trans")


def _transformer_table(num_layers: int, ours: str, theirs: str) -> Iterator[tuple]:
    for layer in range(num_layers):
        yield _transformer_layer, f"{ours}.layers.{layer}", f"{theirs}.layers.{layer}"
    if num_layers:
        yield _position_bias, f"{ours}.position_bias", f"{theirs}.dynamic_pos_bias.mlp"


def _linear(weights, shapes, ours, theirs) -> dict:
    """A layer with the same shapes on both sides: linear, convolution, norm."""
    converted = {f"{ours}.weight": weights.take_weight(theirs, shapes[f"{ours}.weight"])}
    if f"{ours}.bias" in shapes:
        converted[f"{ours}.bias"] = weights.take(f"{theirs}.bias", shapes[f"{ours}.bias"])
    return converted


def _pointwise(weights, shapes, ours, theirs) -> dict:
    """A linear layer that is a convolution with kernel 1 in the original."""
    return _linear(weights, {**shapes, f"{ours}.weight": (*shapes[f"{ours}.weight"], 1)}, ours, theirs)


def _snake(weights, shapes, ours, theirs) -> dict:
    (channels,) = shapes[f"{ours}.alpha"]
    return {f"{ours}.alpha": weights.take(f"{theirs}.alpha", (1, channels, 1))}


def _unit(weights, shapes, ours, theirs) -> dict:
    expand = _linear(weights, shapes, f"{ours}.expand", f"{theirs}.pw_conv1")
    hidden_size, _ = shapes[f"{ours}.expand.weight"]
    contract_weight = weights.take_weight(f"{theirs}.pw_conv2", shapes[f"{ours}.contract.weight"])
    contract_bias = weights.take(f"{theirs}.pw_conv2.bias", shapes[f"{ours}.contract.bias"])
    alpha = weights.take(f"{theirs}.act.alpha", (1, 1, hidden_size)).flatten()
    alpha = torch.where(alpha.abs() < SMALLEST_ALPHA, SMALLEST_ALPHA, alpha)
    gamma = weights.take(f"{theirs}.grn.gamma", (1, hidden_size)).flatten()
    beta = weights.take(f"{theirs}.grn.beta", (1, hidden_size)).flatten()
    norm = _linear(weights, shapes, f"{ours}.norm", f"{theirs}.norm") if f"{ours}.norm.weight" in shapes else {}
    return {
        **_linear(weights, shapes, f"{ours}.depthwise", f"{theirs}.dw_conv"),
        **norm,
        f"{ours}.expand.weight": expand[f"{ours}.expand.weight"] * alpha[:, None],
        f"{ours}.expand.bias": expand[f"{ours}.expand.bias"] * alpha,
        f"{ours}.contract.weight": contract_weight * ((1 + gamma) / alpha),
        f"{ours}.contract.bias": contract_bias + contract_weight @ beta,
    }


def _snake_unit(weights, shapes, ours, theirs) -> dict:
    return {
        **_snake(weights, shapes, f"{ours}.snake_in", f"{theirs}.0"),
        **_linear(weights, shapes, f"{ours}.dilated", f"{theirs}.1"),
        **_snake(weights, shapes, f"{ours}.snake_out", f"{theirs}.2"),
        **_pointwise(weights, shapes, f"{ours}.pointwise", f"{theirs}.3"),
    }


def _stem(weights, shapes, ours, theirs) -> dict:
    """The original's five one-channel convolutions are one grouped convolution here, and its last layer reads the
    waveform as one more channel, which is `skip` here."""
    channels, hidden_size = shapes[f"{ours}.contract.weight"]
    _, _, kernel_size = shapes[f"{ours}.trends.weight"]
    trends = range(len(TREND_KERNEL_SIZES))
    contract = weights.take_weight(f"{theirs}.conv_2", (channels, hidden_size + 1, 1))
    return {
        f"{ours}.trends.weight": torch.cat(
            [weights.take_weight(f"{theirs}.blocks.{i}.1", (TREND_CHANNELS, 1, kernel_size)) for i in trends]
        ),
        f"{ours}.trends.bias": torch.cat(
            [weights.take(f"{theirs}.blocks.{i}.1.bias", (TREND_CHANNELS,)) for i in trends]
        ),
        **_pointwise(weights, shapes, f"{ours}.expand", f"{theirs}.conv_1"),
        f"{ours}.contract.weight": contract[:, :-1],
        f"{ours}.contract.bias": weights.take(f"{theirs}.conv_2.bias", (channels,)),
        f"{ours}.skip.weight": contract[:, -1:],
    }


def _enhance(weights, shapes, ours, theirs) -> dict:
    num_trends, _ = shapes[f"{ours}.norm.weight"]
    converted = _pointwise(weights, shapes, f"{ours}.to_gain", f"{theirs}.merge_layer.1")
    for i in range(num_trends):
        converted |= _linear(weights, shapes, f"{ours}.trends.{i}", f"{theirs}.blocks.{i}.1")
    for name in ("weight", "bias"):
        converted[f"{ours}.norm.{name}"] = weights.take(f"{theirs}.merge_layer.0.{name}", (num_trends,))
    return converted


def _transformer_layer(weights, shapes, ours, theirs) -> dict:
    return {
        **_linear(weights, shapes, f"{ours}.attention_norm", f"{theirs}.0.norm"),
        **_linear(weights, shapes, f"{ours}.attention.to_qkv", f"{theirs}.0.to_qkv"),
        **_linear(weights, shapes, f"{ours}.attention.to_out", f"{theirs}.0.to_out"),
        **_linear(weights, shapes, f"{ours}.mlp_norm", f"{theirs}.1.0"),
        **_linear(weights, shapes, f"{ours}.up_and_gate", f"{theirs}.1.1"),
        **_linear(weights, shapes, f"{ours}.down", f"{theirs}.1.4"),
    }


def _position_bias(weights, shapes, ours, theirs) -> dict:
    return {
        **_linear(weights, shapes, f"{ours}.input", f"{theirs}.0"),
        **_linear(weights, shapes, f"{ours}.hidden", f"{theirs}.2"),
        **_linear(weights, shapes, f"{ours}.output", f"{theirs}.4"),
    }
