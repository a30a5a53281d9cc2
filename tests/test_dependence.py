"""Measured dependence against codecs whose dependence is known."""

import numpy as np
import pytest
import torch

from fsqcodec.codecs import Codec
from fsqcodec.evaluation.dependence import (
    Dependence,
    decoder_changes,
    decoder_gradients,
    encoder_changes,
    encoder_gradients,
    noise,
)
from small_configs import SMALL_CONFIGS, small_model

FRAME_LENGTH = 100


class WindowCodec(Codec):
    """Codes are sums of the samples from 160 before their frame to 30 after it; the audio of a frame is the sum of the
    codes from three frames before it to one after it."""

    input_sampling_rate = output_sampling_rate = 8000
    frame_rate = 8000 / FRAME_LENGTH
    codebook_sizes = [2**40, 2**40]

    def __init__(self, num_channels: int = 1):
        self.num_channels = num_channels

    def encode(self, audio):
        codes = []
        for clip in audio:
            padded = np.pad(np.atleast_2d(clip).sum(axis=0), (160, 30))
            windows = np.lib.stride_tricks.sliding_window_view(padded, 160 + FRAME_LENGTH + 30)[::FRAME_LENGTH]
            sums = (1e6 * windows.sum(axis=-1)).astype(np.int64) % 2**40
            codes.append(np.stack([np.zeros_like(sums), sums]))
        return codes

    def decode(self, codes, num_samples=None):
        levels = [np.convolve(np.pad(clip.sum(axis=0) / 2**40, (1, 1)), np.ones(5))[2:-4] for clip in codes]
        return [np.squeeze(np.tile(np.repeat(level, FRAME_LENGTH), (self.num_channels, 1))) for level in levels]


def test_reach_and_share_outside_count_samples_beside_the_frame():
    energy = np.zeros(100)
    energy[[10, 40, 45, 62]] = 1, 500, 498, 1
    dependence = Dependence(energy, first=-40, step_length=1, frame_length=10, sampling_rate=1000)
    assert dependence.reach() == (30, 13)
    assert dependence.reach(0.99) == (0, 0)
    assert dependence.share_outside(30, 13) == 0
    assert dependence.share_outside(29, 13) == dependence.share_outside(30, 12) == pytest.approx(1e-3)


def test_reach_counts_whole_steps():
    energy = np.array([0, 1, 0, 1, 1, 0])
    dependence = Dependence(energy, first=-30, step_length=10, frame_length=10, sampling_rate=1000)
    assert dependence.reach() == (20, 10)
    assert dependence.share_outside(20, 10) == 0
    assert dependence.share_outside(19, 10) == dependence.share_outside(20, 9) == pytest.approx(1 / 3)


def test_no_energy_reaches_nowhere():
    dependence = Dependence(np.zeros(9), first=-3, step_length=1, frame_length=2, sampling_rate=1000)
    assert (dependence.reach(), dependence.share_outside(0, 0)) == ((0, 0), 0)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_changes_find_what_tokens_and_audio_depend_on(num_channels):
    codec = WindowCodec(num_channels)
    resolution = FRAME_LENGTH / 24  # of the changes' positions
    look_back, look_ahead = encoder_changes(codec).reach()
    assert 160 - resolution - 1 <= look_back <= 160
    assert 30 - resolution - 1 <= look_ahead <= 30
    assert decoder_changes(codec).reach() == (3 * FRAME_LENGTH, FRAME_LENGTH)


def test_a_codec_without_tokens_is_refused():
    codec = WindowCodec()
    codec.name, codec.frame_rate = "opus:6", None
    for measure in (encoder_changes, decoder_changes):
        with pytest.raises(
            ValueError, match="opus:6 is a classical codec, which has no tokens: a neural one is wanted"
        ):
            measure(codec)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_gradients_of_the_encoder_fill_the_derived_window_and_nothing_else(name):
    model = small_model(name)
    config = model.config
    dependence = encoder_gradients(model)
    assert dependence.share_outside(config.encoder_context_samples, config.encoder_lookahead_samples) == 0
    look_back, look_ahead = dependence.reach()
    trend_window = 45 + 45  # of it a maximum, and so the gradient, may take one sample only
    assert look_back > config.encoder_context_samples - trend_window
    assert look_ahead > config.encoder_lookahead_samples - trend_window


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_gradients_of_the_decoder_leave_the_derived_window_through_statistics_only(name):
    model = small_model(name)
    config = model.config
    window = config.decoder_context_samples, config.decoder_lookahead_samples
    assert decoder_gradients(model, hold_statistics=True).share_outside(*window) == 0
    assert decoder_gradients(model, hold_statistics=True).share_outside(window[0], window[1] // 4) > 0
    share = decoder_gradients(model).share_outside(*window)
    assert 0 < share < 0.5 if config.normalizes_over_clip else share == 0


def test_gradients_leave_the_model_as_it_was():
    model = small_model("l3ac-coarse")
    codes = torch.arange(40)[None, None]
    before = model.decode(codes).audio_values
    decoder_gradients(model, hold_statistics=True)
    encoder_gradients(model)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    audio = model.decode(codes).audio_values
    assert torch.equal(audio, before)
    (gradient,) = torch.autograd.grad(audio[..., :10].sum(), model.decoder.stages[0].enhance.trends[0].weight)
    assert gradient.any()


def test_noise_has_the_loudness_of_speech_and_is_the_same_every_time():
    for num_channels, shape in ((1, (16000,)), (2, (2, 16000))):
        audio = noise(16000, 16000, num_channels)
        assert audio.shape == shape and audio.dtype == np.float32
        assert np.sqrt(np.square(audio).mean()) == pytest.approx(0.1, rel=1e-3)
        assert np.array_equal(audio, noise(16000, 16000, num_channels))
        assert not np.array_equal(audio, noise(16000, 16000, num_channels, seed=1))
