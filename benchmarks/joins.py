"""Do Lycodec's crops click where they meet? Streams of music, crop after crop and with overlap, looked at around joins.

    python benchmarks/joins.py ../runs/lycodec ../shared/audio/manifest.jsonl:music_48k_stereo/

The first argument is a run of benchmarks/lycodec_training.py, whose untrained and trained models are measured on the
clips that it holds out. Each clip goes through a `StreamingEncoder` and a `StreamingDecoder` twice, the second time
from half a crop on, and both channels count. Joins are where a crop ends without overlap; "elsewhere" is at eight
places of each crop, about tenths of it, but where crops begin with overlap; columns of the spectrogram lie on all of
these places, as decoded audio pulses with them. Medians of two measures, and clicks:

- jump: the step between the two samples at the place, by the root mean square of the steps within 50 ms of it
- high band: power above a quarter of the sampling rate within 2 ms of the place, to that within 50 ms, dB

A click is a place where a measure is above 99 % of those elsewhere in the same audio; "of all" is the share of jumps
that are above 99 % of those between any two samples.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lycodec_training import HELD_OUT, read
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, sosfiltfilt

from fsqcodec import LycodecModel, StreamingDecoder, StreamingEncoder
from fsqcodec.codecs import load_codec
from fsqcodec.data import find_clips

NUM_STARTS = 2
ELSEWHERE = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)  # of a crop, after joins
NEAR_SECONDS, AROUND_SECONDS = 0.002, 0.05
CLICK_PERCENTILE = 99
FLOOR = 1e-12  # of power, for silence


def main():
    run, music = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    clips = find_clips([f"{music}{name}" for name in HELD_OUT])
    codecs = {
        name: load_codec(run / folder, "cpu") for name, folder in (("untrained", "untrained"), ("trained", "last"))
    }
    config = codecs["trained"].model.config
    starts = [k * config.crop_length // NUM_STARTS for k in range(NUM_STARTS)]
    pieces = [read(clip, codecs["trained"])[:, start:] for clip in clips for start in starts]
    rows = {"the clips": pieces}
    for name, codec in codecs.items():
        for overlap in (False, True):
            label = f"{name}, {'overlap' if overlap else 'joined'}"
            rows[label] = [stream(codec.model, piece, overlap) for piece in pieces]
    titles = f"{'jump':>9}{'elsewhere':>11}{'clicks':>9}{'high band':>13}{'elsewhere':>12}{'clicks':>9}{'of all':>9}"
    print(f"{'':24}{titles}")
    for label, audio in rows.items():
        text = ""
        for number, unit in ((0, ""), (1, " dB")):
            joins, others = (measures(audio, config, shares)[number] for shares in ((0,), ELSEWHERE))
            share = (joins > np.percentile(others, CLICK_PERCENTILE)).mean()
            text += f"{np.median(joins):9.2f}{unit}{np.median(others):11.2f}{unit}{share:9.1%}"
        jumps, _ = measures(audio, config, (0,))
        above_all = (jumps > np.percentile(jumps_everywhere(audio, config), CLICK_PERCENTILE)).mean()
        print(f"{label:24}{text}{above_all:9.1%}")
    print(f"{len(joins)} joins, those of each channel counted")


@torch.inference_mode()
def stream(model: LycodecModel, audio: np.ndarray, overlap: bool) -> np.ndarray:
    """Audio `(2, num_samples)` through both streams, in chunks of 0.2 s."""
    encoder, decoder = StreamingEncoder(model, overlap=overlap), StreamingDecoder(model, overlap=overlap)
    chunks = torch.from_numpy(audio).float().split(model.config.sampling_rate // 5, dim=-1)
    codes = [encoder.push(chunk) for chunk in chunks] + [encoder.flush()]
    decoded = [decoder.push(piece) for piece in codes] + [decoder.flush()]
    return torch.cat(decoded, dim=-1)[0, :, : audio.shape[-1]].numpy()


def measures(pieces: list[np.ndarray], config, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Jump and high band, dB, these shares of a crop after every join of every channel."""
    near, around = (round(seconds * config.sampling_rate) for seconds in (NEAR_SECONDS, AROUND_SECONDS))
    high_pass = butter(6, 0.5, "highpass", output="sos")
    jumps, high_bands = [], []
    for channel in (channel for piece in pieces for channel in piece.astype(np.float64)):
        steps, power = np.diff(channel), np.square(sosfiltfilt(high_pass, channel)) + FLOOR
        starts = np.arange(1, len(channel) // config.crop_length + 1)
        columns = np.rint(np.array(shares) * config.crop_length / config.stft_hop_length).astype(int)
        places = (starts[:, None] * config.crop_length + columns * config.stft_hop_length).flatten()
        for place in places[places < len(channel) - around]:
            jumps.append(abs(steps[place - 1]) / _rms(steps[place - around : place + around]))
            ratio = power[place - near : place + near].mean() / power[place - around : place + around].mean()
            high_bands.append(10 * np.log10(ratio))
    return np.array(jumps), np.array(high_bands)


def jumps_everywhere(pieces: list[np.ndarray], config) -> np.ndarray:
    """The jump at every sample of every channel."""
    window = 2 * round(AROUND_SECONDS * config.sampling_rate)
    jumps = []
    for channel in (channel for piece in pieces for channel in piece.astype(np.float64)):
        steps = np.diff(channel)
        jumps.append(np.abs(steps) / np.sqrt(uniform_filter1d(np.square(steps), window) + FLOOR))
    return np.concatenate(jumps)


def _rms(x: np.ndarray) -> float:
    return np.sqrt(np.square(x).mean() + FLOOR)


if __name__ == "__main__":
    main()
