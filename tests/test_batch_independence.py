"""The promise: what a clip is encoded and decoded to does not depend on the batch it is in.

In float32, as users run it, and for the small models also in float64, where rounding can't hide a leak.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import speech
from fsqcodec import CodecConfig, CodecModel
from fsqcodec.conversion.verification import ROUNDING_MARGIN
from small_configs import SMALL_CONFIGS, small_model

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


def _padded_batch(clips: list[torch.Tensor], extra: int, padding_value: float):
    """Clips `(1, num_samples)` as a batch with `extra` samples of padding for the longest, which holds anything."""
    longest = max(clip.shape[-1] for clip in clips) + extra
    values = torch.full((len(clips), 1, longest), padding_value)
    mask = torch.zeros(len(clips), longest, dtype=torch.int64)
    for i, clip in enumerate(clips):
        values[i, :, : clip.shape[-1]] = clip
        mask[i, : clip.shape[-1]] = 1
    return values, mask


def _near_boundary(model: CodecModel, latents: torch.Tensor) -> torch.Tensor:
    """Which frames of latents `(1, latent_dim, num_frames)` lie within the margin of a rounding boundary."""
    positions = model.quantizer.positions(latents.transpose(1, 2))[0]
    return ((positions - positions.floor() - 0.5).abs() < ROUNDING_MARGIN).any(dim=-1)


@torch.no_grad()
def _check_encoding(model: CodecModel, clips: list[torch.Tensor], extra: int, padding_value: float = 0.7):
    values, mask = _padded_batch(clips, extra, padding_value)
    batch = model.encode(values, padding_mask=mask, output_latents=True)
    for i, clip in enumerate(clips):
        alone = model.encode(clip[None], output_latents=True)
        num_frames = alone.audio_codes.shape[-1]
        assert num_frames == -(-clip.shape[-1] // model.config.hop_length)
        assert batch.audio_codes_mask[i].tolist() == [1] * num_frames + [0] * (batch.audio_codes.shape[-1] - num_frames)
        differs = batch.audio_codes[i, 0, :num_frames] != alone.audio_codes[0, 0]
        assert not (differs & ~_near_boundary(model, alone.latents)).any()
        assert not batch.audio_codes[i, 0, num_frames:].any()
        if model.dtype == torch.float64:
            assert (batch.latents[i, :, :num_frames] - alone.latents[0]).abs().max() <= TOLERANCE[torch.float64]
        assert not batch.latents[i, :, num_frames:].any()


@torch.no_grad()
def _check_decoding(model: CodecModel, lengths: list[int], extra: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.full((len(lengths), 1, max(lengths) + extra), -100)
    mask = torch.zeros(len(lengths), codes.shape[-1], dtype=torch.int64)
    for i, num_frames in enumerate(lengths):
        codes[i, :, :num_frames] = torch.randint(model.config.codebook_size, (1, num_frames), generator=generator)
        mask[i, :num_frames] = 1
    batch = model.decode(codes, audio_codes_mask=mask).audio_values
    for i, num_frames in enumerate(lengths):
        alone = model.decode(codes[i : i + 1, :, :num_frames]).audio_values[0]
        num_samples = num_frames * model.config.hop_length
        assert alone.shape == (1, num_samples)
        assert (batch[i, :, :num_samples] - alone).abs().max() <= TOLERANCE[model.dtype]
        assert not batch[i, :, num_samples:].any()


@PRECISIONS
@pytest.mark.parametrize("name", SMALL_CONFIGS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_small_models_encode_a_clip_alone_as_in_any_batch(name, dtype, data):
    model = small_model(name).to(dtype)
    longest = 3 * model.config.attention_window_size * model.config.hop_length
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=2, max_size=4))
    waveform = speech()
    clips = [waveform[20000 + 5000 * i :][:length] for i, length in enumerate(lengths)]
    extra = data.draw(st.integers(0, 2 * model.config.hop_length))
    _check_encoding(model, [torch.from_numpy(clip)[None] for clip in clips], extra)


@PRECISIONS
@pytest.mark.parametrize("name", SMALL_CONFIGS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_small_models_decode_codes_alone_as_in_any_batch(name, dtype, data):
    model = small_model(name).to(dtype)
    lengths = data.draw(st.lists(st.integers(1, 3 * model.config.attention_window_size), min_size=2, max_size=4))
    _check_decoding(model, lengths, extra=data.draw(st.integers(0, 5)), seed=data.draw(st.integers(0, 1000)))


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_forward_of_a_batch_equals_forward_of_each_clip(name):
    model = small_model(name)
    clips = [torch.from_numpy(speech()[30000:][:length])[None] for length in (977, 400, 31)]
    values, mask = _padded_batch(clips, extra=3, padding_value=-0.5)
    with torch.no_grad():
        batch = model(values, padding_mask=mask)
        for i, clip in enumerate(clips):
            alone = model(clip[None])
            num_samples, num_frames = clip.shape[-1], alone.audio_codes.shape[-1]
            assert alone.audio_values.shape == (1, 1, num_samples)
            assert torch.equal(batch.audio_codes[i, :, :num_frames], alone.audio_codes[0])
            assert (batch.audio_values[i, :, :num_samples] - alone.audio_values[0]).abs().max() <= TOLERANCE[
                model.dtype
            ]
            assert not batch.audio_values[i, :, num_samples:].any()


@pytest.mark.parametrize("preset", ["l3ac-1kbps", pytest.param("sqcodec-3kbps", marks=pytest.mark.slow)])
def test_a_full_size_model_keeps_the_promise(preset, tmp_path):
    pytest.importorskip("l3ac", reason="weights with varied tokens are made with the original packages")
    from fsqcodec import convert_checkpoint
    from fsqcodec.conversion.originals import OriginalCodec

    config, origin = CodecConfig.from_preset(preset), preset.split("-")[0]
    original = OriginalCodec(origin, config)
    original.randomize(seed=2, clip=speech()[:60000])
    original.save(tmp_path / "original")
    convert_checkpoint(origin, tmp_path / "original", tmp_path / "model", preset=preset)
    model = CodecModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    clips = [
        torch.from_numpy(speech()[start:stop])[None] for start, stop in ((0, 90000), (70000, 110123), (5000, 5400))
    ]
    _check_encoding(model, clips, extra=100)
    _check_decoding(model, [260, 100, 3], extra=2)
