"""Perceptual loss with small encoders of random weights, against their own feature extractors."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    EncodecFeatureExtractor,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    set_seed,
)

from clips import speech
from fsqcodec.training.perceptual import FeatureLoss, PerceptualLoss, whisper_log_mel

LENGTHS = (8000, 5003, 5003, 2500)
WAVEFORM_SIZES = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
WHISPER_SIZES = dict(
    d_model=16,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    vocab_size=50,
    max_source_positions=50,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
ENCODERS = {
    "whisper": (
        lambda: WhisperForConditionalGeneration(WhisperConfig(**WHISPER_SIZES)),
        WhisperFeatureExtractor(chunk_length=1),
    ),
    "wav2vec2": (lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAVEFORM_SIZES)), Wav2Vec2FeatureExtractor()),
    "hubert": (
        lambda: HubertModel(HubertConfig(feat_extract_norm="layer", **WAVEFORM_SIZES)),
        Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "wavlm": (lambda: WavLMModel(WavLMConfig(**WAVEFORM_SIZES)), Wav2Vec2FeatureExtractor(do_normalize=False)),
}
each_encoder = pytest.mark.parametrize("name", ENCODERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {}
    for name, (make_model, extractor) in ENCODERS.items():
        set_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        make_model().save_pretrained(folders[name])
        extractor.save_pretrained(folders[name])
    return folders


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Speech, the same with noise, and the mask; beyond their ends the clips go on."""
    clips = torch.from_numpy(speech()[8000:]).unfold(0, max(LENGTHS), 16000)[: len(LENGTHS), None].clone()
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return clips, 0.7 * clips + 0.02 * noise, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


@each_encoder
def test_it_is_the_squared_distance_of_what_the_encoder_makes_of_the_extractors_features(folders, name):
    loss = PerceptualLoss(folders[name], 16000)
    extractor = ENCODERS[name][1]

    def states(clip):
        features = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")
        states = loss.encoder(features[extractor.model_input_names[0]]).last_hidden_state[0]
        return states[: -(-len(clip) // 320)]  # Whisper: 50 frames a second, of 30 s; the others have no more

    reference, estimate, mask = batch()
    with torch.no_grad():
        expected = [
            (states(a[0, :n]) - states(b[0, :n])).square().sum(dim=1).mean().item()
            for a, b, n in zip(reference, estimate, LENGTHS)
        ]
    losses = loss(reference, estimate, mask)
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-4
    assert loss(reference, reference, mask).tolist() == [0] * len(LENGTHS)


@each_encoder
def test_a_clip_has_the_same_loss_alone_and_padded(folders, name):
    loss = PerceptualLoss(folders[name], 16000)
    reference, estimate, mask = batch()
    alone = [
        loss(reference[i : i + 1, :, :n], estimate[i : i + 1, :, :n], torch.ones(1, n)).item()
        for i, n in enumerate(LENGTHS)
    ]
    mask = torch.cat([mask, torch.zeros(1, max(LENGTHS), dtype=torch.bool)])
    reference, estimate = (torch.cat([audio, torch.ones(1, 1, max(LENGTHS))]) for audio in (reference, estimate))
    assert loss(reference, estimate, mask).tolist() == pytest.approx([*alone, 0], rel=1e-4)


@each_encoder
def test_only_the_estimate_gets_a_gradient_and_only_where_it_is_audio(folders, name):
    loss = PerceptualLoss(folders[name], 16000)
    reference, estimate, mask = batch()
    reference.requires_grad_()
    estimate.requires_grad_()
    loss(reference, estimate, mask).sum().backward()
    assert reference.grad is None
    assert all(weight.grad is None for weight in loss.parameters())
    assert estimate.grad.isfinite().all()
    assert not estimate.grad[:, 0][~mask].any()
    assert estimate.grad[:, 0][mask].count_nonzero() > 0.9 * mask.sum()


@each_encoder
def test_the_gradient_leads_to_a_lower_loss(folders, name):
    loss = PerceptualLoss(folders[name], 16000)
    reference, estimate, mask = batch()
    estimate.requires_grad_()
    before = loss(reference, estimate, mask).sum()
    (gradient,) = torch.autograd.grad(before, estimate)
    step = 1e-2 * before.detach() / gradient.square().sum()
    after = loss(reference, estimate - step * gradient, mask).sum()
    assert (before - after).item() == pytest.approx(1e-2 * before.item(), rel=0.2)


@each_encoder
def test_silence_has_a_finite_gradient(folders, name):
    loss = PerceptualLoss(folders[name], 16000)
    reference, _, mask = batch()
    for other in (reference, torch.zeros_like(reference)):
        silence = torch.zeros_like(reference).requires_grad_()
        losses = loss(other, silence, mask)
        (gradient,) = torch.autograd.grad(losses.sum(), silence)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@each_encoder
def test_it_stays_in_evaluation_mode(folders, name):
    loss = torch.nn.Sequential(PerceptualLoss(folders[name], 16000)).train()[0]
    first, second = loss(*batch()), loss(*batch())
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("gain", [1, 1e-3, 0])
def test_log_mel_is_that_of_whisper(num_mels, gain):
    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    clips = [gain * speech()[8000:56000], gain * speech()[40000:88000]]
    expected = extractor(clips, sampling_rate=16000, return_tensors="np").input_features
    log_mel = whisper_log_mel(torch.from_numpy(np.stack(clips)), extractor, extractor.n_samples).numpy()
    assert log_mel.shape == (2, num_mels, 3000)
    assert np.abs(log_mel - expected).max() < 1e-4


def test_what_it_can_not_hear_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="wants audio at 16000 Hz, it is at 24000 Hz"):
        PerceptualLoss(folders["wavlm"], 24000)
    clip = torch.zeros(1, 1, 16001)
    with pytest.raises(ValueError, match="16001 samples, the encoder hears 16000"):
        PerceptualLoss(folders["whisper"], 16000)(clip, clip, torch.ones(1, 16001))
    with pytest.raises(ValueError, match="399 samples: the encoder needs more"):
        PerceptualLoss(folders["hubert"], 16000)(clip[..., :399], clip[..., :399], torch.ones(1, 399))
    with pytest.raises(ValueError, match=r"estimate is \(1, 1, 99\)"):
        PerceptualLoss(folders["hubert"], 16000)(clip, clip[..., :99], torch.ones(1, 16001))
    EncodecFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has a EncodecFeatureExtractor"):
        PerceptualLoss(tmp_path, 24000)


def test_an_encoder_that_lacks_weights_is_refused(folders, tmp_path):
    weights = load_file(folders["hubert"] / "model.safetensors")
    del weights["encoder.layers.1.final_layer_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folders["hubert"] / name).read_text())
    with pytest.raises(ValueError, match="lacks 1 weights, encoder.layers.1.final_layer_norm.weight"):
        PerceptualLoss(tmp_path, 16000)


@each_encoder
def test_feature_loss_is_the_distance_of_normalized_states(folders, name):
    """Of a clip as long as Whisper hears, against the encoder's own forward; Whisper's with the noise of the loss."""
    loss = FeatureLoss(folders[name], 16000, (1,))
    reference = torch.from_numpy(speech()[8000:24000])[None, None]
    estimate = 0.7 * reference
    extractor = ENCODERS[name][1]

    def states(clip):
        if name == "whisper":
            features = whisper_log_mel(clip[:, 0], extractor, 16000, loss._noise(reference[:, 0]))
        else:
            features = extractor(clip[0, 0].numpy(), sampling_rate=16000, return_tensors="pt")
            features = features[extractor.model_input_names[0]]
        states = loss.encoder(features, output_hidden_states=True).hidden_states[1]
        return (states - states.mean(dim=-1, keepdim=True)) / states.std(dim=-1, correction=0, keepdim=True)

    with torch.no_grad():
        expected = (states(reference) - states(estimate)).square().mean().item()
    assert loss(reference, estimate, torch.ones(1, 16000)).item() == pytest.approx(expected, rel=1e-3)
    assert loss(reference, reference, torch.ones(1, 16000)).item() == 0


def test_a_crop_alone_is_near_the_crop_with_silence_behind(folders):
    """Whisper's positions are cut, its 30 s are not filled: attention to silence is what differs."""
    reference, estimate, mask = batch()
    reference, estimate = reference[:1], estimate[:1]
    loss = FeatureLoss(folders["whisper"], 16000, (1, 2))
    alone = loss.layer_states(reference[:, 0], (1, 2))
    padded = loss.layer_states(torch.nn.functional.pad(reference[:, 0], (0, 8000)), (1, 2))
    for a, b in zip(alone, padded):
        b = b[:, : a.shape[1]]
        assert a.shape[1] == 25 and 0 < (a - b).norm() < 0.3 * b.norm()


def test_only_the_estimate_gets_a_gradient_and_padding_does_not_count(folders):
    loss = FeatureLoss(folders["whisper"], 16000, (1, 2))
    reference, estimate, mask = batch()
    mask = torch.cat([mask, torch.zeros(1, max(LENGTHS), dtype=torch.bool)])
    reference, estimate = (torch.cat([audio, audio[:1]]) for audio in (reference, estimate))
    reference.requires_grad_()
    estimate.requires_grad_()
    values = loss(reference, estimate, mask)
    values.sum().backward()
    assert reference.grad is None and not estimate.grad[:, 0][~mask].any() and estimate.grad[:, 0][mask].any()
    assert values[-1] == 0 and values[:-1].min() > 0


def test_layers_that_are_not_there_are_refused(folders):
    for layers in ((0, 1), (3,), ()):
        with pytest.raises(ValueError, match="expected layers from 1 to 2"):
            FeatureLoss(folders["whisper"], 16000, layers)
    with pytest.raises(ValueError, match="wants audio at 16000 Hz, it is at 24000 Hz"):
        FeatureLoss(folders["hubert"], 24000, (1,))


def test_pauses_count_no_more_than_speech(folders):
    """Where the recording is silent, the estimate's faint noise has a gradient near that of speech."""
    loss = FeatureLoss(folders["whisper"], 16000, (1, 2))
    reference = torch.from_numpy(speech()[8000:24000])[None, None].clone()
    reference[..., 8000:] *= 1e-4
    noise = 1e-5 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    estimate = (0.9 * reference + noise).requires_grad_()
    loss(reference, estimate, torch.ones(1, 16000)).sum().backward()
    assert estimate.grad[..., 9000:].abs().max() < 3 * estimate.grad[..., :8000].abs().max()
