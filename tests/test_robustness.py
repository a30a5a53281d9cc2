"""Robustness of tokens: answers known by hand for PCM, and a real small model."""

import json
import math

import numpy as np
import pytest

from clips import speech
from fsqcodec import CodecFeatureExtractor
from fsqcodec.audio import resample
from fsqcodec.codecs import Codec, TransformersCodec
from fsqcodec.evaluation.robustness import robustness
from small_configs import small_model


class Pcm(Codec):
    """Each sample is a frame: the interval of [-1, 1) it lies in, as one number or as several digits."""

    def __init__(self, codebook_sizes=(256,), quantization_levels=None, output_sampling_rate=8000):
        self.name = "pcm"
        self.input_sampling_rate = self.frame_rate = 8000
        self.output_sampling_rate = output_sampling_rate
        self.codebook_sizes = list(codebook_sizes)
        self.quantization_levels = quantization_levels
        self.num_intervals = math.prod(codebook_sizes)

    def encode(self, audio):
        assert all(clip.dtype == np.float32 for clip in audio)
        intervals = [np.floor((clip + 1) / 2 * self.num_intervals).astype(np.int64) for clip in audio]
        clipped = [interval.clip(0, self.num_intervals - 1) for interval in intervals]
        return [np.stack(np.unravel_index(interval, self.codebook_sizes)) for interval in clipped]

    def decode(self, codes, num_samples=None):
        intervals = [np.ravel_multi_index(tuple(clip), self.codebook_sizes) for clip in codes]  # refuses invalid codes
        middles = [((2 * interval + 1) / self.num_intervals - 1).astype(np.float32) for interval in intervals]
        decoded = [resample(clip, self.input_sampling_rate, self.output_sampling_rate) for clip in middles]
        return [clip[:length] for clip, length in zip(decoded, num_samples)]


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    audio = speech(8000)
    return [audio[8000:14000], audio[20000:23001]]


def test_shift_and_gain_of_pcm_are_those_computed_by_hand(clips):
    result = robustness(Pcm(quantization_levels=[16, 16]), clips)
    assert (result["num_clips"], result["num_tokens"]) == (2, 6000 + 3001)
    tokens = [np.floor((clip + 1) * 128) for clip in clips]
    changed_tokens = {
        "shift": [np.concatenate([[128], clip[:-1]]) for clip in tokens],  # 128 is silence
        "gain": [np.floor((clip * np.float32(10 ** (-1 / 20)) + 1) * 128) for clip in clips],
    }
    before = np.concatenate(tokens)
    for name, after in changed_tokens.items():
        after = np.concatenate(after)
        low_digit, high_digit = np.mean(before % 16 != after % 16), np.mean(before // 16 != after // 16)
        assert result[name]["tokens_changed_share"] == pytest.approx(np.mean(before != after))
        assert result[name]["digits_changed_share"] == pytest.approx((low_digit + high_digit) / 2)
        assert 0.1 < result[name]["tokens_changed_share"] < 1


def test_noise_is_40_db_below_the_clip():
    """Noise of half an interval's width, around the middle of one, leaves it as often as a normal variable leaves one
    standard deviation."""
    half_interval = 1 / 256
    level = 100 * half_interval + half_interval  # the middle of interval 128 + 50
    clip = np.full(20000, level, dtype=np.float32)
    share = robustness(Pcm(), [clip], seed=1)["noise"]["tokens_changed_share"]
    assert share == pytest.approx(math.erfc(half_interval / (level / 100) / math.sqrt(2)), abs=0.02)


def test_pcm_is_idempotent(clips):
    assert robustness(Pcm(), clips)["reencoding"] == {"tokens_changed_share": 0}


@pytest.mark.parametrize(("output_sampling_rate", "lowest", "highest"), [(24000, 0, 0.01), (4000, 0.05, 0.5)])
def test_reencoding_goes_through_the_input_rate(clips, output_sampling_rate, lowest, highest):
    """Of a codec that decodes to another rate: a higher one keeps all of the audio, a lower one the lower half."""
    reencoding = robustness(Pcm([32], output_sampling_rate=output_sampling_rate), clips)["reencoding"]
    assert lowest <= reencoding["tokens_changed_share"] <= highest


def test_a_flipped_bit_is_one_sample_of_known_energy(clips):
    """Samples are -0.5 or 0.5, so a flip changes one by 1: four times its energy."""
    flip = robustness(Pcm([2]), clips)["flip"]
    assert flip["damage_db"] == pytest.approx(10 * math.log10(4))
    assert flip["extent_seconds"] == 1 / 8000
    assert flip["mel_distance"] > 0


def test_damage_predicts_the_noise_of_many_flips(clips):
    """Here every token of one codebook at a time is wrong: p = 1, and damages of PCM add up at any p."""
    codec = Pcm([4, 8])
    generator = np.random.default_rng(0)
    (codes,) = codec.encode(clips[:1])
    wrong = (codes + generator.integers(1, [[4], [8]], codes.shape)) % [[4], [8]]
    (decoded,) = codec.decode([codes], [6000])
    noise = [codec.decode([np.where(np.arange(2)[:, None] == i, wrong, codes)], [6000])[0] - decoded for i in range(2)]
    snr_db = 10 * math.log10(np.mean(np.square(decoded)) / np.mean(np.square(noise)))
    damage_db = np.mean([robustness(codec, clips[:1], seed)["flip"]["damage_db"] for seed in range(4)])
    assert -damage_db == pytest.approx(snr_db, abs=1)


def test_silence_decoded_to_silence_has_no_damage_to_relate(clips):
    codec = Pcm()
    codec.decode = lambda codes, num_samples: [np.zeros(length, dtype=np.float32) for length in num_samples]
    flip = robustness(codec, clips)["flip"]
    assert (flip["damage_db"], flip["extent_seconds"], flip["mel_distance"]) == (None, 0, 0)


def test_a_real_model():
    model = small_model("l3ac-coarse")
    codec = TransformersCodec("small", model, CodecFeatureExtractor(sampling_rate=16000))
    clips = np.split(speech(16000)[16000:24000], [5000])
    result = robustness(codec, clips)
    assert json.loads(json.dumps(result)) == result
    assert robustness(codec, clips) == result
    assert robustness(codec, clips, seed=1) != result
    codes = np.concatenate(codec.encode(clips), axis=1)
    assert result["num_tokens"] == codes.size == -(-5000 // 18) + -(-3000 // 18)
    for name in ("shift", "gain", "noise", "reencoding"):
        # a changed token has at least one changed digit of three
        tokens_changed, digits_changed = result[name].values()
        assert tokens_changed / 3 <= digits_changed <= tokens_changed <= 1
        assert tokens_changed > 0
    flip = result["flip"]
    assert 18 / 16000 / 2 < flip["extent_seconds"] <= 5000 / 16000
    assert -20 < flip["damage_db"] < 20


def test_wrong_input_is_refused(clips):
    with pytest.raises(ValueError, match="512 samples: more than 512"):
        robustness(Pcm(), [clips[0][:512]])
    with pytest.raises(ValueError, match="no clips"):
        robustness(Pcm(), [])
    with pytest.raises(ValueError, match=r"\(2, 6000\): .* has 1 channels"):
        robustness(Pcm(), [np.stack([clips[0], clips[0]])])
    classical = Pcm()
    classical.codebook_sizes = []
    with pytest.raises(ValueError, match="pcm has no tokens"):
        robustness(classical, clips)
