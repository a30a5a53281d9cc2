"""Does a codec hum at its frame rate? What lies between 2 and 7 kHz of decoded speech, on multiples of the frame rate
and halfway between them.

    python benchmarks/buzz.py ../shared/audio/speech_eval speech-3kbps [CODEC ...]

Codecs are what `load_codec` takes, mono ones that have frames. The comb is the mean level, in dB, of the bins less than
8 Hz from a multiple of the codec's frame rate less that of the bins as near to the middles between multiples, in Hann
windows of 2,048 samples at 16 kHz that are less than 30 dB below a clip's loudest; recordings have 0.
"""

import sys

import numpy as np
import torch
from scipy.signal import stft

from fsqcodec.audio import resample
from fsqcodec.codecs import load_codec
from fsqcodec.data import find_clips

SAMPLING_RATE = 16000
WINDOW_LENGTH = 2048
BAND_HZ = 2000, 7000
NEAR_HZ = 8
DYNAMIC_RANGE_DB = 30
FLOOR = 1e-12  # of power


def main():
    torch.set_num_threads(1)
    clips = find_clips([sys.argv[1]])
    print(f"{len(clips)} clips; comb in dB{'recorded':>14}{'decoded':>10}{'worst clip':>12}")
    for name in sys.argv[2:]:
        codec = load_codec(name, "cpu")
        recorded = [resample(*clip.read("mix"), codec.input_sampling_rate) for clip in clips]
        decoded = codec.decode(codec.encode(recorded), [len(audio) for audio in recorded])
        before = [comb(audio, codec.input_sampling_rate, codec.frame_rate) for audio in recorded]
        after = [comb(audio, codec.output_sampling_rate, codec.frame_rate) for audio in decoded]
        print(f"{name:24}{np.mean(before):12.2f}{np.mean(after):10.2f}{np.max(after):12.2f}")


def comb(audio: np.ndarray, sampling_rate: int, frame_rate: float) -> float:
    """Of one clip `(num_samples,)`, dB."""
    audio = resample(audio, sampling_rate, SAMPLING_RATE)
    frequencies, _, spectra = stft(audio, SAMPLING_RATE, nperseg=WINDOW_LENGTH, noverlap=WINDOW_LENGTH * 3 // 4)
    is_high = (frequencies > BAND_HZ[0]) & (frequencies < BAND_HZ[1])
    frequencies, powers = frequencies[is_high], np.abs(spectra[is_high]) ** 2 + FLOOR
    levels = 10 * np.log10(powers.mean(axis=0))
    powers = powers[:, levels > levels.max() - DYNAMIC_RANGE_DB]
    from_multiple = np.abs(frequencies - frame_rate * np.round(frequencies / frame_rate))
    on, between = from_multiple < NEAR_HZ, from_multiple > frame_rate / 2 - NEAR_HZ
    return float((10 * np.log10(powers[on])).mean() - (10 * np.log10(powers[between])).mean())


if __name__ == "__main__":
    main()
