"""NeuCodec checkpoints as they are found: spellings, stale weights, leftovers, missing semantic models."""

import pytest
import torch
from transformers import AutoModel

import fsqcodec
from clips import speech
from fsqcodec.codecs import load_codec
from fsqcodec.conversion.neucodec_table import NEUCODEC_MODELS, convert_neucodec
from fsqcodec.conversion.original_weights import CheckpointError, OriginalWeights
from small_neucodecs import CONFIGS, original_checkpoint


@pytest.fixture(params=CONFIGS)
def origin(request):
    return request.param


@pytest.fixture
def state_dict(origin):
    return original_checkpoint(origin, CONFIGS[origin])[0]


@pytest.fixture
def expected(origin):
    return original_checkpoint(origin, CONFIGS[origin])[1]


def _converted(origin: str, state_dict):
    return convert_neucodec(origin, OriginalWeights(state_dict), CONFIGS[origin])


def _assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-6)


def _with_weight_norm(state_dict, key: str, spelling: tuple[str, str]):
    weight = state_dict.pop(f"{key}.weight")
    norm = weight.flatten(1).norm(dim=1).view(-1, *(1,) * (weight.ndim - 1))
    state_dict[f"{key}.{spelling[0]}"], state_dict[f"{key}.{spelling[1]}"] = norm, 3 * weight
    return weight


@pytest.mark.parametrize(
    "spelling",
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
    ids=["old", "new"],
)
def test_weight_norm_in_every_spelling(origin, state_dict, expected, spelling):
    for key in ("SemanticEncoder_module.initial_conv", "generator.backbone.embed"):
        _with_weight_norm(state_dict, key, spelling)
    _assert_equal(_converted(origin, state_dict)[0], expected)


def test_a_stale_weight_beside_its_norm_is_checked(origin, state_dict, expected):
    key = "generator.backbone.prior_net.0.conv1"
    weight = _with_weight_norm(state_dict, key, ("weight_g", "weight_v"))
    _assert_equal(_converted(origin, {**state_dict, f"{key}.weight": weight})[0], expected)
    with pytest.raises(CheckpointError, match=rf"'{key}.weight' and its weight norm.* differ by"):
        _converted(origin, {**state_dict, f"{key}.weight": 1.01 * weight})


def test_leftovers_of_training_are_named_and_others_refused(origin, state_dict, expected):
    state_dict |= {
        "fc_post_s.weight": torch.zeros(2),
        "SemanticDecoder_module.initial_conv.weight": torch.zeros(2),
        "generator.head.istft.window": torch.zeros(2),
        "semantic_model.encoder.layers.16.ffn1_layer_norm.weight": torch.zeros(2),
    }
    tensors, ignored = _converted(origin, state_dict)
    _assert_equal(tensors, expected)
    assert ignored == ["SemanticDecoder_module.initial_conv.weight", "fc_post_s.weight"]
    with pytest.raises(CheckpointError, match="does not have: generator.surprise"):
        _converted(origin, {**state_dict, "generator.surprise": torch.zeros(2)})


def test_what_is_missing_or_misshapen_is_named(origin, state_dict):
    with pytest.raises(CheckpointError, match=r"has no 'fc_prior.bias' \(4[08],\)"):
        _converted(origin, {key: tensor for key, tensor in state_dict.items() if key != "fc_prior.bias"})
    with pytest.raises(CheckpointError, match=r"'fc_prior.bias' has shape \(3,\), \(4[08],\) is wanted"):
        _converted(origin, {**state_dict, "fc_prior.bias": torch.zeros(3)})


@pytest.mark.parametrize("spelling", ["old", "folded"])
def test_huberts_position_convolution_in_every_spelling(spelling):
    state_dict, expected = original_checkpoint("distill-neucodec", CONFIGS["distill-neucodec"])
    prefix = "semantic_model.encoder.pos_conv_embed.conv"
    norm, direction = (state_dict.pop(f"{prefix}.parametrizations.weight.original{i}") for i in (0, 1))
    folded = torch._weight_norm(direction, norm, 2)
    state_dict |= (
        {f"{prefix}.weight_g": norm, f"{prefix}.weight_v": direction}
        if spelling == "old"
        else {f"{prefix}.weight": folded}
    )
    tensors, _ = _converted("distill-neucodec", state_dict)
    ours = "semantic_encoder.encoder.pos_conv_embed.conv.parametrizations.weight"
    found = torch._weight_norm(tensors.pop(f"{ours}.original1"), tensors.pop(f"{ours}.original0"), 2)
    torch.testing.assert_close(found, folded)
    _assert_equal(tensors, {name: tensor for name, tensor in expected.items() if not name.startswith(ours)})


def test_semantic_weights_come_from_their_own_folder(origin, state_dict, expected, tmp_path):
    checkpoint, semantic, config = tmp_path / "checkpoint", tmp_path / "semantic", CONFIGS[origin]
    checkpoint.mkdir()
    without = {key: tensor for key, tensor in state_dict.items() if not key.startswith("semantic_model.")}
    torch.save(without, checkpoint / "pytorch_model.bin")
    whole = NEUCODEC_MODELS[origin](config)
    whole.load_state_dict(expected)
    whole.semantic_encoder.save_pretrained(semantic)
    arguments = {"origin": origin, "source": checkpoint, "output_dir": tmp_path / "model", "config": config}
    with pytest.raises(OSError, match="the checkpoint has no semantic model, and .*nowhere.* name its folder"):
        fsqcodec.convert_checkpoint(**arguments, semantic=tmp_path / "nowhere")
    folder = fsqcodec.convert_checkpoint(**arguments, semantic=semantic)
    _assert_equal(AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict(), expected)
    assert "every tensor matched" in (folder / "README.md").read_text()


def test_wrong_arguments(tmp_path):
    output = tmp_path / "model"
    with pytest.raises(ValueError, match="preset 'l3ac-1kbps' is not of the family 'neucodec'"):
        fsqcodec.convert_checkpoint("neucodec", tmp_path, output, preset="l3ac-1kbps")
    with pytest.raises(ValueError, match="no package of the original 'neucodec' to verify with"):
        fsqcodec.convert_checkpoint("neucodec", tmp_path, output, verify=True)
    with pytest.raises(ValueError, match="'l3ac' has no semantic model"):
        fsqcodec.convert_checkpoint("l3ac", tmp_path, output, preset="l3ac-1kbps", semantic=tmp_path)
    with pytest.raises(ValueError, match="config is a FsqNeuCodecConfig: distill-neucodec has a DistillNeuCodecConfig"):
        fsqcodec.convert_checkpoint("distill-neucodec", tmp_path, output, config=CONFIGS["neucodec"])
    with pytest.raises(CheckpointError, match="has no pytorch_model.bin"):
        fsqcodec.convert_checkpoint("neucodec", tmp_path, output)
    assert not output.exists()


@pytest.mark.slow
@torch.no_grad()
def test_a_full_size_checkpoint_converts_and_runs_on_a_real_clip(origin, tmp_path):
    checkpoint, _ = original_checkpoint(origin, NEUCODEC_MODELS[origin].config_class())
    torch.save(checkpoint, tmp_path / "pytorch_model.bin")
    del checkpoint
    codec = load_codec(fsqcodec.convert_checkpoint(origin, tmp_path, tmp_path / "model"), device="cpu")
    (codes,) = codec.encode([speech()[:32000]])
    (audio,) = codec.decode([codes])
    assert codes.shape == (1, 100 + (origin == "distill-neucodec"))
    assert len(audio) == 480 * codes.shape[1]
