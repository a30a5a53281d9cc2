"""What a language model generates can always be decoded, and comes out of the streamer as it would at the end."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsqcodec import CodecFeatureExtractor, LycodecFeatureExtractor
from fsqcodec.codecs import TransformersCodec, codec_of, load_codec
from fsqcodec.lm import (
    AudioLogitsProcessor,
    AudioStreamer,
    AudioToTextCollator,
    AudioVocabulary,
    TextToAudioCollator,
    resize_embeddings,
)
from lycodec_models import small_lycodec
from small_configs import small_model
from small_language_model import SENTENCES, small_llama, text_tokenizer
from small_neucodecs import FEATURE_EXTRACTORS, small_neucodec
from test_codecs import folders  # noqa: F401

TEXT_SIZE = 20
VOCABULARIES = [
    AudioVocabulary(TEXT_SIZE, (12,), (4, 3)),
    AudioVocabulary(TEXT_SIZE, (12,), (4, 3), "digits"),
    AudioVocabulary(TEXT_SIZE, (12, 12), (4, 3), "digits"),
    AudioVocabulary(TEXT_SIZE, (10, 6, 8)),
    AudioVocabulary(0, (10, 6)),
]


def allowed(vocabulary: AudioVocabulary, ids: list[int]) -> set[int]:
    """By the letter of the rule, one id after the other."""
    turn = None
    for token_id in ids:
        if token_id == vocabulary.begin_of_audio_id:
            turn = 0
        elif token_id == vocabulary.end_of_audio_id:
            turn = None
        elif turn is not None:
            turn = (turn + 1) % vocabulary.num_ids_per_frame
    if turn is None:
        return {*range(vocabulary.first_id), vocabulary.begin_of_audio_id}
    start = vocabulary.range_starts[turn]
    ends = {vocabulary.end_of_audio_id} if turn == 0 else set()
    return {*range(start, start + vocabulary.range_sizes[turn]), *ends}


@given(st.sampled_from(VOCABULARIES), st.lists(st.lists(st.integers(0, 60), min_size=9, max_size=9), min_size=1))
def test_only_ids_that_can_be_decoded_get_through(vocabulary, batch):
    scores = torch.randn(len(batch), vocabulary.size + 5)
    ids = torch.tensor(batch) % vocabulary.size
    processed = AudioLogitsProcessor(vocabulary)(ids, scores)
    for row, row_ids in enumerate(ids.tolist()):
        wanted = allowed(vocabulary, row_ids)
        assert set(processed[row].isfinite().nonzero().flatten().tolist()) == wanted
        assert torch.equal(processed[row, list(wanted)], scores[row, list(wanted)])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_what_a_random_model_generates_can_be_decoded(vocabulary):
    model = small_llama(vocabulary.size + 3)
    begin, end = vocabulary.begin_of_audio_id, vocabulary.end_of_audio_id
    prompt = torch.tensor([[begin], [end]])
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        max_new_tokens=150,
        pad_token_id=end,
        eos_token_id=None,
        logits_processor=[AudioLogitsProcessor(vocabulary)],
    )
    for ids in generated:
        spans = vocabulary.find_audio(ids)
        num_audio_ids = sum(span.numel() for span in spans)
        assert len(spans) >= 1 and (num_audio_ids > 0 or vocabulary.first_id)
    assert sum(span.shape[1] for ids in generated for span in vocabulary.find_audio(ids)) > 5


def test_a_model_that_was_not_resized():
    vocabulary = AudioVocabulary(20, (100,))
    with pytest.raises(ValueError, match="scores 20 ids, the vocabulary has 122"):
        AudioLogitsProcessor(vocabulary)(torch.tensor([[1]]), torch.zeros(1, 20))


def ours(name: str = "frames-plain") -> TransformersCodec:
    return TransformersCodec(name, small_model(name), CodecFeatureExtractor(sampling_rate=16000))


def random_codes(codec, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (num_frames,), generator=generator) for size in codec.codebook_sizes])


def stream(streamer: AudioStreamer, prompt: list[int], ids: list[int]):
    """As `generate` calls it."""
    streamer.put(torch.tensor([prompt]))
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()


@pytest.mark.parametrize("view", ["codes", "digits"])
@pytest.mark.parametrize("chunk_seconds", [1e-9, 0.01, 100.0])
@pytest.mark.parametrize("name", ["frames-plain", "frames-attention", "running"])
def test_streamed_audio_is_the_decoded_one(name, chunk_seconds, view):
    codec = ours(name)
    vocabulary = AudioVocabulary.for_codec(codec, view=view)
    codes = random_codes(codec, 40)
    chunks = []
    streamer = AudioStreamer(vocabulary, codec, chunks.append, chunk_seconds)
    ids = vocabulary.codes_to_ids(codes).tolist()
    stream(streamer, [vocabulary.begin_of_audio_id], [*ids, vocabulary.end_of_audio_id])
    (whole,) = codec.decode([codes.numpy()])
    assert all(chunk.dtype == np.float32 and chunk.ndim == 1 for chunk in chunks)
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)


def test_audio_comes_before_the_model_has_finished():
    codec = ours()
    vocabulary = AudioVocabulary.for_codec(codec)
    chunks = []
    streamer = AudioStreamer(vocabulary, codec, chunks.append, chunk_seconds=10 / codec.frame_rate)
    streamer.put(torch.tensor([[vocabulary.begin_of_audio_id]]))
    for token_id in vocabulary.codes_to_ids(random_codes(codec, 60)).tolist():
        streamer.put(torch.tensor([token_id]))
    num_samples = sum(map(len, chunks))
    assert num_samples >= 30 * codec.model.config.hop_length
    streamer.end()
    assert sum(map(len, chunks)) == 60 * codec.model.config.hop_length > num_samples


def test_a_codec_that_normalises_over_the_clip_is_exact_in_a_file_and_live_with_a_warning(tmp_path):
    codec = ours("l3ac-coarse")
    vocabulary = AudioVocabulary.for_codec(codec)
    codes = random_codes(codec, 60)
    ids = vocabulary.codes_to_ids(codes).tolist()
    (whole,) = codec.decode([codes.numpy()])
    stream(AudioStreamer(vocabulary, codec, tmp_path / "out.wav"), [vocabulary.begin_of_audio_id], ids)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], whole.clip(-1, 1), atol=1e-4)
    chunks = []
    with pytest.warns(UserWarning, match="normalises over the clip"):
        stream(AudioStreamer(vocabulary, codec, chunks.append, 0.01), [vocabulary.begin_of_audio_id], ids)
    assert len(chunks) > 2 and sum(map(len, chunks)) == len(whole)


def test_stereo_is_written_as_stereo(tmp_path):
    codec = codec_of(small_lycodec(noise_level=1.0), LycodecFeatureExtractor(sampling_rate=48000))
    vocabulary = AudioVocabulary.for_codec(codec)
    codes = random_codes(codec, 2 * codec.model.config.frames_per_crop)
    ids = [vocabulary.begin_of_audio_id, *vocabulary.codes_to_ids(codes).tolist(), vocabulary.end_of_audio_id]
    stream(AudioStreamer(vocabulary, codec, tmp_path / "out.wav"), ids[:1], ids[1:] + ids)
    (whole,) = codec.decode([codes.numpy()])
    written, _ = soundfile.read(tmp_path / "out.wav")
    np.testing.assert_allclose(written.T, np.tile(whole.clip(-1, 1), 2), atol=1e-4)


def test_neucodec_is_exact_in_a_file_and_live_in_chunks_that_overlap(tmp_path):
    codec = codec_of(small_neucodec("neucodec"), FEATURE_EXTRACTORS["neucodec"])
    vocabulary = AudioVocabulary.for_codec(codec)
    codes = random_codes(codec, 80)
    ids = vocabulary.codes_to_ids(codes).tolist()
    (whole,) = codec.decode([codes.numpy()])
    stream(AudioStreamer(vocabulary, codec, tmp_path / "out.wav"), [vocabulary.begin_of_audio_id], ids)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], whole.clip(-1, 1), atol=1e-4)
    chunks = []
    stream(AudioStreamer(vocabulary, codec, chunks.append, 0.02), [vocabulary.begin_of_audio_id], ids)
    assert len(chunks) > 2 and sum(map(len, chunks)) == len(whole)


@pytest.mark.parametrize("family", ["encodec", "dac", "mimi"])
def test_other_codecs_decode_at_the_end_of_a_span(folders, family):  # noqa: F811
    codec = load_codec(folders / family)
    vocabulary = AudioVocabulary.for_codec(codec)
    codes = random_codes(codec, 20)
    chunks = []
    ids = vocabulary.codes_to_ids(codes).tolist()
    stream(AudioStreamer(vocabulary, codec, chunks.append), [vocabulary.begin_of_audio_id], ids)
    assert len(chunks) == 1
    np.testing.assert_array_equal(chunks[0], codec.decode([codes.numpy()])[0])


def test_spans_text_and_prompts():
    """Text is passed over; of the prompt only the open span is heard; a frame that is not whole is left out."""
    codec = ours()
    vocabulary = AudioVocabulary(TEXT_SIZE, codec.codebook_sizes, codec.quantization_levels, "digits")
    begin, end = vocabulary.begin_of_audio_id, vocabulary.end_of_audio_id
    done, opened, continued, second = (random_codes(codec, 8, seed) for seed in range(4))
    chunks = []
    stream(
        AudioStreamer(vocabulary, codec, chunks.append),
        [3, begin, *vocabulary.codes_to_ids(done), end, 4, begin, *vocabulary.codes_to_ids(opened)],
        [*vocabulary.codes_to_ids(continued).tolist(), end, 5, 6, begin, *vocabulary.codes_to_ids(second).tolist()]
        + [vocabulary.range_starts[0]],
    )
    wanted = codec.decode([torch.cat([opened, continued], dim=1).numpy(), second.numpy()])
    np.testing.assert_allclose(np.concatenate(chunks), np.concatenate(wanted), atol=1e-5)


@pytest.mark.parametrize("view", ["codes", "digits"])
def test_generate_writes_the_file_that_decoding_its_ids_gives(tmp_path, view):
    codec = ours("frames-attention")
    vocabulary = AudioVocabulary.for_codec(codec, view=view)
    model = small_llama(10, max_position_embeddings=512)
    resize_embeddings(model, vocabulary)
    prompt = torch.tensor([[vocabulary.begin_of_audio_id]])
    streamer = AudioStreamer(vocabulary, codec, tmp_path / "out.wav", chunk_seconds=0.01)
    for _ in range(2):  # the second time from a fresh start
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            max_new_tokens=200,
            logits_processor=[AudioLogitsProcessor(vocabulary)],
            eos_token_id=vocabulary.end_of_audio_id,
            pad_token_id=vocabulary.end_of_audio_id,
            streamer=streamer,
        )
        (codes,) = vocabulary.find_audio(ids[0])
        (whole,) = codec.decode([codes.numpy()])
        written, sampling_rate = soundfile.read(tmp_path / "out.wav")
        assert sampling_rate == codec.output_sampling_rate
        np.testing.assert_allclose(written, whole.clip(-1, 1), atol=1e-4)
        assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_text_learnt_with_its_audio_is_spoken_and_recognised():
    """Both directions in one small model behind a text tokenizer, from data to what it generates."""
    tokenizer, codec = text_tokenizer(), ours()
    vocabulary = AudioVocabulary.for_codec(codec, tokenizer, view="digits")
    model = small_llama(len(tokenizer), hidden_size=64)
    resize_embeddings(model, vocabulary)
    speak, recognise = TextToAudioCollator(vocabulary, tokenizer), AudioToTextCollator(vocabulary, tokenizer)
    rows = [{"text": text, "audio_codes": random_codes(codec, 6, i)} for i, text in enumerate(SENTENCES)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(**speak(rows)).loss + model(**recognise(rows)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for row in rows:
        for collator, end in ((speak, vocabulary.end_of_audio_id), (recognise, tokenizer.eos_token_id)):
            prompt = torch.tensor([collator.prompt(row)])
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                logits_processor=[AudioLogitsProcessor(vocabulary)],
                do_sample=False,
                max_new_tokens=60,
                eos_token_id=end,
                pad_token_id=end,
            )[0]
            assert ids[prompt.shape[1] :].tolist() == collator.target(row)
            (codes,) = vocabulary.find_audio(ids)
            assert torch.equal(codes, row["audio_codes"])


def test_nothing_generated_is_said_and_not_written(tmp_path):
    codec = ours()
    vocabulary = AudioVocabulary.for_codec(codec)
    streamer = AudioStreamer(vocabulary, codec, tmp_path / "out.wav")
    with pytest.warns(UserWarning, match="no audio was generated"):
        stream(streamer, [vocabulary.begin_of_audio_id], [vocabulary.end_of_audio_id])
    assert list(tmp_path.iterdir()) == []


def test_what_a_streamer_refuses(tmp_path):
    codec = ours()
    vocabulary = AudioVocabulary(TEXT_SIZE, codec.codebook_sizes)
    with pytest.raises(ValueError, match="out.mp3 is no .wav or .flac file"):
        AudioStreamer(vocabulary, codec, tmp_path / "out.mp3")
    with pytest.raises(ValueError, match="codebooks of"):
        AudioStreamer(AudioVocabulary(0, (10,)), codec, print)
    streamer = AudioStreamer(vocabulary, codec, print)
    with pytest.raises(ValueError, match="a batch of 2 is generated"):
        streamer.put(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="AudioLogitsProcessor"):
        stream(AudioStreamer(vocabulary, codec, print), [vocabulary.begin_of_audio_id], [5] * 1000)
