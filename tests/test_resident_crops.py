"""Crops cut on a device are those that are cut from files."""

import numpy as np
import pytest
import soundfile
import torch

from clips import CLIP_DIR
from fsqcodec.audio import resample
from fsqcodec.data import find_clips
from fsqcodec.training.data import Crops, WeightedClips, crop_batches
from fsqcodec.training.resident_crops import ResidentCrops, resampled, resident_if_they_fit

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
AUGMENTED = {"normalize_level": True, "gain_db": (-12.0, 3.0), "flip_polarity": True}


def speech_crops(folder, num_channels=1, **kwargs) -> Crops:
    """Of clips of all lengths, one shorter than a crop and one of another rate and two channels, by two weights."""
    clips = find_clips([CLIP_DIR])
    audio, rate = clips[0].read("mix")
    soundfile.write(folder / "short.wav", audio[rate : rate + rate // 3], rate)
    soundfile.write(folder / "stereo.wav", np.stack([audio, -0.3 * audio[::-1]], axis=1), 24000)
    sources = [WeightedClips(clips, 2.0), WeightedClips(find_clips([folder / "*.wav"]))]
    return Crops(sources, 16000, 0.7, 3, num_channels=num_channels, **{**AUGMENTED, **kwargs})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_crops_are_the_same_to_the_bit(tmp_path, num_channels, device):
    crops = speech_crops(tmp_path, num_channels)
    resident = ResidentCrops(crops, device)
    lengths = set()
    for batch, wanted in zip(crop_batches(resident, 8, 12), crop_batches(crops, 8, 12), strict=True):
        assert batch.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert batch[name].dtype == tensor.dtype and torch.equal(batch[name].cpu(), tensor)
        lengths.update(batch["padding_mask"].sum(dim=1).tolist())
    assert len(lengths) == 2 and max(lengths) == 11200
    assert resident.clips == crops.clips


@pytest.mark.parametrize("device", DEVICES)
def test_crops_of_another_speed_are_nearly_the_same(tmp_path, device):
    crops = speech_crops(tmp_path, speed=(0.88, 1.12))
    positions = range(5000, 5128)
    batch, wanted = ResidentCrops(crops, device).batch(positions), crops.batch(positions)
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
    assert torch.equal(batch["padding_mask"], wanted["padding_mask"])
    assert not batch["input_values"][batch["padding_mask"][:, None] == 0].any()
    difference = (batch["input_values"] - wanted["input_values"]).square().mean(dim=(1, 2))
    assert (10 * torch.log10(wanted["input_values"].square().mean(dim=(1, 2)) / difference)).min() > 45


def test_a_rate_for_each_item():
    times = np.arange(8000) / 8000
    audio = (0.5 * np.sin(2 * np.pi * 1000 * times) + 0.3 * np.cos(2 * np.pi * 3900 * times)).astype(np.float32)
    rates = torch.tensor([[7200], [8000], [9000]])
    outputs = resampled(torch.from_numpy(audio).expand(3, 1, -1), rates, 8000, 7000)
    assert torch.equal(outputs[1, 0], torch.from_numpy(audio[:7000]))
    for output, rate in zip(outputs[::2, 0].numpy(), (7200, 9000)):
        np.testing.assert_allclose(output[100:-100], resample(audio, rate, 8000)[100:6900], atol=2e-3)


def test_the_processor_keeps_reading_files(tmp_path):
    crops = speech_crops(tmp_path)
    assert resident_if_they_fit(crops, torch.device("cpu")) is crops
