import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fsqcodec import CodecConfig
from fsqcodec.models.configuration_codec import PRESETS
from fsqcodec.packing import FORMAT, Tokens, pack, read_token_facts, read_tokens, token_digest, unpack, write_tokens
from small_configs import small_config, small_model


def _random_codes(config, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.codebook_size, (config.num_codebooks, num_frames), generator=generator)
    codes[..., -1:] = config.codebook_size - 1  # the largest code needs every bit
    return codes


@pytest.mark.parametrize("preset", PRESETS)
@given(num_frames=st.integers(0, 300), seed=st.integers(0, 10**6))
def test_codes_survive_packing_in_every_preset(preset, num_frames, seed):
    config = CodecConfig.from_preset(preset)
    codes = _random_codes(config, num_frames, seed)
    assert torch.equal(unpack(pack(codes, config), config), codes)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_packed_second_takes_the_presets_bitrate(preset):
    config = CodecConfig.from_preset(preset)
    num_frames = round(60 * config.frame_rate)
    bits_per_second = 8 * len(pack(_random_codes(config, num_frames), config)) / 60
    assert config.bitrate < bits_per_second < 1.01 * config.bitrate


def test_packing_is_the_documented_layout():
    """17 bits a frame, least significant bit first: an independent sum of powers of two."""
    config = CodecConfig.from_preset("l3ac-1kbps")
    codes = [1, 117648, 70000]
    number = sum(code << (17 * i) for i, code in enumerate(codes))
    assert pack(torch.tensor([codes]), config) == number.to_bytes(math.ceil(51 / 8), "little")


@given(num_frames=st.integers(0, 50))
def test_frames_of_less_than_a_byte_need_their_number(num_frames):
    config = small_config("l3ac-fine", quantization_levels=(3, 3))
    codes = _random_codes(config, num_frames)
    packed = pack(codes, config)
    assert torch.equal(unpack(packed, config, num_frames), codes)
    with pytest.raises(ValueError, match="num_frames can't be found"):
        unpack(packed, config)


def test_pack_refuses_what_is_not_a_clip_of_codes():
    config = CodecConfig.from_preset("l3ac-1kbps")
    with pytest.raises(ValueError, match=r"range from -1 to 3: this codec's are 0 to 117648"):
        pack(torch.tensor([[-1, 3]]), config)
    with pytest.raises(ValueError, match="range from 0 to 117649"):
        pack(torch.tensor([[0, 117649]]), config)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 3\): \(1, num_frames\) is wanted"):
        pack(torch.zeros(2, 1, 3, dtype=torch.int64), config)
    with pytest.raises(ValueError, match="float32: integers are wanted"):
        pack(torch.zeros(1, 3), config)


def test_unpack_refuses_bytes_that_pack_does_not_make():
    config = CodecConfig.from_preset("l3ac-1kbps")
    packed = pack(_random_codes(config, 10), config)
    with pytest.raises(ValueError, match="21 bytes: 10 frames of 17 bits take 22"):
        unpack(packed[:-1], config, num_frames=10)
    with pytest.raises(ValueError, match="bits after the last frame"):
        unpack(packed[:-1] + b"\xff", config)
    with pytest.raises(ValueError, match="code 131071 is unpacked"):
        unpack(b"\xff\xff\x01", config)


def test_a_token_file_round_trips(tmp_path):
    config = CodecConfig.from_preset("l3ac-3kbps")
    tokens = Tokens(_random_codes(config, 77), "some/model", "0123456789abcdef", 16000, 7320)
    path = tmp_path / "deep" / "clip.safetensors"
    write_tokens(path, tokens, config)
    read = read_tokens(path, config)
    assert torch.equal(read.codes, tokens.codes)
    assert (read.model, read.token_digest, read.sampling_rate, read.num_samples) == (
        "some/model",
        "0123456789abcdef",
        16000,
        7320,
    )
    assert read_token_facts(path)["codebook_size"] == 250047
    assert [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]


def test_a_minute_of_tokens_takes_little_more_than_its_bits_on_disk(tmp_path):
    config = CodecConfig.from_preset("l3ac-1kbps")
    path = tmp_path / "minute.safetensors"
    write_tokens(path, Tokens(_random_codes(config, 3556), "some/model", "0" * 16, 16000, 960000), config)
    assert path.stat().st_size * 8 / 60 < 1.08 * config.bitrate


def test_reading_other_files_says_what_they_are(tmp_path):
    config = CodecConfig.from_preset("l3ac-1kbps")
    path = tmp_path / "clip.safetensors"
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_tokens(path, config)
    path.write_bytes(b"RIFF not safetensors")
    with pytest.raises(ValueError, match="truncated, damaged or not a token file"):
        read_tokens(path, config)
    write_tokens(path, Tokens(_random_codes(config, 100), "m", "0" * 16, 16000, 27000), config)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="truncated, damaged or not a token file"):
        read_tokens(path, config)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="has codebook_size 117649, the codec has 250047"):
        read_tokens(path, CodecConfig.from_preset("l3ac-3kbps"))
    small_model("l3ac-fine").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is not a token file of fsqcodec"):
        read_tokens(tmp_path / "model" / "model.safetensors", config)


def test_the_same_tokens_make_the_same_bytes_in_any_process(tmp_path):
    code = (
        "import sys, torch; from fsqcodec import CodecConfig; from fsqcodec.packing import Tokens, write_tokens;"
        "write_tokens(sys.argv[1], Tokens(torch.arange(50)[None], 'm', '0' * 16, 16000, 13500),"
        "CodecConfig.from_preset('l3ac-1kbps'))"
    )
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for seed, path in enumerate(paths):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", code, path], env=environment, check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_missing_and_contradictory_facts_are_named(tmp_path):
    config = CodecConfig.from_preset("l3ac-1kbps")
    path = tmp_path / "clip.safetensors"
    facts = {
        "model": "m",
        "token_digest": "0" * 16,
        "sampling_rate": 16000,
        "num_samples": 270,
        "num_frames": 1,
        "num_codebooks": 1,
        "codebook_size": 117649,
    }
    packed = {"packed_codes": np.zeros(3, dtype=np.uint8)}
    for name in facts:
        damaged = {key: fact for key, fact in facts.items() if key != name}
        save_file(packed, path, metadata={FORMAT: json.dumps(damaged)})
        with pytest.raises(ValueError, match=f"clip.safetensors is damaged: its {name} is None"):
            read_token_facts(path)
    for wrong, message in (
        ({"num_frames": 2}, "is damaged: 270 samples don't make 2 frames"),
        ({"num_samples": 271}, "is damaged: 271 samples don't make 1 frames"),
        ({"num_samples": 0}, "is damaged: its num_samples is 0"),
        ({"sampling_rate": 0}, "is damaged: its sampling_rate is 0"),
        ({"sampling_rate": 8000}, "is damaged: it is of audio at 8000 Hz, which the codec can't take"),
        ({"num_frames": 2, "num_samples": 540}, "3 bytes: 2 frames of 17 bits take 5"),
    ):
        save_file(packed, path, metadata={FORMAT: json.dumps({**facts, **wrong})})
        with pytest.raises(ValueError, match=message):
            read_tokens(path, config)


def test_the_digest_says_what_tokens_mean(tmp_path):
    model = small_model("l3ac-coarse")
    digest = token_digest(model)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    model.save_pretrained(tmp_path)
    assert token_digest(type(model).from_pretrained(tmp_path)) == digest

    with torch.no_grad():
        model.decoder.to_waveform.weight.add_(1)
    assert token_digest(model) == digest, "another decoder decodes the same tokens"
    with torch.no_grad():
        model.encoder.units[0].norm.bias[0] += 1e-6
    assert token_digest(model) != digest
    assert token_digest(small_model("l3ac-coarse", seed=1)) != digest
    assert token_digest(small_model("l3ac-coarse", padding_frames=2)) != digest
