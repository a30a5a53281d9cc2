"""Streams of Lycodec: equal to the whole however they are cut; overlapping crops, whose weights sum to 1."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqcodec import LycodecModel, StreamingDecoder, StreamingEncoder
from fsqcodec.pipe import MOST_FRAMES, decode_pipe, encode_pipe
from fsqcodec.streaming import push_together
from lycodec_models import SMALL, small_lycodec, stereo_clip
from small_configs import small_model

CROP, FRAMES = SMALL["crop_length"], 18
HALF = CROP // 2


@pytest.fixture(scope="module")
def model() -> LycodecModel:
    return small_lycodec(noise_level=1.0)


def pieces_of(sizes: list[int], x: torch.Tensor) -> list[torch.Tensor]:
    """`x` cut along its last axis into pieces of these sizes, in turn."""
    pieces, start, number = [], 0, 0
    while start < x.shape[-1]:
        size = sizes[number % len(sizes)]
        pieces.append(x[..., start : start + size])
        start, number = start + size, number + 1
    return pieces


def streamed(stream, pieces) -> torch.Tensor:
    return torch.cat([stream.push(piece) for piece in pieces] + [stream.flush()], dim=-1)


@given(
    num_samples=st.integers(1, 4 * CROP),
    sizes=st.lists(st.integers(1, 3 * CROP), min_size=1, max_size=3),
    frame_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
@settings(max_examples=15)
@torch.no_grad()
def test_streamed_is_the_whole(model, num_samples, sizes, frame_sizes):
    clip = stereo_clip(num_samples)
    encoded = model.encode(clip[None], output_latents=True)
    codes = streamed(StreamingEncoder(model), pieces_of(sizes, clip))
    assert codes.shape == encoded.audio_codes.shape
    positions = 5 * torch.tanh(encoded.latents)
    is_clear = (positions - positions.floor() - 0.5).abs() > 1e-4
    assert torch.equal(codes[is_clear], encoded.audio_codes[is_clear])
    audio = streamed(StreamingDecoder(model), pieces_of(frame_sizes, encoded.audio_codes))
    whole = model.decode(encoded.audio_codes).audio_values
    assert audio.shape == whole.shape and (audio - whole).abs().max() < 1e-5


@torch.no_grad()
def overlapped(model, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What overlapping crops are by definition: codes of one at each half crop, and audio by weights that sum to 1."""
    num_crops = max(1, -(-clip.shape[-1] // HALF) - 1)
    padded = torch.nn.functional.pad(clip, (0, (num_crops + 1) * HALF - clip.shape[-1]))
    codes = [model.encode(padded[None, :, i * HALF :][..., :CROP]).audio_codes for i in range(num_crops)]
    triangle = 1 - (torch.arange(CROP) + 0.5 - HALF).abs() / HALF
    audio, total = torch.zeros_like(padded), torch.zeros(padded.shape[-1])
    for i, crop in enumerate(codes):
        weight = triangle.clone()
        if i == 0:
            weight[:HALF] = 1
        if i == num_crops - 1:
            weight[HALF:] = 1
        noise = model.crop_noise(torch.tensor([i]))
        audio[:, i * HALF :][:, :CROP] += weight * model.decode(crop, noise=noise).audio_values[0]
        total[i * HALF :][:CROP] += weight
    assert (total - 1).abs().max() < 1e-6
    return torch.cat(codes, dim=-1), audio


@given(
    num_samples=st.integers(1, 4 * CROP),
    sizes=st.lists(st.integers(1, 2 * CROP), min_size=1, max_size=3),
    frame_sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
)
@settings(max_examples=15)
def test_overlapping_crops_are_faded_into_each_other(model, num_samples, sizes, frame_sizes):
    clip = stereo_clip(num_samples)
    wanted_codes, wanted_audio = overlapped(model, clip)
    codes = streamed(StreamingEncoder(model, overlap=True), pieces_of(sizes, clip))
    assert codes.shape == wanted_codes.shape and (codes == wanted_codes).float().mean() > 0.99
    audio = streamed(StreamingDecoder(model, overlap=True), pieces_of(frame_sizes, wanted_codes))
    assert audio.shape[-1] >= num_samples
    assert audio[0].shape == wanted_audio.shape and (audio[0] - wanted_audio).abs().max() < 1e-5


@pytest.mark.parametrize("overlap", [False, True])
@torch.no_grad()
def test_streams_of_different_age_share_a_batch(model, overlap):
    clips = [stereo_clip(length, seed) for seed, length in enumerate((3500, 1700))]
    alone = [streamed(StreamingEncoder(model, overlap=overlap), [clip]) for clip in clips]
    old, young = (StreamingEncoder(model, overlap=overlap) for _ in clips)
    outputs = [[old.push(clips[0][:, :2000])], []]
    for output, codes in zip(outputs, push_together([old, young], [clips[0][:, 2000:], clips[1]])):
        output.append(codes)
    for output, stream, codes in zip(outputs, (old, young), alone):
        codes_together = torch.cat([*output, stream.flush()], dim=-1)
        assert codes_together.shape == codes.shape and (codes_together == codes).float().mean() > 0.99
    decoders = [StreamingDecoder(model, overlap=overlap) for _ in clips]
    first = decoders[0].push(alone[0][..., :FRAMES])
    pushed = push_together(decoders, [alone[0][..., FRAMES:], alone[1]])
    pushed[0] = torch.cat([first, pushed[0]], dim=-1)
    for audio, decoder, codes in zip(pushed, decoders, alone):
        wanted = streamed(StreamingDecoder(model, overlap=overlap), [codes])
        assert (torch.cat([audio, decoder.flush()], dim=-1) - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_a_crop_is_out_as_soon_as_it_is_in(model):
    """Codes after 1 crop of samples, audio at once; where crops overlap, audio but its second half, which waits."""
    clip = stereo_clip(3 * CROP)
    for overlap, num_samples in ((False, CROP), (True, HALF)):
        encoder, decoder = StreamingEncoder(model, overlap=overlap), StreamingDecoder(model, overlap=overlap)
        assert encoder.push(clip[:, : CROP - 1]).shape == (1, SMALL["latent_dim"], 0)
        codes = encoder.push(clip[:, CROP - 1 : CROP])
        assert codes.shape[-1] == FRAMES
        assert decoder.push(codes).shape == (1, 2, num_samples)


@torch.no_grad()
def test_mono_is_two_equal_channels_and_an_empty_stream_is_empty(model):
    mono = stereo_clip(1500)[0]
    assert torch.equal(
        streamed(StreamingEncoder(model), [mono]), streamed(StreamingEncoder(model), [mono.expand(2, -1).numpy()])
    )
    assert StreamingEncoder(model).flush().shape == (1, SMALL["latent_dim"], 0)
    assert StreamingDecoder(model).flush().shape == (1, 2, 0)


def test_what_does_not_fit_is_said(model):
    with pytest.raises(ValueError, match=r"\(3, 100\): audio \(2, num_samples\) or \(batch, 2, num_samples\)"):
        StreamingEncoder(model).push(torch.zeros(3, 100))
    with pytest.raises(ValueError, match="overlap is for codecs of crops"):
        StreamingEncoder(small_model("frames-plain"), overlap=True)
    with pytest.raises(ValueError, match="does not normalise over the clip"):
        StreamingDecoder(model, [torch.zeros(1)])
    decoder = StreamingDecoder(model)
    decoder.push(np.zeros((SMALL["latent_dim"], 20), dtype=np.int64))
    with pytest.raises(ValueError, match="20 frames: whole crops, a multiple of 18"):
        decoder.flush()
    with pytest.raises(ValueError, match="of one model, all encoders or all decoders"):
        streams = [StreamingEncoder(model), StreamingEncoder(model, overlap=True)]
        push_together(streams, [stereo_clip(10)] * 2)


@torch.no_grad()
def test_a_pipe_takes_the_samples_of_both_channels_in_turn():
    """Blocks are whole crops; audio above full scale is clipped, as in files."""
    model = small_lycodec(noise_level=1.0)
    model.decoder.band_head.low.conv2.weight.mul_(20)
    clip = (stereo_clip(4 * CROP + 100) * 32767).to(torch.int16)
    pcm = clip.T.contiguous().numpy().astype("<i2").tobytes()
    tokens, samples = io.BytesIO(), io.BytesIO()
    encode_pipe(io.BytesIO(pcm), tokens, model)
    tokens.seek(0)
    decode_pipe(tokens, samples, model)
    codes = streamed(StreamingEncoder(model), [clip.float() / 32768])
    expected = model.decode(codes, num_samples=clip.shape[-1]).audio_values[0]
    assert expected.abs().max() > 1
    decoded = np.frombuffer(samples.getvalue(), "<i2").reshape(-1, 2).T / 32767
    np.testing.assert_allclose(decoded, expected.clamp(-1, 1).numpy(), rtol=0, atol=1.1 / 32767)
    with pytest.raises(ValueError, match="the input ended within a sample"):
        encode_pipe(io.BytesIO(pcm[:-2]), io.BytesIO(), model)
    with pytest.raises(ValueError, match="-f s16le -ac 2"):
        encode_pipe(io.BytesIO(b"RIFF" + pcm), io.BytesIO(), model)


def test_a_pipe_takes_crops_of_more_frames_than_a_block_has():
    model = small_lycodec(noise_level=1.0, frames_per_crop=72)
    assert model.config.frames_per_crop > MOST_FRAMES
    pcm = (stereo_clip(2 * CROP + 100) * 32767).to(torch.int16).T.contiguous().numpy().astype("<i2").tobytes()
    tokens, samples = io.BytesIO(), io.BytesIO()
    encode_pipe(io.BytesIO(pcm), tokens, model)
    tokens.seek(0)
    decode_pipe(tokens, samples, model)
    assert len(samples.getvalue()) == len(pcm)
