"""The stream of crops can be taken up anywhere, hears every clip in all its parts, and none that is evaluated."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clips import CLIP_DIR, ENGLISH
from fsqcodec.audio import read_audio, resample
from fsqcodec.data import Clip, find_clips
from fsqcodec.training.data import (
    Crops,
    collate,
    corpora,
    crop_batches,
    hold_out_clips,
    hold_out_speakers,
    level_normalized,
    without,
)

SHARED_MANIFEST = Path(__file__).parents[2] / "shared" / "audio" / "manifest.jsonl"
AUGMENTED = {"normalize_level": True, "gain_db": (-12.0, 3.0), "flip_polarity": True, "speed": (0.88, 1.12)}


def speech_crops(seed=0, **kwargs) -> Crops:
    return Crops(find_clips([CLIP_DIR]), 16000, 0.7, seed, **{**AUGMENTED, **kwargs})


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


def test_batches_are_the_same_from_any_start_with_any_workers_and_processes():
    """In a new process: the loader forks, and this one may hold the threads of other libraries, which crashed it."""
    process = multiprocessing.get_context("spawn").Process(target=check_batches)
    process.start()
    process.join()
    assert process.exitcode == 0


def check_batches():
    crops = speech_crops()
    expected = [collate([crops[k] for k in range(4 * i, 4 * i + 4)]) for i in range(9)]
    state = torch.get_rng_state()
    for first_batch, num_workers in ((0, 0), (0, 2), (5, 1)):
        batches = list(crop_batches(speech_crops(), 4, 9, first_batch=first_batch, num_workers=num_workers))
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


def test_an_epoch_hears_all_parts_of_all_clips_in_proportion_to_their_duration(tmp_path):
    crops = Crops(ramps(tmp_path, 1600, 400, 8000), 8000, 0.1, seed=3)
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
    crops = Crops(ramps(tmp_path, 805), 8000, 0.1, seed=0)
    starts = {int(counted(crops[k])[0]) for k in range(200)}
    assert starts == set(range(1, 7))


def test_short_clips_are_padded_on_the_right(tmp_path):
    crops = Crops(ramps(tmp_path, 300, 8000), 8000, 0.1, seed=0)
    short, long = sorted((crops[k] for k in range(len(crops))), key=lambda crop: crop[1])[:2]
    assert counted(short).tolist() == list(range(1, 301)) and not short[0][300:].any()
    batch = collate([long, short])
    assert batch["input_values"].shape == (2, 1, 800) and batch["input_values"].dtype == torch.float32
    assert batch["padding_mask"].sum(dim=1).tolist() == [800, 300]
    assert batch["padding_mask"][1, :300].all()


def test_crops_have_the_rate_they_are_asked_for_and_stereo_is_mixed(tmp_path):
    english = read_audio(ENGLISH, 16000)
    stereo = np.stack([english, np.zeros_like(english)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16000, subtype="FLOAT")
    (clip,) = find_clips([tmp_path])
    crop, length = Crops([clip], 24000, 30.0, seed=0)[0]
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
        Crops(find_clips([ENGLISH]), 16000, 30.0, 0, normalize_level=on)[0] for on in (True, False)
    )
    np.testing.assert_allclose(crop[: len(audio)], normalized, atol=1 / 32768)
    assert not torch.equal(crop, plain)


def test_gain_and_polarity_span_what_was_asked_for(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1000, 0.25), 8000, subtype="FLOAT")
    crops = Crops(find_clips([tmp_path]), 8000, 0.1, 0, gain_db=(-6.0, 20.0), flip_polarity=True)
    values = np.array([crops[k][0][0].item() for k in range(400)])
    assert np.abs(values).max() == 1  # clipped
    unclipped_db = 20 * np.log10(np.abs(values[np.abs(values) < 1]) / 0.25)
    assert -6 <= unclipped_db.min() < -5.5 and 11.5 < unclipped_db.max() <= 20 * np.log10(4)
    assert 0.4 < (values < 0).mean() < 0.6


def test_speed_changes_tempo_and_pitch_and_not_the_length(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(32000) / 8000)
    soundfile.write(tmp_path / "a.wav", tone, 8000, subtype="FLOAT")
    crops = Crops(find_clips([tmp_path]), 8000, 1.0, 0, speed=(0.88, 1.12))
    pitches = []
    for k in range(60):
        crop, length = crops[k]
        assert length == len(crop) == 8000
        pitches.append(int(torch.fft.rfft(crop * torch.hann_window(8000)).abs().argmax()))  # bins are 1 Hz
    assert 880 <= min(pitches) < 900 and 1100 < max(pitches) <= 1120


def test_the_cache_holds_no_more_than_it_may(tmp_path):
    crops = Crops(ramps(tmp_path, 1000, 1000, 1000), 8000, 0.1, 0, cache_bytes=4500)
    for k in range(2 * len(crops)):
        crops[k]
    assert sum(clip.nbytes for clip in crops._held.values()) == 4000


def test_reading_ahead_fills_the_cache_and_changes_no_crop(tmp_path):
    clips = ramps(tmp_path, 1000, 1000, 1000)
    crops, ahead = (Crops(clips, 8000, 0.1, 0, cache_bytes=4500) for _ in range(2))
    ahead.read_ahead()
    assert sorted(ahead._held) == [0, 1]
    assert_same_crops([ahead[k] for k in range(len(crops))], [crops[k] for k in range(len(crops))])


def named(*speakers: str | None) -> list[Clip]:
    return [Clip(f"{number}.wav", Path(f"{number}.wav"), None, speaker) for number, speaker in enumerate(speakers)]


def test_what_is_evaluated_is_not_trained_on():
    clips, evaluation = named("a", "b", "a", "c"), named("a")
    left = without(clips, evaluation)  # nor another recording of the speaker
    assert [clip.speaker for clip in left] == ["b", "c"]
    with pytest.raises(ValueError, match="1 of 3 clips tell no speaker, x.wav among them"):
        without([*clips, Clip("x.wav", Path("x.wav"))], evaluation)


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
    crops = Crops(training[:20], 16000, 2.0, seed=0)
    assert all(0 < length <= 32000 and crop.std() > 1e-4 for crop, length in (crops[k] for k in range(20)))


def test_what_is_wrong_is_said():
    clips = find_clips([ENGLISH])
    with pytest.raises(ValueError, match="no clips to train on"):
        Crops([], 16000, 1.0, 0)
    with pytest.raises(ValueError, match="crops have 0 samples"):
        Crops(clips, 16000, 0.0, 0)
    with pytest.raises(ValueError, match=r"speed is \(0, 1\)"):
        Crops(clips, 16000, 1.0, 0, speed=(0, 1))
    with pytest.raises(ValueError, match=r"gain_db is \(3, -3\)"):
        Crops(clips, 16000, 1.0, 0, gain_db=(3, -3))
    with pytest.raises(ValueError, match="batch of 5 crops can't be dealt out to 2"):
        crop_batches(Crops(clips, 16000, 1.0, 0), 5, 1, num_processes=2)
