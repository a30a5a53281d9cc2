"""`datasets.map` gives every row the tokens of its clip alone, whatever the codec, batch and kind of data set."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher

from fsqcodec.codecs import codec_of
from fsqcodec.tokenization import TokenizeAudio
from recordings import write_recordings
from test_codecs import dac, encodec, mimi, ours

NUM_CLIPS = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_recordings(folder, NUM_CLIPS)


def rows_of(corpus, held) -> datasets.Dataset:
    folder, clips = corpus
    audio = [held(folder / name, clip) for name, clip in clips.items()]
    return datasets.Dataset.from_dict({"name": list(clips), "audio": audio})


def path(file, _):
    return str(file)


def content(file, _):
    return {"path": file.name, "bytes": file.read_bytes()}


def assert_tokens(rows, corpus, codec):
    clips = corpus[1]
    assert [row["name"] for row in rows] == list(clips)
    for row in rows:
        (codes,) = codec.encode([clips[row["name"]]])
        assert np.array_equal(row["audio_codes"], codes[0] if len(codes) == 1 else codes)
        assert (row["num_frames"], row["num_samples"]) == (codes.shape[-1], len(clips[row["name"]]))


@pytest.mark.parametrize("held", [path, content], ids=["paths", "bytes"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_columns_are_added_and_others_kept(corpus, held, batch_size):
    model, extractor = ours()
    rows = rows_of(corpus, held).cast_column("audio", datasets.Audio())
    mapped = rows.map(TokenizeAudio(model, extractor), batched=True, batch_size=batch_size)
    assert mapped.column_names == ["name", "audio", "audio_codes", "num_frames", "num_samples"]
    assert mapped.features["audio_codes"] == datasets.List(datasets.Value("int32"))
    assert_tokens(mapped.remove_columns("audio"), corpus, codec_of(model, extractor))


def test_streamed_data_sets(corpus):
    model, extractor = ours()
    rows = rows_of(corpus, content).cast_column("audio", datasets.Audio(decode=False)).to_iterable_dataset()
    mapped = rows.map(TokenizeAudio(model, extractor), batched=True, batch_size=4)
    assert_tokens([dict(row) for row in mapped], corpus, codec_of(model, extractor))


@pytest.mark.parametrize("make", [encodec, dac, mimi])
def test_several_codebooks_stay_rows(corpus, make):
    model, extractor = make()
    model.eval()
    codec = codec_of(model, extractor)
    rows = rows_of(corpus, lambda _, clip: {"array": clip, "sampling_rate": codec.input_sampling_rate})
    mapped = rows.map(TokenizeAudio(model, extractor), batched=True, batch_size=4)
    assert len(mapped[0]["audio_codes"]) == len(codec.codebook_sizes) > 1
    assert_tokens(mapped.remove_columns("audio"), corpus, codec)


def test_torchcodecs_decoders(corpus):
    """As `datasets` hands them out; torchcodec itself is not needed to have their interface."""
    model, extractor = ours()
    clips = corpus[1]

    def decoder(clip):
        samples = SimpleNamespace(data=torch.tensor(clip)[None], sample_rate=16000)
        return SimpleNamespace(get_all_samples=lambda: samples)

    columns = TokenizeAudio(model, extractor)({"audio": [decoder(clip) for clip in clips.values()]})
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    for row, codes in zip(rows, codec_of(model, extractor).encode(list(clips.values()))):
        assert np.array_equal(row["audio_codes"], codes[0])


def test_a_second_map_comes_from_the_cache():
    model, extractor = ours()
    tokenize = TokenizeAudio(model, extractor)
    before = Hasher.hash(tokenize)
    tokenize({"audio": [{"array": np.zeros(100), "sampling_rate": 16000}]})
    assert Hasher.hash(tokenize) == before == Hasher.hash(TokenizeAudio(model, extractor))


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"path": "nowhere.wav", "bytes": None}, "nowhere.wav: nowhere.wav is not a file"),
        ({"path": "x.wav", "bytes": b"text"}, "x.wav: .* is not an audio file"),
        ({"array": [[0.1, 0.1], [0.1, 0.1]], "sampling_rate": 16000}, "clip 0 of the batch .* 2 channels"),
        ({"array": [np.nan], "sampling_rate": 16000}, "clip 0 of the batch has NaN"),
        (7, "a int is no audio"),
        (None, "a NoneType is no audio"),
    ],
)
def test_a_bad_clip_is_named(held, reason):
    with pytest.raises(ValueError, match=reason):
        TokenizeAudio(*ours())({"audio": [held]})


def test_another_column(corpus):
    model, extractor = ours()
    rows = rows_of(corpus, path).rename_column("audio", "file")
    with pytest.raises(ValueError, match="no column 'audio' among name, file"):
        rows.map(TokenizeAudio(model, extractor), batched=True)
    mapped = rows.map(TokenizeAudio(model, extractor, audio_column="file"), batched=True)
    assert_tokens(mapped, corpus, codec_of(model, extractor))
