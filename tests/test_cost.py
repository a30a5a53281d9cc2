"""Costs against independent counts, real clocks and real processes."""

import time

import numpy as np
import pytest
import torch

from fsqcodec import CodecConfig, CodecFeatureExtractor, CodecModel
from fsqcodec.codecs import Codec
from fsqcodec.counting import multiply_accumulates, num_parameters
from fsqcodec.evaluation.cost import (
    _peak_bytes,
    load_codec_or_preset,
    peak_memory,
    real_time_factors,
)
from fsqcodec.models.local_attention import LocalAttention
from small_configs import SMALL_CONFIGS, small_config, small_model


def counted_by_hooks(model: CodecModel, function) -> int:
    """Multiply-accumulates from the shapes that go through every layer with weights, and through attention."""
    total = 0

    def count_weights(layer, inputs, output):
        nonlocal total
        total += output.numel() // layer.weight.shape[0] * layer.weight.numel()

    def count_scores(layer, inputs, output):
        nonlocal total
        x, bias = inputs
        for start, stop in layer._tiles(0, x.shape[1], tile_size=bias.shape[1]):
            first_key = max(0, start // layer.window_size - 1) * layer.window_size
            total += 2 * layer.num_heads * layer.head_dim * (stop - start) * (stop - first_key)

    for layer in model.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv1d)):
            layer.register_forward_hook(count_weights)
        elif isinstance(layer, LocalAttention):
            layer.register_forward_hook(count_scores)
    function()
    return total


def check_multiply_accumulates(config: CodecConfig, num_frames: int):
    codes = torch.zeros(1, 1, num_frames, dtype=torch.int64)
    audio = torch.zeros(1, 1, num_frames * config.hop_length)
    encoding, decoding = (CodecModel(config).eval() for _ in range(2))  # with gradients no layer is run in pieces
    assert multiply_accumulates(config, (num_frames - 0.5) / config.frame_rate) == {
        "encode": counted_by_hooks(encoding, lambda: encoding.encode(audio)),
        "decode": counted_by_hooks(decoding, lambda: decoding.decode(codes)),
    }


@pytest.mark.parametrize("num_frames", [7, 37, 95])
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_multiply_accumulates_are_those_of_every_layer(name, num_frames):
    check_multiply_accumulates(small_config(name), num_frames=num_frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l3ac-1kbps", "sqcodec-6kbps"])
def test_multiply_accumulates_of_a_preset_are_those_of_every_layer(name):
    check_multiply_accumulates(CodecConfig.from_preset(name), num_frames=600)


def test_parameters_of_the_parts_add_up():
    counts = num_parameters(small_model("l3ac-coarse"))
    assert set(counts) == {"total", "encoder", "quantizer", "decoder"}
    assert counts["total"] == counts["encoder"] + counts["quantizer"] + counts["decoder"]
    assert counts["quantizer"] == (16 * 3 + 3) + (3 * 16 + 16)


class SlowCodec(Codec):
    """Takes 20 ms to encode and 60 ms to decode, and half a second longer the first time."""

    input_sampling_rate = output_sampling_rate = 8000

    def __init__(self):
        self.encoded, self.decoded = [], []

    def encode(self, audio):
        time.sleep(0.02 if self.encoded else 0.52)
        self.encoded.append(audio)
        return [np.zeros((1, 10), dtype=np.int64)]

    def decode(self, codes, num_samples=None):
        time.sleep(0.06 if self.decoded else 0.56)
        self.decoded.append(codes)
        return [np.zeros(16000, dtype=np.float32)]


def test_real_time_factors_are_audio_over_work_and_leave_out_the_first_turn():
    codec = SlowCodec()
    factors = real_time_factors(codec, seconds=2.0, turns=1)
    assert [[clip.shape for clip in audio] for audio in codec.encoded] == 2 * [[(16000,)]]
    assert len(codec.decoded) == 2
    for part, work in {"encode": 0.02, "decode": 0.06, "both": 0.08}.items():
        assert 2.0 / (work + 0.2) < factors[part]["median"] <= factors[part]["fastest"] <= 2.0 / work
    assert factors["both"]["fastest"] < factors["decode"]["fastest"] < factors["encode"]["fastest"]


def test_peak_memory_is_that_of_the_process_itself_and_holds_the_clip(tmp_path):
    small_model("l3ac-coarse").save_pretrained(tmp_path)
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
    ballast = np.ones(2**28)  # 2 GiB in this process
    memory = peak_memory(str(tmp_path), 30.0, "cpu")
    assert 50e6 < memory["libraries"] < ballast.nbytes
    assert 0 <= memory["load"] < memory["encode"] <= memory["decode"] < ballast.nbytes
    assert memory["encode"] > 30 * 16000 * 20 * 4  # the channels of the first block's trends, freed after it


def test_peak_memory_remembers_what_was_freed():
    np.ones(2**28)
    assert _peak_bytes() > 2**28 * 8


@pytest.mark.slow
def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="memory of .*/nowhere can't be measured: .*is no model"):
        peak_memory(str(tmp_path / "nowhere"), 1.0, "cpu")


def test_a_preset_has_the_same_weights_every_time_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = (load_codec_or_preset("sqcodec-24kbps-24khz", "cpu") for _ in range(2))
    assert first.digest == second.digest
    assert first.input_sampling_rate == 24000
    assert torch.equal(torch.get_rng_state(), state)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device 'nonsense' can't be used"):
        load_codec_or_preset("sqcodec-24kbps-24khz", "nonsense")
