"""Lycodec: codes and audio do not depend on the batch, lengths are exact, noise is the caller's or always the same."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

import fsqcodec
from fsqcodec import LycodecConfig, LycodecFeatureExtractor, LycodecModel
from fsqcodec.audio import read_audio, write_audio
from fsqcodec.codecs import load_codec
from fsqcodec.export import export_encoder
from fsqcodec.files import decode_files, encode_file, encode_files
from fsqcodec.packing import pack, read_tokens, unpack
from fsqcodec.presets import preset_config
from lycodec_models import SMALL, small_lycodec, stereo_clip
from test_remote_code import run_without_the_package

CROP = SMALL["crop_length"]
FRAMES = 18


@pytest.fixture(scope="module")
def model() -> LycodecModel:
    return small_lycodec()


def padded(clips: list[torch.Tensor], extra: int = 0, padding_value: float = 0.7):
    """Clips `(2, num_samples)` as a batch whose padding holds anything, and its mask."""
    longest = max(clip.shape[-1] for clip in clips) + extra
    values = torch.full((len(clips), 2, longest), padding_value)
    mask = torch.zeros(len(clips), longest, dtype=torch.int64)
    for i, clip in enumerate(clips):
        values[i, :, : clip.shape[-1]] = clip
        mask[i, : clip.shape[-1]] = 1
    return values, mask


@given(lengths=st.lists(st.integers(1, 3 * CROP), min_size=1, max_size=3), extra=st.integers(0, CROP + 5))
@settings(max_examples=25)
def test_a_clip_is_encoded_and_decoded_alone_as_in_any_batch(model, lengths, extra):
    clips = [stereo_clip(length, seed) for seed, length in enumerate(lengths)]
    values, mask = padded(clips, extra)
    with torch.no_grad():
        batch = model.encode(values, mask, output_latents=True)
        decoded = model.decode(batch.audio_codes, audio_codes_mask=batch.audio_codes_mask).audio_values
        for i, clip in enumerate(clips):
            alone = model.encode(clip[None], output_latents=True)
            num_frames = alone.audio_codes.shape[-1]
            assert num_frames == -(-clip.shape[-1] // CROP) * FRAMES
            assert batch.audio_codes_mask[i].sum() == num_frames
            # norms blow up the rounding of a clip that is nearly silent; in float64 it is gone, see below
            assert (batch.latents[i, :, :num_frames] - alone.latents[0]).abs().max() < 1e-4
            positions = 5 * torch.tanh(alone.latents[0])
            is_clear = (positions - positions.floor() - 0.5).abs() > 1e-3
            assert torch.equal(batch.audio_codes[i, :, :num_frames][is_clear], alone.audio_codes[0][is_clear])
            assert not batch.audio_codes[i, :, num_frames:].any()
            audio = model.decode(batch.audio_codes[i : i + 1, :, :num_frames]).audio_values[0]
            assert audio.shape == (2, num_frames // FRAMES * CROP)
            assert (decoded[i, :, : audio.shape[-1]] - audio).abs().max() < 1e-5
            assert not decoded[i, :, audio.shape[-1] :].any()


def test_batches_of_crops_in_float64_are_equal_to_rounding():
    model = small_lycodec().double()
    clips = [stereo_clip(length, seed).double() for seed, length in enumerate((3000, 500, 1080))]
    values, mask = padded([clip.float() for clip in clips])
    with torch.no_grad():
        batch = model(values.double(), mask)
        for i, clip in enumerate(clips):
            alone = model(clip[None])
            assert torch.equal(batch.audio_codes[i, :, : alone.audio_codes.shape[-1]], alone.audio_codes[0])
            assert (batch.audio_values[i, :, : clip.shape[-1]] - alone.audio_values[0]).abs().max() < 1e-12
            assert not batch.audio_values[i, :, clip.shape[-1] :].any()


@torch.no_grad()
def test_a_crop_depends_on_no_other(model):
    clip = stereo_clip(3 * CROP)
    changed = clip.clone()
    changed[:, CROP : 2 * CROP] = 0
    codes, other = model.encode(clip[None]).audio_codes[0], model.encode(changed[None]).audio_codes[0]
    differs = (codes != other).any(dim=0).unflatten(0, (3, FRAMES)).any(dim=1)
    assert differs.tolist() == [False, True, False]


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [1, CROP - 1, CROP, CROP + 1, 2 * CROP + 77])
def test_audio_is_as_long_as_what_went_in(model, num_samples):
    clip = stereo_clip(num_samples)[None]
    assert model(clip).audio_values.shape == clip.shape
    codes = model.encode(clip).audio_codes
    assert torch.equal(model.decode(codes, num_samples=num_samples).audio_values, model(clip).audio_values)


@torch.no_grad()
def test_mono_is_two_equal_channels(model):
    mono = stereo_clip(1500)[None, :1]
    assert torch.equal(model.encode(mono).audio_codes, model.encode(mono.expand(-1, 2, -1)).audio_codes)
    with pytest.raises(ValueError, match=r"shape \(1, 6, 1500\): it must be \(batch, 1 or 2, num_samples\)"):
        model.encode(mono.expand(-1, 6, -1))


@torch.no_grad()
def test_noise_is_the_callers_or_always_the_same(model):
    codes = model.encode(stereo_clip(2 * CROP)[None]).audio_codes
    config = model.config
    torch.manual_seed(5)
    audio = model.decode(codes).audio_values
    torch.manual_seed(6)
    assert torch.equal(model.decode(codes).audio_values, audio)
    second = model.decode(codes[..., FRAMES:]).audio_values
    assert not torch.allclose(second, audio[..., CROP:])  # crops of a clip have noise of their own

    shape = (4, config.stft_bins, config.stft_frames)
    seeded = [torch.randn(shape, generator=torch.Generator().manual_seed(config.noise_seed + i)) for i in range(2)]
    assert torch.equal(model.decode(codes, noise=torch.stack(seeded)).audio_values, audio)
    drawn = [model.decode(codes, generator=torch.Generator().manual_seed(seed)).audio_values for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.allclose(model.decode(codes, noise_level=80).audio_values, audio)


@torch.no_grad()
def test_latents_are_decoded_with_the_residual_that_codes_lack(model):
    encoded = model.encode(stereo_clip(CROP)[None], output_latents=True)
    of_codes = model.decode(encoded.audio_codes, noise_level=80).audio_values
    of_latents = model.decode(latents=encoded.latents, noise_level=80).audio_values
    assert of_latents.shape == of_codes.shape
    assert not torch.allclose(of_latents, of_codes)
    # latents on the levels have no residual
    values = model.quantizer.digits_to_values(encoded.audio_codes.clamp(1, 9))
    on_levels = model.decode(latents=torch.atanh(values), noise_level=80).audio_values
    of_same_codes = model.decode(encoded.audio_codes.clamp(1, 9), noise_level=80).audio_values
    assert (on_levels - of_same_codes).abs().max() < 1e-4


@torch.no_grad()
def test_codes_of_any_integer_type_are_decoded_alike(model):
    codes = model.encode(stereo_clip(CROP)[None]).audio_codes
    assert torch.equal(model.decode(codes.to(torch.uint8)).audio_values, model.decode(codes).audio_values)


@torch.no_grad()
def test_decode_refuses_what_it_cannot_decode(model):
    codes = torch.zeros(1, 8, FRAMES, dtype=torch.int64)
    for arguments, message in (
        ({}, "either audio_codes or latents"),
        ({"audio_codes": codes[..., :17]}, "17 frames are no whole crops: a multiple of 18 is wanted"),
        ({"audio_codes": codes, "audio_codes_mask": torch.ones(1, FRAMES).tril(-1 + 7)}, "7 frames are no whole crops"),
        ({"audio_codes": codes + 11}, "audio_codes range from 11 to 11: this codec's codes are 0 to 10"),
        ({"audio_codes": codes[:, :3]}, r"shape \(1, 3, 18\): it must be \(batch, 8, num_frames\)"),
        ({"audio_codes": codes, "noise_level": 0}, "noise_level is 0: a number above 0"),
        ({"audio_codes": codes, "noise_level": float("nan")}, "noise_level is nan"),
        (
            {"audio_codes": codes, "noise": torch.zeros(2, 4, 33, 55)},
            r"noise has shape \(2, 4, 33, 55\).*\(1, 4, 33, 55\)",
        ),
        (
            {"audio_codes": codes, "noise": torch.zeros(1, 4, 33, 55), "generator": torch.Generator()},
            "noise or generator, not both",
        ),
        ({"audio_codes": codes, "num_samples": CROP + 1}, "18 frames hold whole numbers up to 1080"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(**arguments)


def test_compressed_spectrograms_keep_phases_and_come_back():
    """Silence and what is below the least magnitude too, with gradients that are finite."""
    plain, compressed = small_lycodec().spectrogram, small_lycodec(spectrogram_exponent=0.3).spectrogram
    crops = stereo_clip(3 * CROP).unflatten(1, (3, CROP)).transpose(0, 1).contiguous()
    crops[1] *= 1e-7
    crops[2] = 0
    spectra, raised = (torch.complex(*each(crops).unflatten(1, (2, 2)).unbind(2)) for each in (plain, compressed))
    torch.testing.assert_close(raised[0], spectra[0] * spectra[0].abs().clamp(min=1e-5) ** -0.7, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(raised[1], spectra[1] * 1e-5**-0.7, rtol=1e-4, atol=1e-6)
    estimate = compressed(crops).requires_grad_()
    decoded = compressed.inverse(estimate)
    assert (decoded - crops)[0].abs().max() < 1e-6 and (decoded - crops)[1:].abs().max() < 1e-13
    decoded.square().sum().backward()
    assert estimate.grad.isfinite().all()


def test_gradients_reach_every_parameter_that_codes_depend_on():
    model = small_lycodec()
    clip = stereo_clip(CROP)[None]
    model(clip, noise_level=2.0).audio_values.square().sum().backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # the residual is 0, and scores are blind to a bias of all keys
    assert [name for name in without if not name.endswith("k_proj.bias")] == ["quantizer.residual_mlp.fc1.weight"]


@torch.no_grad()
def test_half_precision_keeps_the_audio(model):
    clip = stereo_clip(CROP)[None]
    codes = model.encode(clip).audio_codes
    audio = model.decode(codes, noise_level=1.0).audio_values
    half = small_lycodec().to(torch.bfloat16)
    assert (half.encode(clip).audio_codes - codes).abs().float().mean() < 0.5
    decoded = half.decode(codes, noise_level=1.0).audio_values
    assert decoded.dtype == torch.float32
    assert (decoded - audio).std() < 0.1 * audio.std()


def test_presets_have_the_originals_sizes():
    assert fsqcodec.list_presets("lycodec") == ["lycodec-48khz", "lycodec-48khz-fast", "lycodec-48khz-fine"]
    config = preset_config("lycodec-48khz")
    assert (config.hop_length, config.frame_rate, config.stft_bins, config.stft_frames) == (4000, 12.0, 1025, 113)
    assert (config.num_codebooks, config.codebook_size, f"{config.bitrate:.1f}") == (256, 11, "10627.4")
    assert config.algorithmic_latency == 1.5
    with torch.device("meta"):
        models = {name: LycodecModel(preset_config(name)) for name in fsqcodec.list_presets("lycodec")}
    assert [model.num_parameters() for model in models.values()] == [79_601_263, 94_606_031, 85_092_783]
    assert len(models["lycodec-48khz"].state_dict()) == 384
    assert models["lycodec-48khz-fine"].decoder.network.grid == (128, 14)
    assert models["lycodec-48khz-fast"].decoder.network.grid == (32, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"quantization_levels": (10,)}, "quantization_levels is .*one odd number"),
        ({"quantization_levels": (11, 11)}, "quantization_levels is .*one odd number"),
        ({"crop_length": 72001}, "crop_length is 72001: it must be a multiple of frames_per_crop, 18"),
        ({"decoder_patch_size": 12}, "decoder_patch_size is 12: a power of two"),
        ({"decoder_patch_size": 128}, "decoder_patch_size is 128.*1025 x 113"),
        ({"num_channels": 1}, "num_channels is 1: Lycodec is stereo"),
        ({"noise_level": 0.0}, "noise_level is 0.0: it must be above 0"),
        ({"encoder_channels": (64, 128)}, "four multiples of 8"),
        ({"num_heads": 7}, "hidden_size is 512: it must be a multiple of num_heads, 7"),
        ({"stft_hop_length": 4096}, "stft_size is 2048"),
        ({"spectrogram_exponent": 1.5}, "spectrogram_exponent is 1.5: 1 at most is wanted"),
        ({"spectrogram_exponent": 0.0}, "spectrogram_exponent is 0.0: it must be above 0"),
    ],
)
def test_configuration_refuses_contradictions(fields, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        LycodecConfig(**fields)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="LycodecConfig has no field 'hop_lenght'"):
        LycodecConfig(hop_lenght=1)


def test_folder_loads_by_every_auto_class_with_equal_results(model, tmp_path):
    model.save_pretrained(tmp_path)
    LycodecFeatureExtractor().save_pretrained(tmp_path)
    clip = stereo_clip(1500)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LycodecConfig)
    features = AutoFeatureExtractor.from_pretrained(tmp_path)(clip.T, sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        expected = model(clip[None])
        for auto_class in (AutoModel, AutoModelForAudioTokenization):
            loaded = auto_class.from_pretrained(tmp_path, dtype=torch.float32)
            assert type(loaded) is LycodecModel
            output = loaded(**features)
            assert torch.equal(output.audio_codes, expected.audio_codes)
            assert torch.equal(output.audio_values, expected.audio_values)


def test_folder_works_where_the_package_is_not_installed(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    LycodecFeatureExtractor().save_pretrained(tmp_path / "saved")
    clip = stereo_clip(1500)[0]
    torch.save(clip, tmp_path / "clip.pt")
    outputs = run_without_the_package(
        tmp_path / "saved", tmp_path / "copy", tmp_path / "outputs.pt", tmp_path / "modules"
    )
    with torch.no_grad():
        codes = model.encode(clip[None, None]).audio_codes
        audio = model.decode(codes).audio_values
    for auto_class in ("AutoModel", "AutoModelForAudioTokenization"):
        assert torch.equal(outputs[auto_class]["codes"], codes)
        assert torch.equal(outputs[auto_class]["audio"], audio)


def test_the_adapter_takes_stereo_and_mono_clips_of_any_length(model, tmp_path):
    model.save_pretrained(tmp_path)
    LycodecFeatureExtractor().save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    assert (codec.num_channels, codec.frame_rate, len(codec.codebook_sizes)) == (2, 800.0, 8)
    clips = [stereo_clip(1500).numpy(), stereo_clip(400).numpy(), stereo_clip(700)[0].numpy()]
    codes = codec.encode(clips)
    assert [clip_codes.shape for clip_codes in codes] == [(8, 36), (8, 18), (8, 18)]
    with torch.no_grad():
        assert np.array_equal(codes[1], model.encode(torch.from_numpy(clips[1])[None]).audio_codes[0])
    assert [clip.shape for clip in codec.decode(codes, [1500, 400, 700])] == [(2, 1500), (2, 400), (2, 700)]


def test_stereo_and_mono_files_of_any_length_are_encoded_whole_and_not_in_pieces(model, tmp_path, monkeypatch):
    monkeypatch.setattr("fsqcodec.files.LONG_SECONDS", 0.01)  # 480 samples
    model.save_pretrained(tmp_path / "model")
    LycodecFeatureExtractor().save_pretrained(tmp_path / "model")
    stereo, mono = stereo_clip(1500).numpy(), stereo_clip(700)[0].numpy()
    write_audio(tmp_path / "stereo.wav", stereo, 48000)
    write_audio(tmp_path / "mono.wav", mono, 48000)
    files = [tmp_path / "stereo.wav", tmp_path / "mono.wav"]
    report = encode_files(files, tmp_path / "model", tmp_path / "tokens")
    assert not report.failed and report.seconds == pytest.approx(2200 / 48000)
    report = decode_files([tmp_path / "tokens"], tmp_path / "model", tmp_path / "decoded")
    assert not report.failed and len(report.written) == 2
    for file in files:
        clip = read_audio(file, 48000, num_channels=2)
        with torch.no_grad():
            codes = model.encode(torch.from_numpy(clip)[None]).audio_codes
            decoded = model.decode(codes, num_samples=clip.shape[-1]).audio_values[0].numpy()
        tokens = read_tokens(tmp_path / "tokens" / f"{file.stem}.safetensors", model.config)
        assert tokens.num_samples == clip.shape[-1] and torch.equal(tokens.codes, codes[0])
        written = read_audio(tmp_path / "decoded" / file.name, 48000, num_channels=2)
        assert np.abs(written - np.clip(decoded, -1, 1)).max() <= 1 / 16384
    with pytest.raises(ValueError, match="a LycodecModel can't take files in pieces: encode_files and decode_files"):
        encode_file(files[0], tmp_path / "model", tmp_path / "tokens.safetensors")
    with pytest.raises(ValueError, match="a LycodecModel can't be exported"):
        export_encoder(model)


def test_the_feature_extractor_wants_channels_last():
    extractor = LycodecFeatureExtractor()
    stereo, mono = stereo_clip(100).T.numpy(), stereo_clip(70)[0].numpy()
    features = extractor([stereo, mono, mono[:, None]], sampling_rate=48000, return_tensors="pt")
    assert features["input_values"].shape == (3, 2, 100)
    assert features["padding_mask"].sum(dim=1).tolist() == [100, 70, 70]
    assert np.array_equal(features["input_values"][0].T, stereo)
    for row in (1, 2):
        for channel in (0, 1):
            assert np.array_equal(features["input_values"][row, channel, :70], mono)
    with pytest.raises(ValueError, match=r"shape \(2, 100\): \(num_samples, 2\).*audio.T"):
        extractor(stereo.T, sampling_rate=48000)
    with pytest.raises(ValueError, match="44100 Hz, the model needs 48000 Hz"):
        extractor(stereo, sampling_rate=44100)
    with pytest.raises(ValueError, match="NaN or infinite samples, the first at index 7"):
        extractor(np.where(np.arange(200).reshape(100, 2) == 15, np.nan, stereo), sampling_rate=48000)
    with pytest.raises(ValueError, match="input_values hold NaN or infinity"):
        small_lycodec().encode(torch.full((1, 2, 100), torch.nan))
    with pytest.raises(ValueError, match="feature_size is 1"):
        LycodecFeatureExtractor(feature_size=1)


@given(num_crops=st.integers(0, 3), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_codes_survive_packing_in_1993_bytes_a_crop(num_crops, seed):
    config = LycodecConfig()
    codes = torch.randint(11, (256, FRAMES * num_crops), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, config)
    assert len(packed) == 1993 * num_crops
    assert torch.equal(unpack(packed, config), codes)
    assert torch.equal(unpack(packed, config, FRAMES * num_crops), codes)


def test_packed_crops_are_the_documented_number():
    config = LycodecConfig(**{**SMALL, "frames_per_crop": 18})
    codes = torch.arange(8 * FRAMES).reshape(8, FRAMES) % 11
    number = sum(int(code) * 11**i for i, code in enumerate(codes.T.flatten()))
    assert pack(codes, config) == number.to_bytes(63, "little")
    with pytest.raises(ValueError, match="17 frames are no whole crops"):
        pack(codes[:, :17], config)
    with pytest.raises(ValueError, match="62 bytes: crops of 18 frames take 63 each"):
        unpack(pack(codes, config)[:-1], config)
    with pytest.raises(ValueError, match="63 bytes: crops of 18 frames take 63 each, 36 frames are wanted"):
        unpack(pack(codes, config), config, 36)
    with pytest.raises(ValueError, match="crop 0 is a number too large"):
        unpack(b"\xff" * 63, config)
