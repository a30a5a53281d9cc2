"""Streams equal the whole, for every way to cut it, and in any company."""

import warnings
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import speech
from fsqcodec import (
    CodecConfig,
    CodecFeatureExtractor,
    CodecModel,
    StreamingDecoder,
    StreamingEncoder,
    decode_file,
    encode_file,
)
from fsqcodec.audio import write_audio
from fsqcodec.conversion.verification import ROUNDING_MARGIN
from fsqcodec.files import encode_files
from fsqcodec.models.configuration_codec import PRESETS
from fsqcodec.models.streaming_codec import Span, stream_encoder
from fsqcodec.packing import Tokens, read_tokens, token_digest, write_tokens
from fsqcodec.streaming import clip_statistics, push_together
from small_configs import SMALL_CONFIGS, randomize, small_model, speech_like_clip

AUDIO_TOLERANCE = 1e-5
FULL_SIZE_AUDIO_TOLERANCE = 5e-5  # float32 sums of hundreds of channels, in another order


def cut(steps: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """The last axis in pieces of these lengths, and one with what is left."""
    pieces = []
    for length in lengths:
        pieces.append(steps[..., :length])
        steps = steps[..., length:]
    return [*pieces, steps]


def streamed(stream, chunks) -> torch.Tensor:
    return torch.cat([*[stream.push(chunk) for chunk in chunks], stream.flush()], dim=-1)


def random_codes(model: CodecModel, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.codebook_size, (1, 1, num_frames), generator=generator)


def exact_decoder(model: CodecModel, codes: torch.Tensor) -> StreamingDecoder:
    """One that is to equal the whole: with the statistics of the clip where the model normalises by them."""
    return StreamingDecoder(model, clip_statistics(model, codes) if model.config.normalizes_over_clip else None)


@torch.no_grad()
def assert_codes_equal(model: CodecModel, codes: torch.Tensor, samples: torch.Tensor):
    """Codes `(batch, 1, num_frames)` are those of the whole, but for those on a rounding boundary in float32."""
    whole = model.encode(samples, output_latents=True)
    assert codes.shape == whole.audio_codes.shape
    positions = model.quantizer.positions(whole.latents.transpose(1, 2))
    near_boundary = ((positions - positions.floor() - 0.5).abs() < ROUNDING_MARGIN).any(dim=-1)
    assert not ((codes != whole.audio_codes)[:, 0] & ~near_boundary).any()


@torch.no_grad()
def assert_file_is_the_whole(path, model: CodecModel, tokens: Tokens, tolerance: float = AUDIO_TOLERANCE):
    """Within `tolerance` and the rounding to 16 bits."""
    audio = model.decode(tokens.codes[None], num_samples=tokens.num_samples).audio_values[0, 0].numpy()
    write_audio(path.with_name("expected.wav"), audio, model.config.sampling_rate)
    (in_pieces, _), (whole, _) = (
        soundfile.read(file, dtype="int16") for file in (path, path.with_name("expected.wav"))
    )
    assert in_pieces.shape == whole.shape
    assert np.abs(in_pieces.astype(int) - whole).max() <= 1 + tolerance * 2**15


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@given(data=st.data())
@settings(max_examples=8)
def test_encoding_in_any_chunks_equals_the_whole(name, data):
    model = small_model(name)
    config = model.config
    num_samples = data.draw(st.integers(1, 3 * config.attention_window_size * config.hop_length))
    clip = torch.from_numpy(speech()[30000:][:num_samples])
    lengths = data.draw(st.lists(st.integers(0, num_samples), max_size=8))
    codes = streamed(StreamingEncoder(model), cut(clip, lengths))
    assert_codes_equal(model, codes, clip[None, None])


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_sample_by_sample_a_code_comes_when_its_look_ahead_has_come(name):
    model = small_model(name).double()
    hop_length, lookahead = model.config.hop_length, model.config.encoder_lookahead_samples
    clip = speech_like_clip(lookahead + 12 * hop_length + 5).double()
    encoder, codes = StreamingEncoder(model), []
    for i, sample in enumerate(clip):
        codes.append(encoder.push(sample[None]))
        assert sum(piece.shape[-1] for piece in codes) == max(0, (i + 1 - lookahead) // hop_length)
    codes = torch.cat([*codes, encoder.flush()], dim=-1)
    assert torch.equal(codes, model.encode(clip[None, None]).audio_codes)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@given(data=st.data())
@settings(max_examples=8)
def test_decoding_in_any_chunks_equals_the_whole(name, data):
    model = small_model(name)
    num_frames = data.draw(st.integers(1, 3 * model.config.attention_window_size))
    codes = random_codes(model, num_frames, seed=data.draw(st.integers(0, 99)))
    lengths = data.draw(st.lists(st.integers(0, num_frames), max_size=8))
    audio = streamed(exact_decoder(model, codes), cut(codes, lengths))
    with torch.no_grad():
        torch.testing.assert_close(audio, model.decode(codes).audio_values, rtol=0, atol=AUDIO_TOLERANCE)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_a_frame_is_decoded_when_its_look_ahead_has_come(name):
    model = small_model(name)
    hop_length = model.config.hop_length
    num_later = model.config.decoder_lookahead_samples // hop_length
    codes = random_codes(model, num_later + 9)
    decoder, num_samples = exact_decoder(model, codes), 0
    for i, code in enumerate(codes.split(1, dim=-1)):
        num_samples += decoder.push(code).shape[-1]
        assert num_samples >= (i + 1 - num_later) * hop_length


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_streams_that_come_and_go_are_what_they_are_alone(name, seed):
    model, chance = small_model(name), Random(seed)
    hop_length = model.config.hop_length
    waiting = [torch.from_numpy(speech()[20000 + 7000 * i :][: chance.randint(1, 40 * hop_length)]) for i in range(4)]
    clips, codes, encoders = list(waiting), [[] for _ in waiting], [StreamingEncoder(model) for _ in waiting]
    open_streams = set(range(4))
    while open_streams:
        taking_part = chance.sample(sorted(open_streams), chance.randint(1, len(open_streams)))
        chunks = []
        for i in taking_part:
            chunk, waiting[i] = cut(waiting[i], [chance.randint(0, 20 * hop_length)])
            chunks.append(chunk)
        for i, piece in zip(taking_part, push_together([encoders[i] for i in taking_part], chunks)):
            codes[i].append(piece)
            if not len(waiting[i]):
                codes[i].append(encoders[i].flush())
                open_streams.remove(i)
    codes = [torch.cat(pieces, dim=-1) for pieces in codes]
    for clip, clip_codes in zip(clips, codes):
        assert_codes_equal(model, clip_codes, clip[None, None])

    decoders = [exact_decoder(model, clip_codes) for clip_codes in codes]
    heads = [decoder.push(clip_codes[..., : 3 * i]) for i, (decoder, clip_codes) in enumerate(zip(decoders, codes))]
    middles = push_together(decoders, [clip_codes[..., 3 * i :] for i, clip_codes in enumerate(codes)])
    for decoder, clip_codes, head, middle in zip(decoders, codes, heads, middles):
        audio = torch.cat([head, middle, decoder.flush()], dim=-1)
        with torch.no_grad():
            whole = model.decode(clip_codes).audio_values
        torch.testing.assert_close(audio, whole, rtol=0, atol=AUDIO_TOLERANCE)


def test_a_batch_in_step_is_a_batch(model):
    clips = torch.stack([speech_like_clip(1500, seed) for seed in range(3)])[:, None]
    codes = streamed(StreamingEncoder(model), clips.split(333, dim=-1))
    assert_codes_equal(model, codes, clips)
    audio = streamed(exact_decoder(model, codes), codes.split(11, dim=-1))
    with torch.no_grad():
        torch.testing.assert_close(audio, model.decode(codes).audio_values, rtol=0, atol=AUDIO_TOLERANCE)


@torch.no_grad()
def test_a_state_is_a_value(model):
    """Going on twice from one state gives the same twice, and codes can be branched."""
    hop_length = model.config.hop_length
    clip = speech_like_clip(40 * hop_length)[None, :, None]
    span = Span((-(-model.config.encoder_lookahead_samples % hop_length),), (None,))
    _, _, state = stream_encoder(model.encoder, clip[:, : 20 * hop_length], span, None)
    span = span.delayed(-20 * hop_length)
    first, _, _ = stream_encoder(model.encoder, clip[:, 20 * hop_length :], span, state)
    stream_encoder(model.encoder, -clip[:, 20 * hop_length :], span, state)
    again, _, _ = stream_encoder(model.encoder, clip[:, 20 * hop_length :], span, state)
    assert torch.equal(first, again)


def test_the_state_does_not_grow(model):
    def size(state) -> int:
        return state.numel() if isinstance(state, torch.Tensor) else sum(map(size, state))

    window = model.config.attention_window_size * model.config.hop_length
    encoder, clip, sizes = StreamingEncoder(model), speech_like_clip(5 * window), []
    for chunk in clip.split(window):
        encoder.push(chunk)
        sizes.append(size(encoder._state))
    assert sizes[-1] <= 2 * max(sizes[1:2])
    assert max(sizes[2:]) <= max(sizes[1:3])


def test_a_decoder_that_normalises_over_the_clip_says_so_once_and_uses_what_came_so_far():
    model = small_model("l3ac-coarse")
    codes = random_codes(model, 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoder = StreamingDecoder(model)
        audio = streamed(decoder, codes.split(3, dim=-1))
    assert len(caught) == 1
    assert "normalises over the clip" in str(caught[0].message)
    with torch.no_grad():
        whole = model.decode(codes).audio_values
    assert audio.shape == whole.shape
    assert (audio - whole).abs().max() > 1e-4
    of_clip = clip_statistics(model, codes)
    torch.testing.assert_close(decoder.statistics[0], of_clip[0], rtol=1e-4, atol=1e-6)
    later = StreamingDecoder(model, statistics=decoder.statistics)
    assert streamed(later, [codes]).shape == whole.shape


@pytest.mark.parametrize("name", ["running", "frames-plain", "frames-attention"])
def test_other_decoders_need_no_statistics(name):
    model = small_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = StreamingDecoder(model)
    decoder.push(random_codes(model, 50))
    assert decoder.statistics is None
    with pytest.raises(ValueError, match="needs none"):
        StreamingDecoder(model, statistics=[])
    with pytest.raises(ValueError, match="has no statistics"):
        clip_statistics(model, random_codes(model, 50))


def test_statistics_of_a_clip_are_those_its_layers_compute():
    model = small_model("l3ac-coarse")
    codes, seen = random_codes(model, 60), []
    for stage in model.decoder.stages:
        stage.enhance.norm.register_forward_hook(
            lambda norm, inputs, _: seen.append(torch.stack(norm.statistics(*inputs)))
        )
    with torch.no_grad():
        model.decode(codes)
    for ours, theirs in zip(clip_statistics(model, codes), seen):
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-6)


def test_nothing_gives_nothing(model):
    assert StreamingEncoder(model).flush().shape == (1, 1, 0)
    encoder = StreamingEncoder(model)
    assert encoder.push(np.zeros(0, dtype=np.float32)).shape == (1, 1, 0)
    assert encoder.flush().shape == (1, 1, 0)
    decoder = exact_decoder(model, torch.zeros(1, 1, 3, dtype=torch.int64))
    assert decoder.flush().shape == (1, 1, 0)


def test_wrong_input_is_refused_and_leaves_the_stream_as_it_was():
    model = small_model("frames-plain")
    clip = speech_like_clip(1000)
    encoder = StreamingEncoder(model)
    head = encoder.push(clip[:500])
    for wrong, message in (
        (torch.zeros(100, dtype=torch.int16), "int16: floats in"),
        ([0.1, 0.2], "samples are a list"),
        (torch.zeros(2, 100), r"shape \(2, 100\)"),
        (torch.zeros(1, 2, 100), r"shape \(1, 2, 100\)"),
        (torch.zeros(2, 1, 100), "a chunk is of 2 clips, those before it were of 1"),
        (torch.full((5,), 9.0), "peak at 9"),
        (np.array([0.0, np.nan]), "peak at nan"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.push(wrong)
    codes = torch.cat([head, encoder.push(clip[500:]), encoder.flush()], dim=-1)
    assert_codes_equal(model, codes, clip[None, None])
    for method in (encoder.flush, lambda: encoder.push(clip)):
        with pytest.raises(ValueError, match="has ended: make another StreamingEncoder"):
            method()

    decoder = StreamingDecoder(model)
    for wrong, message in (
        (torch.zeros(1, 1, 3), "float32: integers"),
        (torch.full((1, 1, 2), model.config.codebook_size), "range from 245 to 245"),
        (torch.zeros(1, 3, 2, dtype=torch.int64), r"shape \(1, 3, 2\)"),
        ([1, 2], "codes are a list"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.push(wrong)
    other = StreamingEncoder(small_model("frames-plain"))
    for streams in ([StreamingEncoder(model), other], [StreamingEncoder(model), decoder]):
        with pytest.raises(ValueError, match="must be of one model"):
            push_together(streams, [clip, clip])
    with pytest.raises(ValueError, match="given twice"):
        push_together([other, other], [clip, clip])
    with pytest.raises(ValueError, match="one chunk for each"):
        push_together([other], [])


def test_models_that_can_t_be_streamed_are_refused():
    with pytest.raises(ValueError, match="a Linear can't be streamed"):
        StreamingEncoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        StreamingDecoder(small_model("running").train())


def test_given_statistics_must_fit_and_a_refusal_pushes_nothing():
    model = small_model("l3ac-coarse")
    codes = random_codes(model, 60)
    statistics = clip_statistics(model, codes)
    for wrong, message in (
        (statistics[:1], "statistics are of 1 stages: this decoder has 2"),
        ([stage[:, :, :1] for stage in statistics], r"have shape \(2, 1, 1, 1\): \(2, batch, 4, 1\) is wanted"),
        ([stage.tolist() for stage in statistics], "are a list: a tensor of floats"),
        ([stage.long() for stage in statistics], "are torch.int64: a tensor of floats"),
        ([stage * np.nan for stage in statistics], "not finite, or a variance is negative"),
        ([-stage.abs() for stage in statistics], "not finite, or a variance is negative"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamingDecoder(model, wrong)
    of_two = StreamingDecoder(model, [stage.expand(-1, 2, -1, -1) for stage in statistics])
    with pytest.raises(ValueError, match="are of 2 clips, a chunk is of 1"):
        of_two.push(codes)
    decoder = exact_decoder(model, codes)
    with pytest.warns(UserWarning, match="normalises over the clip"):
        without = StreamingDecoder(model)
    head = decoder.push(codes[..., :40])
    with pytest.raises(ValueError, match="with and without given statistics"):
        push_together([decoder, without], [codes[..., 40:]] * 2)
    audio = torch.cat([head, decoder.push(codes[..., 40:]), decoder.flush()], dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(audio, model.decode(codes).audio_values, rtol=0, atol=AUDIO_TOLERANCE)


@pytest.mark.parametrize("sampling_rate", [16000, 44100])
@pytest.mark.parametrize("name", ["l3ac-coarse", "sqcodec-fine", "frames-attention"])
@torch.no_grad()
def test_files_in_pieces_equal_files_at_once(name, sampling_rate, tmp_path, monkeypatch):
    small_model(name).save_pretrained(tmp_path / "model")
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "model")
    model = CodecModel.from_pretrained(tmp_path / "model")
    source = tmp_path / "clip.wav"
    soundfile.write(source, speech(sampling_rate)[: 2 * sampling_rate], sampling_rate)
    encode_files([source], tmp_path / "model", tmp_path / "whole")
    whole = read_tokens(tmp_path / "whole" / "clip.safetensors", model.config)
    monkeypatch.setattr("fsqcodec.files.LONG_SECONDS", 1.0)
    encode_files([source], tmp_path / "model", tmp_path / "long")
    assert read_tokens(tmp_path / "long" / "clip.safetensors", model.config).num_samples == whole.num_samples
    for i, piece_seconds in enumerate((0.01, 0.3, 100.0)):
        tokens = encode_file(source, model, tmp_path / f"{i}.safetensors", piece_seconds=piece_seconds)
        assert (tokens.num_samples, tokens.token_digest) == (whole.num_samples, token_digest(model))
        assert (tokens.codes != whole.codes).sum() <= 2  # on a rounding boundary
        write_tokens(tmp_path / f"{i}.safetensors", whole, model.config)
        decode_file(tmp_path / f"{i}.safetensors", model, tmp_path / f"{i}.wav", piece_seconds=piece_seconds)
        assert_file_is_the_whole(tmp_path / f"{i}.wav", model, whole)


def test_what_exists_is_kept_and_what_fails_leaves_nothing(tmp_path):
    model = small_model("frames-plain")
    source, output = tmp_path / "clip.wav", tmp_path / "clip.safetensors"
    soundfile.write(source, speech()[:16000], 16000)
    output.write_text("precious")
    with pytest.raises(FileExistsError, match=r"clip.safetensors exists: give another name, or overwrite=True"):
        encode_file(source, model, output)
    assert output.read_text() == "precious"
    encode_file(source, model, output, overwrite=True)
    source.write_bytes(source.read_bytes()[:20000])
    with soundfile.SoundFile(tmp_path / "nan.wav", "w", 16000, 1, "FLOAT") as file:
        file.write(np.append(np.zeros(30000), np.nan))
    with pytest.raises(ValueError, match="nan.wav has NaN"):
        encode_file(tmp_path / "nan.wav", model, tmp_path / "nan.safetensors", piece_seconds=0.5)
    with pytest.raises(ValueError, match="piece_seconds is 0"):
        encode_file(source, model, tmp_path / "new.safetensors", piece_seconds=0)
    other = small_model("frames-attention")
    with pytest.raises(ValueError, match="decode with the codec that made them"):
        decode_file(output, other, tmp_path / "out.wav")
    with pytest.raises(ValueError, match="talk.wav is no name of a token file"):
        encode_file(source, model, tmp_path / "talk.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.safetensors", "clip.wav", "nan.wav"]


def test_numbers_of_any_type_are_taken_as_they_are():
    """Arrays of other byte orders, backwards and read-only; codes of any integer type."""
    model = small_model("frames-plain")
    clip = speech_like_clip(2000).numpy()
    expected = streamed(StreamingEncoder(model), [torch.from_numpy(clip)])
    backwards = np.ascontiguousarray(clip[::-1])[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples in (clip.astype(">f4"), backwards, np.frombuffer(clip.tobytes(), np.float32)):
            assert torch.equal(streamed(StreamingEncoder(model), [samples]), expected)
    codes = expected.numpy() % 100
    audio = streamed(StreamingDecoder(model), [codes])
    for dtype in ("int8", "uint8", "int16", "uint16", "uint32", "uint64", ">i8"):
        assert torch.equal(streamed(StreamingDecoder(model), [codes.astype(dtype)]), audio)
    with pytest.raises(ValueError, match="samples are object: numbers are wanted"):
        StreamingEncoder(model).push(clip.astype(object))


def full_size_model(preset: str) -> CodecModel:
    model = CodecModel(CodecConfig.from_preset(preset)).eval()
    randomize(model, seed=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_full_size_models_stream_as_the_whole(preset):
    model = full_size_model(preset)
    clip = torch.from_numpy(speech(model.config.sampling_rate))
    encoder = StreamingEncoder(model)
    chunks = cut(clip, [1, 2, 319, 320, 5000, model.config.hop_length, 70000])
    codes = streamed(encoder, chunks)
    assert len(codes.unique()) > 50
    assert_codes_equal(model, codes, clip[None, None])
    codes = codes[..., : int(6 * model.config.frame_rate)]
    audio = streamed(exact_decoder(model, codes), cut(codes, [1, 2, 7, 50]))
    with torch.no_grad():
        whole = model.decode(codes).audio_values
    torch.testing.assert_close(audio, whole, rtol=0, atol=FULL_SIZE_AUDIO_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("preset, minutes", [("speech-3kbps", 10), ("l3ac-1kbps", 2)])
@torch.no_grad()
def test_minutes_in_pieces_equal_the_whole(preset, minutes, tmp_path):
    model = full_size_model(preset)
    clip = np.resize(speech(), minutes * 60 * 16000)
    soundfile.write(tmp_path / "clip.wav", clip, 16000, subtype="FLOAT")
    tokens = encode_file(tmp_path / "clip.wav", model, tmp_path / "clip.safetensors")
    assert_codes_equal(model, tokens.codes[None], torch.from_numpy(clip)[None, None])
    decode_file(tmp_path / "clip.safetensors", model, tmp_path / "decoded.wav")
    assert_file_is_the_whole(tmp_path / "decoded.wav", model, tokens, FULL_SIZE_AUDIO_TOLERANCE)
