"""Every codec behind `load_codec` gives the codes and the audio that its model gives for the clip alone."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DacConfig,
    DacFeatureExtractor,
    DacModel,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    MimiConfig,
    MimiModel,
)

from fsqcodec import CodecFeatureExtractor
from fsqcodec.codecs import codec_of, load_codec, model_digest
from small_configs import small_model, speech_like_clip


def encodec(**overrides):
    sizes = {"num_filters": 4, "hidden_size": 8, "codebook_size": 32, "upsampling_ratios": [4, 2], "num_lstm_layers": 1}
    config = EncodecConfig(**{**sizes, "target_bandwidths": (15.0, 30.0, 60.0), **overrides})
    model = EncodecModel(config)
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_(std=0.1)
    return model, EncodecFeatureExtractor(feature_size=config.audio_channels, sampling_rate=config.sampling_rate)


def dac():
    config = DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, downsampling_ratios=[2, 4], n_codebooks=3)
    return DacModel(config), DacFeatureExtractor(sampling_rate=16000, hop_length=config.hop_length)


def mimi():
    config = MimiConfig(
        num_filters=4,
        hidden_size=16,
        upsampling_ratios=[4, 2],
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=16,
        upsample_groups=16,
        frame_rate=1500.0,
    )
    model = MimiModel(config)
    for quantizer in (
        model.quantizer.semantic_residual_vector_quantizer,
        model.quantizer.acoustic_residual_vector_quantizer,
    ):
        for layer in quantizer.layers:
            layer.codebook.embed_sum.normal_()
    return model, EncodecFeatureExtractor(feature_size=1, sampling_rate=24000)


def ours():
    return small_model("l3ac-coarse"), CodecFeatureExtractor(sampling_rate=16000)


FACTS = {  # input sampling rate, frame rate, codebook sizes
    "ours": (ours, 16000, 16000 / 18, [7 * 7 * 5]),
    "encodec": (encodec, 24000, 3000.0, [32] * 4),
    "dac": (dac, 16000, 2000.0, [1024] * 3),
    "mimi": (mimi, 24000, 1500.0, [32] * 4),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each family, with random weights."""
    root = tmp_path_factory.mktemp("codecs")
    torch.manual_seed(0)
    for name, (make, *_) in FACTS.items():
        with torch.no_grad():
            model, extractor = make()
        model.save_pretrained(root / name)
        extractor.save_pretrained(root / name)
    return root


@pytest.fixture(params=FACTS)
def codec(request, folders):
    return load_codec(folders / request.param)


def clips(*lengths):
    return [speech_like_clip(length, seed).numpy() for seed, length in enumerate(lengths)]


def test_facts(codec):
    _, sampling_rate, frame_rate, sizes = FACTS[codec.name.rpartition("/")[2]]
    assert (codec.input_sampling_rate, codec.output_sampling_rate, codec.num_channels) == (
        sampling_rate,
        sampling_rate,
        1,
    )
    assert codec.frame_rate == frame_rate
    assert codec.codebook_sizes == sizes
    assert codec.bitrate == pytest.approx(frame_rate * sum(map(math.log2, sizes)))


def test_frames_come_at_the_frame_rate(codec):
    seconds = 0.5
    (codes,) = codec.encode(clips(int(seconds * codec.input_sampling_rate)))
    assert codes.shape[1] == pytest.approx(seconds * codec.frame_rate, abs=1)
    assert codec.num_bits(codes, seconds) == pytest.approx(seconds * codec.bitrate, rel=0.02)


def test_any_list_gives_what_each_clip_gives_alone(codec):
    audio = clips(1600, 1000, 1600, 2377)
    codes = codec.encode(audio)
    assert all(
        np.array_equal(alone, together) for clip, together in zip(audio, codes) for alone in codec.encode([clip])
    )
    assert len(np.unique(np.concatenate([clip.ravel() for clip in codes]))) > 3
    decoded = codec.decode(codes, [len(clip) for clip in audio])
    for clip_codes, clip in zip(codes, decoded):
        alone = codec.decode([clip_codes], [len(clip)])[0]
        np.testing.assert_allclose(clip, alone, rtol=0, atol=1e-5 * max(1, np.abs(alone).max()))


def test_codes_and_audio_are_the_models_own(codec):
    clip = clips(1600)[0]
    features = codec.feature_extractor(clip, sampling_rate=codec.input_sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        if codec.model.config.model_type == "encodec":
            codes = codec.model.encode(**features, bandwidth=60.0).audio_codes
            audio = codec.model.decode(codes, [None]).audio_values
        else:
            if codec.model.config.model_type == "dac":
                features = {"input_values": features["input_values"]}
            codes = codec.model.encode(**features).audio_codes
            audio = codec.model.decode(audio_codes=codes).audio_values
    (ours,) = codec.encode([clip])
    assert np.array_equal(ours, codes.reshape(len(ours), -1))
    np.testing.assert_allclose(codec.decode([ours])[0], audio.flatten(), atol=1e-6)


@pytest.mark.parametrize("kind", ["l3ac-coarse", "frames-attention"])
def test_long_clips_go_through_in_pieces_and_have_the_same_codes(kind, monkeypatch):
    codec = codec_of(small_model(kind), CodecFeatureExtractor(sampling_rate=16000))
    audio = clips(20000, 1000, 16001)
    whole = codec.encode(audio)
    monkeypatch.setattr("fsqcodec.codecs.LONG_SECONDS", 1.0)
    monkeypatch.setattr("fsqcodec.streaming.frames.PIECE_SECONDS", 0.2)
    in_pieces = codec.encode(audio)
    for ours, wanted in zip(in_pieces, whole):
        assert ours.shape == wanted.shape and ours.dtype == wanted.dtype
        assert (ours != wanted).sum() <= 2  # on a rounding boundary
    monkeypatch.setattr(codec.model, "encode", None)  # which takes clips as a whole
    np.testing.assert_array_equal(codec.encode(audio[::2])[1], in_pieces[2])


@pytest.mark.parametrize("family", ["encodec", "dac", "mimi"])
def test_first_codebooks(folders, family):
    whole, part = load_codec(folders / family), load_codec(f"{folders / family}:2")
    audio = clips(1600)
    assert part.codebook_sizes == whole.codebook_sizes[:2]
    assert np.array_equal(part.encode(audio)[0], whole.encode(audio)[0][:2])
    assert not np.allclose(part.decode(part.encode(audio))[0], whole.decode(whole.encode(audio))[0])


def test_fewer_codebooks_of_encodec_are_a_lower_bandwidth(folders):
    codec = load_codec(f"{folders / 'encodec'}:2")
    clip = clips(1600)
    features = codec.feature_extractor(clip[0], sampling_rate=24000, return_tensors="pt")
    with torch.inference_mode():
        codes = codec.model.encode(**features, bandwidth=30.0).audio_codes
    assert np.array_equal(codec.encode(clip)[0], codes[0, 0])


def test_digest_changes_with_weights_and_configuration_only(folders):
    codec = load_codec(folders / "ours")
    assert codec.digest == load_codec(folders / "ours").digest
    changed = small_model("l3ac-coarse", norm_eps=1e-7)
    changed.load_state_dict(codec.model.state_dict())
    assert model_digest(changed) != codec.digest
    with torch.no_grad():
        next(codec.model.decoder.parameters()).add_(1e-3)
    assert model_digest(codec.model) != codec.digest


@pytest.mark.parametrize("asked", [0, 4])
def test_wrong_number_of_codebooks(folders, asked):
    with pytest.raises(ValueError, match=f"asks for {asked} codebooks: the model has 3"):
        load_codec(f"{folders / 'dac'}:{asked}")


def test_encodec_with_levels_beside_its_codes_is_refused(tmp_path):
    model, extractor = encodec(chunk_length_s=0.1, overlap=0.01, normalize=True)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sends a level beside the codes"):
        load_codec(tmp_path)


def test_a_model_that_is_no_codec_is_refused(tmp_path):
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="BertModel, which has no encode and decode"):
        load_codec(tmp_path)


def test_what_is_not_there():
    with pytest.raises(OSError, match="it is no folder here"):
        load_codec("nobody/nothing")
    with pytest.raises(ValueError, match="is a preset, sizes without weights"):
        load_codec("l3ac-1kbps")
