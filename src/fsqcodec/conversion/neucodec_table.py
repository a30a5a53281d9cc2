"""NeuCodec and distill-NeuCodec weights -> our models' weights: which tensor is which, and what is left out.

Our names are those of Transformers' `NeuCodecModel`. Its acoustic encoder is renamed tensor by tensor; that of
distill-NeuCodec is the one of L3AC and SQCodec and is converted with their table.
"""

import re
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..models.modeling_distill_neucodec import DistillNeuCodecModel
from ..models.modeling_neucodec import FsqNeuCodecModel
from .codec_table import encoder_table
from .original_weights import CheckpointError, OriginalWeights

NEUCODEC_MODELS = {"neucodec": FsqNeuCodecModel, "distill-neucodec": DistillNeuCodecModel}
SEMANTIC_SOURCES = {"neucodec": "facebook/w2v-bert-2.0", "distill-neucodec": "ntu-spml/distilhubert"}
TRAINING_KEYS = ("fc_post_s", "SemanticDecoder")  # of modules that neither encode nor decode
RECOMPUTED_KEYS = (".filter", ".window")  # constants that the configuration determines

_UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
_BLOCK = {"snake1": 3, "conv1": 4}
RENAMES: list[tuple[str, str | Callable[[re.Match], str]]] = [  # our name -> theirs, the first that fits
    (r"semantic_encoder\.", "semantic_model."),
    (r"semantic_adapter\.conv1\.", "SemanticEncoder_module.initial_conv."),
    (r"semantic_adapter\.conv2\.", "SemanticEncoder_module.residual_blocks.1."),
    (r"semantic_adapter\.conv3\.", "SemanticEncoder_module.residual_blocks.3."),
    (r"semantic_adapter\.conv4\.", "SemanticEncoder_module.final_conv."),
    (
        r"acoustic_encoder\.block\.(\d+)\.res_unit(\d)\.(\w+)\.",
        lambda m: f"CodecEnc.conv_blocks.{int(m[1]) + 1}.block.{int(m[2]) - 1}.block.{_UNIT[m[3]]}.",
    ),
    (
        r"acoustic_encoder\.block\.(\d+)\.(\w+)\.",
        lambda m: f"CodecEnc.conv_blocks.{int(m[1]) + 1}.block.{_BLOCK[m[2]]}.",
    ),
    (r"acoustic_encoder\.conv1\.", "CodecEnc.conv_blocks.0."),
    (r"acoustic_encoder\.snake1\.", "CodecEnc.conv_final_block.0."),
    (r"acoustic_encoder\.conv2\.", "CodecEnc.conv_final_block.1."),
    (r"fc_acoustic\.", "fc_sq_prior."),
    (r"fc_encoder\.", "fc_prior."),
    (r"quantizer\.", "generator.quantizer."),
    (r"acoustic_decoder\.fc\.", "fc_post_a."),
    (r"acoustic_decoder\.norm\.", "generator.backbone.final_layer_norm."),
    (r"acoustic_decoder\.head\.linear\.", "generator.head.out."),
    (r"acoustic_decoder\.layers\.(\d+)\.self_attn\.o_proj\.", r"generator.backbone.transformers.\1.att.c_proj."),
    (r"acoustic_decoder\.layers\.(\d+)\.input_layernorm\.", r"generator.backbone.transformers.\1.att_norm."),
    (r"acoustic_decoder\.layers\.(\d+)\.post_attention_layernorm\.", r"generator.backbone.transformers.\1.ffn_norm."),
    (r"acoustic_decoder\.layers\.", "generator.backbone.transformers."),
    (r"acoustic_decoder\.", "generator.backbone."),
]


def convert_neucodec(
    origin: str, weights: OriginalWeights, config, semantic_weights: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All of the model's tensors by our names, float32, and the names of the tensors that only training needs.

    Args:
        origin: "neucodec" or "distill-neucodec".
        weights: the original's `pytorch_model.bin`.
        config: [`FsqNeuCodecConfig`] or [`DistillNeuCodecConfig`].
        semantic_weights: the semantic model's own state dict, where the checkpoint has none.

    Raises [`CheckpointError`] unless all have their match.
    """
    with torch.device("meta"):
        model: PreTrainedModel = NEUCODEC_MODELS[origin](config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    converted = {}
    if semantic_weights is not None:
        weights.tensors |= {f"semantic_model.{name}": tensor for name, tensor in semantic_weights.items()}
    _split_attention(weights, config)
    _spell_position_convolution(weights)
    if origin == "distill-neucodec":
        for convert, ours, theirs in encoder_table(
            config.acoustic_encoder_config, "acoustic_encoder", "codec_encoder."
        ):
            converted |= convert(weights, shapes, ours, theirs)
        weights.tensors.pop("codec_encoder.en_encoder.cache_token", None)  # of length zero
    for name, shape in shapes.items():
        if name not in converted:
            converted[name] = _take(weights, original_name(name), shape).to(torch.float32)
    ignored = weights.drop(lambda key: key.startswith(TRAINING_KEYS))
    weights.drop(lambda key: key.endswith(RECOMPUTED_KEYS))
    weights.drop(lambda key: _is_unused_semantic_layer(key, config.semantic_model_config.num_hidden_layers))
    weights.drop(lambda key: key == "semantic_model.masked_spec_embed")  # of training; configurations differ in it
    weights.check_empty()
    tensors = {name: converted[name].reshape(shape).to(torch.float32).contiguous() for name, shape in shapes.items()}
    return tensors, ignored


def original_name(name: str) -> str:
    """The original's name of a tensor of ours."""
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise CheckpointError(f"{name!r} has no name in the original")


def _take(weights: OriginalWeights, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    is_layer = key.endswith(".weight") and len(shape) > 1
    return weights.take_weight(key.removesuffix(".weight"), shape) if is_layer else weights.take(key, shape)


def _split_attention(weights: OriginalWeights, config):
    """Query, key and value are one matrix in the original. Its rotary position has no effect, so heads stay as they
    are (see `decode_features`)."""
    size = config.hidden_size
    for layer in range(config.num_hidden_layers):
        prefix = f"generator.backbone.transformers.{layer}"
        joined = weights.take(f"{prefix}.att.c_attn.weight", (3 * size, size))
        for name, part in zip(("q_proj", "k_proj", "v_proj"), joined.chunk(3)):
            weights.tensors[f"{prefix}.self_attn.{name}.weight"] = part.to(torch.float32)


def _spell_position_convolution(weights: OriginalWeights):
    """HuBERT's position convolution, whose norm is over all axes but the last, keeps its weight norm in Transformers:
    both other spellings become that one."""
    prefix = "semantic_model.encoder.pos_conv_embed.conv"
    tensors = weights.tensors
    norm, direction = f"{prefix}.parametrizations.weight.original0", f"{prefix}.parametrizations.weight.original1"
    if f"{prefix}.weight_g" in tensors and f"{prefix}.weight_v" in tensors:
        tensors[norm], tensors[direction] = tensors.pop(f"{prefix}.weight_g"), tensors.pop(f"{prefix}.weight_v")
    elif f"{prefix}.weight" in tensors and norm not in tensors:
        tensors[direction] = tensors.pop(f"{prefix}.weight")
        tensors[norm] = tensors[direction].norm(dim=(0, 1), keepdim=True)


def _is_unused_semantic_layer(key: str, num_layers: int) -> bool:
    layer = re.match(r"semantic_model\.encoder\.layers\.(\d+)\.", key)
    return layer is not None and int(layer[1]) >= num_layers
