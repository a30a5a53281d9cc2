"""What Transformers promises of any model, tried on this one: Auto classes, folders, dtypes, devices, training, code
that travels with the weights."""

import copy
import json
import pickle
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForAudioTokenization,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from fsqcodec import CodecConfig, CodecFeatureExtractor, CodecModel
from fsqcodec.models.convolution import Snake
from small_configs import SMALL_CONFIGS, small_config, small_model, speech_like_clip

AUTO_CLASSES = [AutoModel, AutoModelForAudioTokenization, CodecModel]
KINDS = pytest.mark.parametrize("name", SMALL_CONFIGS)


def clip_for(model: CodecModel, num_frames: int = 40, batch_size: int = 1) -> torch.Tensor:
    """`(batch_size, 1, num_samples)`, not a whole number of frames."""
    num_samples = num_frames * model.config.hop_length - 3
    return torch.stack([speech_like_clip(num_samples, seed) for seed in range(batch_size)]).unsqueeze(1)


def assert_same_output(output, expected):
    assert output.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(output[key], value), key


# Auto classes


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForAudioTokenization])
def test_auto_classes_make_the_model_from_a_config(auto_class):
    assert type(auto_class.from_config(small_config("l3ac-coarse"))) is CodecModel


def test_config_is_registered_under_its_model_type():
    assert CONFIG_MAPPING["codec"] is CodecConfig
    assert type(AutoConfig.for_model("codec", attention_window_size=10)) is CodecConfig


def test_model_names_its_input_and_its_kind():
    assert issubclass(CodecModel, PreTrainedModel)
    assert CodecModel.main_input_name == "input_values"
    assert CodecModel.input_modalities == ("audio",)


# Folders


@KINDS
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
@torch.no_grad()
def test_loaded_model_does_exactly_what_the_saved_one_did(tmp_path, name, auto_class):
    model = small_model(name)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is CodecModel
    assert not loaded.training
    assert loaded.dtype == torch.float32
    state_dict, loaded_state_dict = model.state_dict(), loaded.state_dict()
    assert list(loaded_state_dict) == list(state_dict)
    for key, value in state_dict.items():
        assert torch.equal(loaded_state_dict[key], value), key
    clip = clip_for(model, batch_size=2)
    mask = torch.ones(2, clip.shape[-1])
    mask[1, 100:] = 0
    assert_same_output(loaded(clip, mask, output_latents=True), model(clip, mask, output_latents=True))
    assert_same_output(loaded.encode(clip, mask), model.encode(clip, mask))
    assert_same_output(
        loaded.decode(model.encode(clip).audio_codes), model.decode(audio_codes=model.encode(clip).audio_codes)
    )


@KINDS
def test_loading_leaves_no_tensor_uninitialised(tmp_path, name):
    """Loading builds the model without memory; buffers that no file holds would come back as whatever lay there."""
    model = small_model(name)
    model.save_pretrained(tmp_path)
    loaded = CodecModel.from_pretrained(tmp_path)
    built = dict([*model.named_parameters(), *model.named_buffers()])
    for key, tensor in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, built.pop(key)), key
    assert not built


def test_every_weight_is_in_the_file_and_nothing_else(tmp_path):
    model = small_model("sqcodec-coarse")
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == dict(model.named_parameters()).keys()


def test_model_is_built_without_touching_values():
    """`__init__` must not read a tensor: `from_pretrained` runs it on the meta device."""
    with torch.device("meta"):
        model = CodecModel(small_config("l3ac-coarse"))
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@torch.no_grad()
def test_weights_in_several_shards_load(tmp_path):
    model = small_model("l3ac-coarse")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    clip = clip_for(model)
    assert_same_output(AutoModel.from_pretrained(tmp_path)(clip), model(clip))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FAULTY_FILES = {
    "missing": (lambda weights: weights.pop("quantizer.project_in.weight"), "quantizer.project_in.weight"),
    "unknown": (lambda weights: weights.update({"quantizer.codebook": torch.zeros(3)}), "quantizer.codebook"),
}


@pytest.mark.parametrize("change, weight_name", FAULTY_FILES.values(), ids=FAULTY_FILES)
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_missing_and_unknown_weights_are_refused_by_name(tmp_path, change, weight_name, auto_class):
    small_model("l3ac-fine").save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match=weight_name):
        auto_class.from_pretrained(tmp_path)


def test_weights_of_other_sizes_are_refused(tmp_path):
    small_model("l3ac-fine").save_pretrained(tmp_path)
    small_config("l3ac-fine", quantization_levels=(7, 7)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        CodecModel.from_pretrained(tmp_path)


def test_a_field_given_at_loading_is_validated(tmp_path):
    small_model("l3ac-fine").save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassClassValidationError, match="latent_dim is 0"):
        CodecModel.from_pretrained(tmp_path, latent_dim=0)


def test_loading_info_is_returned_on_request(tmp_path):
    small_model("l3ac-fine").save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is CodecModel
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_saving_does_not_change_the_config(tmp_path):
    model = small_model("l3ac-fine")
    before = model.config.to_dict()
    model.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    ignored = {"auto_map", "architectures", "dtype"}  # Transformers notes these itself
    after = model.config.to_dict()
    assert {k: v for k, v in after.items() if k not in ignored} == {k: v for k, v in before.items() if k not in ignored}
    assert (tmp_path / "first/config.json").read_text() == (tmp_path / "second/config.json").read_text()


def test_new_models_are_initialised_by_torchs_rules_for_each_layer():
    """Transformers' own rule, normal with deviation 0.02 and no bias, would replace them unless overridden."""
    torch.manual_seed(0)
    model = CodecModel(small_config("sqcodec-coarse"))
    weight = model.encoder.transformer.frame_layers.layers[0].down.weight
    assert weight.std().item() == pytest.approx((3 * weight.shape[1]) ** -0.5, rel=0.1)
    assert model.quantizer.project_in.bias.any()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_folder_made_by_hand_without_generated_fields_loads(tmp_path):
    model = small_model("l3ac-fine")
    model.save_pretrained(tmp_path)
    fields = {**SMALL_CONFIGS["l3ac-fine"], "model_type": "codec"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    clip = clip_for(model)
    with torch.no_grad():
        assert_same_output(AutoModel.from_pretrained(tmp_path)(clip), model(clip))


# Precision

# Of audio decoded in half precision against float32, with random weights; 8 and 11 bits of mantissa through a network.
LEAST_SNR_DB = {torch.bfloat16: 20.0, torch.float16: 35.0}


def snr_db(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    noise = (estimate.double() - reference.double()).square().mean()
    return float(10 * torch.log10(reference.double().square().mean() / noise))


@KINDS
@pytest.mark.parametrize("dtype", LEAST_SNR_DB, ids=str)
@torch.no_grad()
def test_half_precision_models_encode_and_decode(tmp_path, name, dtype):
    model = small_model(name)
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    clip = clip_for(model, num_frames=100)
    encoded = half.encode(clip.to(dtype), output_latents=True)
    assert encoded.audio_codes.dtype == torch.int64
    assert encoded.latents.dtype == dtype
    expected = model.encode(clip).audio_codes
    assert len(encoded.audio_codes.unique()) > len(expected.unique()) / 2
    audio = half.decode(expected).audio_values
    assert audio.dtype == dtype
    assert audio.isfinite().all()
    assert snr_db(model.decode(expected).audio_values, audio) > LEAST_SNR_DB[dtype]
    assert half(clip).audio_values.isfinite().all()


@torch.no_grad()
def test_float32_audio_goes_into_a_model_of_any_precision():
    model = small_model("sqcodec-fine").bfloat16()
    clip = clip_for(model)
    assert_same_output(model(clip), model(clip.bfloat16().float()))


def test_a_folder_keeps_the_precision_it_was_saved_in(tmp_path):
    small_model("l3ac-fine").bfloat16().save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_autocast_leaves_quantization_and_distances_in_float32():
    model = small_model("l3ac-coarse")
    latents = torch.randn(1, 50, model.config.latent_dim)
    expected = model.quantizer.positions(latents), model.encoder.transformer.frame_layers.position_bias(20, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = model.quantizer.positions(latents), model.encoder.transformer.frame_layers.position_bias(20, "cpu")
    for a, b in zip(given, expected):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@torch.no_grad()
def test_snake_survives_a_tiny_alpha_in_half_precision():
    snake = Snake(3).half()
    snake.alpha.copy_(torch.tensor([0.0, 1e-6, 1.0]))
    x = torch.linspace(-3, 3, 12).half().view(4, 3)
    expected = x + torch.sin(x) ** 2
    assert torch.allclose(snake(x)[:, :2], x[:, :2], atol=1e-2)
    assert torch.allclose(snake(x)[:, 2], expected[:, 2], atol=1e-2)


# Devices


@KINDS
@torch.no_grad()
def test_device_map_of_one_device_changes_nothing(tmp_path, name):
    pytest.importorskip("accelerate")
    model = small_model(name)
    model.save_pretrained(tmp_path)
    clip = clip_for(model)
    assert_same_output(AutoModel.from_pretrained(tmp_path, device_map="cpu")(clip), model(clip))


@KINDS
@pytest.mark.parametrize("share_in_memory", [0.3, 0.5, 0.7, 0.9])
@torch.no_grad()
def test_model_split_between_memory_and_disk_does_what_the_whole_one_does(tmp_path, name, share_in_memory):
    pytest.importorskip("accelerate")
    model = small_model(name)
    model.save_pretrained(tmp_path / "model")
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    split = AutoModel.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(num_bytes * share_in_memory)},
        offload_folder=tmp_path / "offloaded",
    )
    assert "disk" in split.hf_device_map.values()
    clip = clip_for(model)
    assert_same_output(split(clip), model(clip))
    codes = model.encode(clip).audio_codes
    assert torch.equal(split.encode(clip).audio_codes, codes)
    assert torch.equal(split.decode(codes).audio_values, model.decode(codes).audio_values)


def test_no_block_with_a_skip_connection_may_be_split():
    """The classes named do exist, and every block that adds its input to its output is among them or inside one."""
    model = small_model("l3ac-coarse")
    classes = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= classes
    protected = [n for n, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) or type(module).__name__ == "LocalTransformerLayer":
            assert any(name == other or name.startswith(other + ".") for other in protected), name


# Outputs


@torch.no_grad()
def test_tuples_hold_the_outputs_in_order_without_those_not_asked_for():
    model = small_model("l3ac-coarse")
    clip = clip_for(model)
    for call in (model, model.encode):
        for output_latents in (False, True):
            output = call(clip, output_latents=output_latents)
            as_tuple = call(clip, output_latents=output_latents, return_dict=False)
            assert type(as_tuple) is tuple
            assert len(as_tuple) == len(output)
            assert all(torch.equal(a, b) for a, b in zip(as_tuple, output.to_tuple(), strict=True))
    codes = model.encode(clip, return_dict=False)[0]
    (audio,) = model.decode(codes, return_dict=False)
    assert torch.equal(audio, model.decode(codes).audio_values)


@torch.no_grad()
def test_config_may_ask_for_tuples():
    model = small_model("l3ac-coarse")
    model.config.return_dict = False
    clip = clip_for(model)
    assert isinstance(model(clip), tuple)
    assert isinstance(model.encode(clip), tuple)
    assert torch.equal(model(clip, return_dict=True).audio_values, model(clip)[0])


@torch.no_grad()
def test_feature_extractors_output_goes_into_the_model():
    model = small_model("sqcodec-coarse")
    clips = [speech_like_clip(num_samples, seed=num_samples).numpy() for num_samples in (500, 230)]
    features = CodecFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt")
    output = model(**features)
    assert output.audio_values.shape == (2, 1, 500)
    assert not output.audio_values[1, 0, 230:].any()
    assert output.audio_codes_mask.sum(dim=1).tolist() == [-(-500 // 12), -(-230 // 12)]


def test_copies_do_what_the_model_does():
    model = small_model("sqcodec-fine")
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_output(duplicate(clip_for(model)), model(clip_for(model)))


# Training


def gradients_of_a_step(model: CodecModel, clip: torch.Tensor) -> dict:
    model.zero_grad()
    output = model(clip, output_latents=True)
    ((output.audio_values - clip).square().mean() + 1e-3 * output.latents.square().mean()).backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


BLOCKS_NOT_IN = {"frames-plain": {"LocalTransformerLayer", "SnakeUnit"}, "frames-attention": {"SnakeUnit"}}


@KINDS
@pytest.mark.parametrize("method", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_gradient_checkpointing_recomputes_blocks_and_leaves_gradients_as_they_are(name, method):
    if not hasattr(CodecModel, method):
        pytest.skip(f"Transformers has no {method}")
    model = small_model(name).train()
    clip = clip_for(model, batch_size=2)
    num_calls = 0

    def count(*_):
        nonlocal num_calls
        num_calls += 1

    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    expected = {"ConvUnit", "LocalTransformerLayer", "SnakeUnit"} - BLOCKS_NOT_IN.get(name, set())
    assert {type(block).__name__ for block in blocks} == expected
    for block in blocks:
        next(block.children()).register_forward_hook(count)  # the recomputation passes by the block's own hooks
    expected = gradients_of_a_step(model, clip)
    assert num_calls == len(blocks) > 5
    num_calls = 0
    getattr(model, method)()
    gradients = gradients_of_a_step(model, clip)
    assert num_calls == 2 * len(blocks)
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, msg=lambda message, key=key: f"{key}: {message}")


@KINDS
def test_every_weight_gets_a_gradient(name):
    model = small_model(name).train()
    gradients = gradients_of_a_step(model, clip_for(model, batch_size=2))
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for key, gradient in gradients.items():
        assert gradient.isfinite().all(), key
        # what is the same for all keys, or for all steps of a clip, softmax and norm take away: only rounding is left
        if not re.search(r"position_bias\.output\.bias$|enhance\.trends\.\d\.bias$", key):
            assert gradient.abs().max() > 1e-12, key


@KINDS
def test_a_few_steps_of_training_bring_the_audio_closer_to_the_clip(name):
    model = small_model(name).train()
    clip = clip_for(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = (model(clip).audio_values - clip).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@torch.no_grad()
def test_train_mode_gives_the_same_output_as_eval_mode():
    model = small_model("sqcodec-coarse")
    clip = clip_for(model)
    expected = model(clip)
    assert_same_output(model.train()(clip), expected)
