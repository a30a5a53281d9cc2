"""The stream of crops can be taken up anywhere, hears every clip in all its parts, and none that is evaluated."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clips import CLIP_DIR, ENGLISH
from fsqcodec.audio import read_audio, resample
from fsqcodec.data import Clip, find_clips
from fsqcodec.training import data
from fsqcodec.training.data import (
    BLOCK_CROPS,
    Crops,
    WeightedClips,
    corpora,
    crop_batches,
    hold_out,
    hold_out_clips,
    hold_out_speakers,
    level_normalized,
    made_ahead,
    split_by_weight,
    training_sources,
    without,
)
from fsqcodec.training.recipe import Source

SHARED_MANIFEST = Path(__file__).parents[2] / "shared" / "audio" / "manifest.jsonl"
AUGMENTED = {"normalize_level": True, "gain_db": (-12.0, 3.0), "flip_polarity": True, "speed": (0.88, 1.12)}


def crops_of(clips: list[Clip], *args, **kwargs) -> Crops:
    return Crops([WeightedClips(clips)], *args, **kwargs)


def speech_crops(seed=0, **kwargs) -> Crops:
    return crops_of(find_clips([CLIP_DIR]), 16000, 0.7, seed, **{**AUGMENTED, **kwargs})


def ramps(folder: Path, *lengths: int) -> list[Clip]:
    """Clips at 8 kHz whose samples all differ, within a clip and between clips: 1 / 32768 and up."""
    first = 1
    for number, length in enumerate(lengths):
        samples = np.arange(first, first + length, dtype=np.int16)
        soundfile.write(folder / f"{number}.wav", samples, 8000)
        first += length
    return find_clips([folder])


def counted(crop: tuple[torch.Tensor, int]) -> np.ndarray:
    """The samples of a crop of `ramps`, as their integers."""
    return np.rint(crop[0][: crop[1]].numpy() * 32768).astype(int)


def assert_same_crops(crops, others):
    for (audio, length), (other_audio, other_length) in zip(crops, others, strict=True):
        assert length == other_length and torch.equal(audio, other_audio)


def test_a_crop_depends_on_seed_and_position_alone():
    positions = [0, 1, 7, 30, 1000, 123_456_789]
    crops = speech_crops()
    expected = [crops[k] for k in positions]
    without_cache = speech_crops(cache_bytes=0)
    assert_same_crops([without_cache[k] for k in reversed(positions)], reversed(expected))
    assert not any(torch.equal(speech_crops(seed=1)[k][0], crop) for k, (crop, _) in zip(positions, expected))
    assert len({crop.numpy().tobytes() for crop, _ in expected}) == len(positions)


def test_batches_are_the_same_from_any_start_with_any_number_of_processes():
    crops = speech_crops()
    expected = [crops.batch(range(4 * i, 4 * i + 4)) for i in range(9)]
    state = torch.get_rng_state()
    for first_batch in (0, 5):
        batches = list(crop_batches(speech_crops(), 4, 9, first_batch=first_batch))
        for batch, wanted in zip(batches, expected[first_batch:], strict=True):
            assert batch.keys() == wanted.keys() and all(torch.equal(batch[name], wanted[name]) for name in wanted)
    shares = [
        list(crop_batches(speech_crops(), 4, 9, first_batch=2, process_index=process, num_processes=2))
        for process in range(2)
    ]
    for *halves, wanted in zip(*shares, expected[2:], strict=True):
        assert torch.equal(
            torch.stack([half["input_values"] for half in halves], dim=1).flatten(0, 1), wanted["input_values"]
        )
    assert torch.equal(torch.get_rng_state(), state)


def test_sources_are_heard_by_their_weights_and_evenly_within(tmp_path):
    """Whatever their durations; in every stretch of crops, from whichever crop it begins."""
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
    long, short = ramps(tmp_path / "long", 16000, 8000), ramps(tmp_path / "short", 2400)
    crops = Crops([WeightedClips(long, 3.0), WeightedClips(short)], 8000, 0.1, seed=5)
    clips = crops.draw(range(40 * BLOCK_CROPS)).clips
    assert (clips == 2).sum() == 10 * BLOCK_CROPS
    assert (clips == 0).sum() == pytest.approx(20 * BLOCK_CROPS, abs=20)  # an epoch is not over
    for block in range(40):
        assert (clips[BLOCK_CROPS * block :][:BLOCK_CROPS] == 2).sum() == BLOCK_CROPS // 4
    per_batch = (clips.reshape(-1, 64) == 2).sum(axis=1)
    assert 2 < per_batch.std() < 5 and per_batch.max() < 36  # drawn, 16 on average
    starts = crops.draw(range(BLOCK_CROPS)).starts[clips[:BLOCK_CROPS] == 2]
    thirds = 3 * starts // (2400 - 800 + 1)
    assert (np.sort(thirds[:255].reshape(-1, 3), axis=1) == [0, 1, 2]).all()  # each epoch goes through all three
    again = Crops([WeightedClips(long, 3.0), WeightedClips(short)], 8000, 0.1, seed=5)
    for k in (39_000, 5, 12_345):
        assert again.draw([k]).clips == clips[k]


def test_weights_split_a_number_without_going_back():
    weights = [0.2, 5.0, 1e-3, 0.7]
    counts = np.array([split_by_weight(number, weights) for number in range(3000)])
    assert (counts.sum(axis=1) == range(3000)).all() and (np.diff(counts, axis=0) >= 0).all()
    assert np.abs(counts - np.outer(range(3000), np.divide(weights, sum(weights)))).max() < 3
    assert split_by_weight(10**15, [1.0, 3.0]) == [25 * 10**13, 75 * 10**13]


def test_an_epoch_hears_all_parts_of_all_clips_in_proportion_to_their_duration(tmp_path):
    crops = crops_of(ramps(tmp_path, 1600, 400, 8000), 8000, 0.1, seed=3)
    assert len(crops) == 2 + 1 + 10
    orders = []  # of the clips, in each epoch
    for epoch in range(3):
        heard = [counted(crops[epoch * len(crops) + k]) for k in range(len(crops))]
        assert all((np.diff(samples) == 1).all() for samples in heard)  # one crop is one stretch of one clip
        clip_of_crop = np.searchsorted([1601, 2001, 10001], [samples[0] for samples in heard], side="right")
        assert np.bincount(clip_of_crop).tolist() == [2, 1, 10]
        starts = sorted(samples[0] - 2001 for samples in heard if samples[0] >= 2001)
        assert [10 * start // 7201 for start in starts] == list(range(10))  # one in each tenth of where crops begin
        orders.append(tuple(clip_of_crop))
    assert len(set(orders)) == 3


def test_the_last_samples_of_a_clip_are_heard(tmp_path):
    crops = crops_of(ramps(tmp_path, 805), 8000, 0.1, seed=0)
    starts = {int(counted(crops[k])[0]) for k in range(200)}
    assert starts == set(range(1, 7))


def test_short_clips_are_padded_on_the_right(tmp_path):
    crops = crops_of(ramps(tmp_path, 300, 8000), 8000, 0.1, seed=0)
    short, long = sorted((crops[k] for k in range(len(crops))), key=lambda crop: crop[1])[:2]
    assert counted(short).tolist() == list(range(1, 301)) and not short[0][300:].any()
    assert (short[1], long[1]) == (300, 800)
    batch = crops.batch(range(len(crops)))
    assert batch["input_values"].shape == (11, 1, 800) and batch["input_values"].dtype == torch.float32
    lengths = batch["padding_mask"].sum(dim=1).tolist()
    assert sorted(lengths) == [300] + 10 * [800]
    assert batch["padding_mask"][lengths.index(300), :300].all()


def test_crops_have_the_rate_they_are_asked_for_and_stereo_is_mixed(tmp_path):
    english = read_audio(ENGLISH, 16000)
    stereo = np.stack([english, np.zeros_like(english)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16000, subtype="FLOAT")
    (clip,) = find_clips([tmp_path])
    crop, length = crops_of([clip], 24000, 30.0, seed=0)[0]
    expected = resample(english / 2, 16000, 24000)
    assert length == len(expected)
    np.testing.assert_allclose(crop[:length], expected, atol=0.5 / 32768 + 1e-6)


def test_level_normalisation_makes_loud_and_quiet_clips_alike():
    audio = read_audio(ENGLISH, 16000)
    normalized = level_normalized(audio)
    loudest = np.sort(np.abs(audio))[-len(audio) // 1000 :]
    np.testing.assert_allclose(normalized, np.clip(audio * 0.75 / loudest.mean(), -1, 1), rtol=1e-5)
    np.testing.assert_allclose(level_normalized(0.01 * audio), normalized, atol=1e-6)
    assert not level_normalized(np.zeros(100, dtype=np.float32)).any()
    (crop, _), (plain, _) = (
        crops_of(find_clips([ENGLISH]), 16000, 30.0, 0, normalize_level=on)[0] for on in (True, False)
    )
    np.testing.assert_allclose(crop[: len(audio)], normalized, atol=1 / 32768)
    assert not torch.equal(crop, plain)


def test_gain_and_polarity_span_what_was_asked_for(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1000, 0.25), 8000, subtype="FLOAT")
    crops = crops_of(find_clips([tmp_path]), 8000, 0.1, 0, gain_db=(-6.0, 20.0), flip_polarity=True)
    values = np.array([crops[k][0][0].item() for k in range(400)])
    assert np.abs(values).max() == 1  # clipped
    unclipped_db = 20 * np.log10(np.abs(values[np.abs(values) < 1]) / 0.25)
    assert -6 <= unclipped_db.min() < -5.5 and 11.5 < unclipped_db.max() <= 20 * np.log10(4)
    assert 0.4 < (values < 0).mean() < 0.6


def test_speed_changes_tempo_and_pitch_and_not_the_length(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(32000) / 8000)
    soundfile.write(tmp_path / "a.wav", tone, 8000, subtype="FLOAT")
    crops = crops_of(find_clips([tmp_path]), 8000, 1.0, 0, speed=(0.88, 1.12))
    pitches = []
    for k in range(60):
        crop, length = crops[k]
        assert length == len(crop) == 8000
        pitches.append(int(torch.fft.rfft(crop * torch.hann_window(8000)).abs().argmax()))  # bins are 1 Hz
    assert 880 <= min(pitches) < 900 and 1100 < max(pitches) <= 1120


def test_the_cache_holds_no_more_than_it_may(tmp_path):
    crops = crops_of(ramps(tmp_path, 1000, 1000, 1000), 8000, 0.1, 0, cache_bytes=4500)
    for k in range(2 * len(crops)):
        crops[k]
    assert sum(clip.nbytes for clip in crops._held.values()) == 4000


def test_what_is_made_ahead_comes_in_order_and_threads_end(monkeypatch):
    monkeypatch.setattr(data, "NUM_THREADS", 3)
    begun = []

    def make(item: int) -> int:
        begun.append(item)
        time.sleep(0.01 * (item % 3 == 0))
        if item == 12:
            raise ValueError("the twelfth")
        return item**2

    def made_ahead_threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("made_ahead")]

    assert list(made_ahead(make, range(10), 4)) == [item**2 for item in range(10)]
    failing = made_ahead(make, range(10, 20), 4)
    assert [next(failing), next(failing)] == [100, 121]
    with pytest.raises(ValueError, match="the twelfth"):
        next(failing)
    assert not made_ahead_threads()
    begun.clear()
    stopped = made_ahead(make, range(1000), 4)
    assert [next(stopped) for _ in range(3)] == [0, 1, 4]
    assert made_ahead_threads()
    stopped.close()
    assert not made_ahead_threads() and len(begun) <= 7


def test_a_clip_that_can_not_be_read_stops_the_batches(tmp_path):
    clips = ramps(tmp_path, 8000, 8000)
    crops = crops_of(clips, 8000, 0.1, 0)
    clips[0].audio.unlink()
    with pytest.raises(FileNotFoundError, match="0.wav is not a file"):
        list(crop_batches(crops, 4, 10))


def named(*speakers: str | None) -> list[Clip]:
    return [Clip(f"{number}.wav", Path(f"{number}.wav"), None, speaker) for number, speaker in enumerate(speakers)]


def test_what_is_evaluated_is_not_trained_on():
    clips, evaluation = named("a", "b", "a", "c"), named("a")
    left = without(clips, evaluation)  # nor another recording of the speaker
    assert [clip.speaker for clip in left] == ["b", "c"]
    with pytest.raises(ValueError, match="1 of 3 clips tell no speaker, x.wav among them"):
        without([*clips, Clip("x.wav", Path("x.wav"))], evaluation)


def test_speakers_of_segments_are_compared(tmp_path):
    segments = [[0.0, 0.1, "x.mp3", "a"], [0.1, 0.1, "y.mp3", "b"]]
    rows = [
        {"path": "0.wav", "speaker": "mixed(2)", "segments": segments},
        {"path": "1.wav", "speaker": "mixed(2)", "segments": [[0.0, 0.1, "z.mp3", "c"], [0.1, 0.1, "z.mp3", "d"]]},
        {"path": "2.wav", "speaker": "e", "segments": None},
        {"path": "3.wav", "speaker": "f", "segments": [[0.0, 0.1, "z.mp3", "f"]]},
    ]
    ramps(tmp_path, 10, 20, 30, 40)
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = find_clips([manifest])
    assert [clip.speakers for clip in clips] == [{"a", "b"}, {"c", "d"}, {"e"}, {"f"}]
    assert [clip.name for clip in without(clips, named("b", "e"))] == ["1.wav", "3.wav"]
    assert [clip.name for clip in without(named("a", "x"), clips)] == ["1.wav"]
    drawn = [hold_out_speakers(clips, 1, seed)[1] for seed in range(10)]
    assert {clip.name for held_out in drawn for clip in held_out} == {"2.wav", "3.wav"}  # one speaker each
    with pytest.raises(ValueError, match="3 of 6 speakers can't be held out.*; 2 have clips of their own"):
        hold_out_speakers(clips, 3, seed=0)
    rows[0]["segments"][0][3] = None
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="1 of 4 clips tell no speaker, 0.wav among them"):
        without(find_clips([manifest]), named("x"))
    manifest.write_text(json.dumps({"path": "0.wav", "segments": [["a"]]}))
    with pytest.raises(ValueError, match="expected segments of .start, length, path, speaker., got other ones"):
        find_clips([manifest])


def test_training_sources_leave_out_the_evaluation_and_the_validation(tmp_path):
    """Of speech the speakers, of other sources the files."""
    for folder, speakers in (("speech", "abc"), ("more", "bcde"), ("sounds", ["a", None])):
        (tmp_path / folder).mkdir()
        ramps(tmp_path / folder, *(10 * (number + 1) for number in range(len(speakers))))
        rows = [{"path": f"{number}.wav", "speaker": speaker} for number, speaker in enumerate(speakers)]
        (tmp_path / folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speech, more, sounds = (str(tmp_path / folder / "clips.jsonl") for folder in ("speech", "more", "sounds"))
    quiet = Source(sounds, 0.1, speech=False)
    evaluation = [f"{speech}:0", f"{sounds}:1"]
    sources = training_sources([Source(more, 2.0), speech, quiet], evaluation)
    assert [(source.weight, [clip.speaker for clip in source.clips]) for source in sources] == [
        (1.0, ["b", "c"]),
        (2.0, ["b", "c", "d", "e"]),
        (0.1, ["a"]),
    ]
    left, validation = hold_out(sources, 1, 10, seed=0)
    (held_out,) = validation
    (other,) = {"b", "c"} - {held_out.speaker}
    assert [[clip.speaker for clip in source.clips] for source in left] == [[other], [other, "d", "e"], ["a"]]
    assert hold_out(sources, 0, 10, seed=0) == (sources, []) == hold_out(sources, 1, 0, seed=0)
    with pytest.raises(ValueError, match="1 of 1 clips tell no speaker, 1.wav among them.*`speech: false`"):
        training_sources([Source(sounds)], evaluation[:1])
    with pytest.raises(ValueError, match="expected each clip in one source, got 1.wav in two"):
        Crops(training_sources([speech, Source(f"{speech}:1")], []), 8000, 0.1, 0)
    with pytest.raises(ValueError, match="no clips to train on"):
        Crops(training_sources([speech, Source(f"{speech}:0")], evaluation), 8000, 0.1, 0)


def test_files_are_recognised_by_any_path_and_speakers_need_not_be_known(tmp_path):
    clips = ramps(tmp_path, 10, 20)
    (same,) = find_clips([f"{tmp_path}/../{tmp_path.name}/1.wav"])
    assert [clip.name for clip in without(clips, [same])] == [clips[0].name]


def test_held_out_speakers_are_whole_and_drawn_by_the_seed():
    clips = named(*"abcabcdeedf")
    training, validation = hold_out_speakers(clips, 2, seed=0)
    assert sorted(training + validation, key=clips.index) == clips
    assert len({clip.speaker for clip in validation}) == 2
    assert without(training, validation) == training
    _, of_reversed = hold_out_speakers(clips[::-1], 2, seed=0)
    assert set(of_reversed) == set(validation)
    assert len({tuple(hold_out_speakers(clips, 2, seed)[1]) for seed in range(20)}) > 5
    with pytest.raises(ValueError, match="6 of 6 speakers"):
        hold_out_speakers(clips, 6, seed=0)
    with pytest.raises(ValueError, match="tell no speaker"):
        hold_out_speakers(named("a", None), 1, seed=0)


def test_clips_are_held_out_where_speakers_are_unknown():
    clips = [Clip(str(number), Path(f"{number}.wav")) for number in range(40)]
    training, validation = hold_out_clips(clips, 24, seed=0)
    assert len(validation) == 4 and sorted(training + validation, key=clips.index) == clips
    assert hold_out_clips(clips[:9], 24, seed=0) == (clips[:9], [])
    assert len(hold_out_clips(clips, 2, seed=0)[1]) == 2


def test_corpora_are_counted_with_their_licences(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "b.wav", np.zeros(16000), 8000)
    rows = [
        {"path": "a.wav", "speaker": "x", "source": "one", "license": "CC0"},
        {"path": "./a.wav", "speaker": "x", "source": "one", "license": "CC0"},
        {"path": "b.wav", "speaker": "y", "source": "two", "license": None},
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"num_speakers": 1, "hours": 2 / 3600}
    assert corpora(find_clips([tmp_path / "clips.jsonl"])) == [
        {"source": "one", "license": "CC0", "num_clips": 2, **shared},
        {"source": "two", "license": None, "num_clips": 1, **shared},
    ]


@pytest.mark.skipif(not SHARED_MANIFEST.exists(), reason=f"needs the speech that {SHARED_MANIFEST} lists")
def test_the_shared_training_speech_is_disjoint_from_the_evaluation():
    training = find_clips([f"{SHARED_MANIFEST}:speech_train/"])
    evaluation = find_clips([f"{SHARED_MANIFEST}:speech_eval"])
    assert without([*training, evaluation[3]], evaluation) == training
    crops = crops_of(training[:20], 16000, 2.0, seed=0)
    assert all(0 < length <= 32000 and crop.std() > 1e-4 for crop, length in (crops[k] for k in range(20)))


def test_what_is_wrong_is_said():
    clips = find_clips([ENGLISH])
    with pytest.raises(ValueError, match="no clips to train on"):
        crops_of([], 16000, 1.0, 0)
    with pytest.raises(ValueError, match="crops have 0 samples"):
        crops_of(clips, 16000, 0.0, 0)
    with pytest.raises(ValueError, match=r"speed is \(0, 1\)"):
        crops_of(clips, 16000, 1.0, 0, speed=(0, 1))
    with pytest.raises(ValueError, match=r"gain_db is \(3, -3\)"):
        crops_of(clips, 16000, 1.0, 0, gain_db=(3, -3))
    with pytest.raises(ValueError, match="expected weights above 0, got 0.0"):
        Crops([WeightedClips(clips, 0.0)], 16000, 1.0, 0)
    with pytest.raises(ValueError, match="batch of 5 crops can't be dealt out to 2"):
        crop_batches(crops_of(clips, 16000, 1.0, 0), 5, 1, num_processes=2)
