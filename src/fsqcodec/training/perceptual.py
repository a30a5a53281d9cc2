"""Losses by a frozen audio encoder: the distance of what it makes of two waveforms, and of that from tokens."""

import os
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from ..audio import resample
from .losses import silence_padding

WHISPER_FLOOR = 1e-10  # of mel powers
LOUDEST_SHARE = 1e-4  # of the loudest mel power of a clip: what is quieter hardly counts where it is trained on
AUDIBLE_FLOOR = 1e-4  # of mel powers, of clips that are all quiet: white noise at about -50 dB of full scale
NOT_NEEDED = "masked_spec_embed"  # a weight for training that checkpoints often lack


class FrozenEncoder(nn.Module):
    """An audio encoder of Transformers whose feature extractor is Whisper's (the encoder of the model is taken) or
    Wav2Vec2's (wav2vec 2.0, HuBERT, WavLM, ...), in evaluation mode and in float32.

    Args:
        model: folder or Hub id.

    Raises:
        ValueError: the encoder has another kind of feature extractor, or lacks weights.
    """

    def __init__(self, model: str | os.PathLike):
        super().__init__()
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(model)
        if not isinstance(self.feature_extractor, (WhisperFeatureExtractor, Wav2Vec2FeatureExtractor)):
            raise ValueError(
                f"{model} has a {type(self.feature_extractor).__name__}: an encoder with a WhisperFeatureExtractor or "
                "a Wav2Vec2FeatureExtractor is wanted"
            )
        loaded, facts = AutoModel.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
        missing = sorted(name for name in facts["missing_keys"] if not name.endswith(NOT_NEEDED))
        if missing:
            raise ValueError(f"{model} lacks {len(missing)} weights, {missing[0]} among them: a whole model is wanted")
        self.encoder = loaded.get_encoder() if loaded.config.is_encoder_decoder else loaded
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode, whatever the module around it does: no dropout, no masked features."""
        return super().train(False)

    def hidden_states(self, audio: torch.Tensor) -> torch.Tensor:
        """The encoder's last hidden states `(batch, num_frames, hidden_size)` of clips `(batch, num_samples)`, those
        frames that hold audio."""
        extractor = self.feature_extractor
        num_samples = audio.shape[-1]
        self._check_length(num_samples)
        audio = audio.float()
        if isinstance(extractor, WhisperFeatureExtractor):
            states = self.encoder(whisper_log_mel(audio, extractor, extractor.n_samples)).last_hidden_state
            return states[:, : -(-num_samples * states.shape[1] // extractor.n_samples)]
        return self.encoder(normalized(audio) if extractor.do_normalize else audio).last_hidden_state

    def layer_states(
        self, audio: torch.Tensor, layers: Sequence[int], noise: torch.Tensor | float = 0.0
    ) -> list[torch.Tensor]:
        """What each of `layers`, numbers from 1, makes of clips float32 `(batch, num_samples)`: `(batch, num_frames,
        hidden_size)`. Whisper gets them without silence behind, and with `noise` added to their mel powers."""
        extractor, encoder = self.feature_extractor, self.encoder
        self._check_length(audio.shape[-1])
        if not isinstance(extractor, WhisperFeatureExtractor):
            audio = normalized(audio) if extractor.do_normalize else audio
            states = encoder(audio, output_hidden_states=True).hidden_states
            return [states[number] for number in layers]
        x = nn.functional.gelu(encoder.conv1(whisper_log_mel(audio, extractor, audio.shape[-1], noise)))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        states = []
        for layer in encoder.layers[: max(layers)]:
            x = layer(x, None)
            states.append(x)
        return [states[number - 1] for number in layers]

    def check_sampling_rate(self, model: str | os.PathLike, sampling_rate: int):
        """Raise a `ValueError` that calls it `model` where the encoder hears audio at another rate, Hz."""
        if self.feature_extractor.sampling_rate != sampling_rate:
            raise ValueError(
                f"{model} wants audio at {self.feature_extractor.sampling_rate} Hz, it is at {sampling_rate} Hz: take "
                "an encoder of that rate"
            )

    def _check_length(self, num_samples: int):
        extractor = self.feature_extractor
        if isinstance(extractor, WhisperFeatureExtractor):
            if num_samples > extractor.n_samples:
                raise ValueError(
                    f"a clip has {num_samples} samples, the encoder hears {extractor.n_samples}: crop it first"
                )
        elif self.encoder._get_feat_extract_output_lengths(num_samples) < 1:
            raise ValueError(f"a clip has {num_samples} samples: the encoder needs more for one frame, leave it out")


class PerceptualLoss(FrozenEncoder):
    """Squared distance of the last hidden states; L3AC has it with Whisper tiny.en
    (https://github.com/zhai-lw/L3AC, branch `train`, `PerceptualLoss`) and counts the silence up to 30 s too.

    Every clip is heard as if it were alone: clips of one duration run together, without padding, since encoders that
    normalise over time were not trained with masks. Whisper hears each clip followed by silence up to 30 s, as it
    always does; that silence does not count.

    Encoders that normalise the waveform do not hear its level.

    Args:
        model: as of `FrozenEncoder`.
        sampling_rate: Hz, of the audio.

    Raises:
        ValueError: as `FrozenEncoder`, and for an encoder with another sampling rate.
    """

    def __init__(self, model: str | os.PathLike, sampling_rate: int):
        super().__init__(model)
        self.check_sampling_rate(model, sampling_rate)

    def forward(self, reference: torch.Tensor, estimate: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        """Squared differences summed over channels, mean over the frames that hold audio: float `(batch,)`, 0 for a
        clip without audio.

        Args:
            reference: float `(batch, 1, num_samples)`; gets no gradient.
            estimate: of the same shape.
            padding_mask: `(batch, num_samples)`, 1 for audio, then 0 to the end.

        Raises:
            ValueError: other shapes, a clip shorter than one frame of the encoder, or longer than Whisper hears (30 s).
        """
        reference = silence_padding(reference, padding_mask, "reference")
        estimate = silence_padding(estimate, padding_mask, "estimate")
        durations = padding_mask.bool().sum(dim=-1)
        losses = estimate.new_zeros(len(estimate))
        for num_samples in durations[durations > 0].unique().tolist():
            rows = durations == num_samples
            with torch.no_grad():
                reference_states = self.hidden_states(reference[rows, :num_samples])
            states = self.hidden_states(estimate[rows, :num_samples])
            losses[rows] = (states - reference_states).float().square().sum(dim=-1).mean(dim=-1).to(losses.dtype)
        return losses


class FeatureLoss(FrozenEncoder):
    """Distance of what several layers of an audio encoder make of two waveforms: mean squared difference of the hidden
    states, each frame normalised to mean 0 and variance 1, over the frames that hold audio, mean over the layers.

    Each frame is normalised because in deeper layers of Whisper single frames hold a number a hundred times as large as
    all others (Sun et al. 2024, arXiv:2402.17762), which would be all that counts.

    What a speech recogniser can't tell from the recording is understood: JHCodec (2025) trains a codec so. A crop runs
    as it is: Whisper's positions are cut to its length instead of 30 s of silence that would cost thirty times as much
    for a second. What an encoder then makes of a crop is near, not equal, to what it makes of it padded.

    Args:
        model: as of `FrozenEncoder`.
        sampling_rate: Hz, of the audio.
        layers: numbers of the encoder's layers, from 1; those above the highest are not computed.

    Raises:
        ValueError: as `FrozenEncoder`, for an encoder with another sampling rate, or without such a layer.
    """

    def __init__(self, model: str | os.PathLike, sampling_rate: int, layers: Sequence[int]):
        super().__init__(model)
        self.check_sampling_rate(model, sampling_rate)
        num_layers = self.encoder.config.num_hidden_layers
        if not layers or min(layers) < 1 or max(layers) > num_layers:
            raise ValueError(f"expected layers from 1 to {num_layers} of {model}, got {tuple(layers)}: choose others")
        self.layers = tuple(layers)

    def forward(self, reference: torch.Tensor, estimate: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        """Float `(batch,)`, 0 for a clip without audio.

        Args:
            reference: float `(batch, 1, num_samples)`; gets no gradient.
            estimate: of the same shape.
            padding_mask: `(batch, num_samples)`, 1 for audio, then 0 to the end: silence is heard there, and does not
                count.

        Raises:
            ValueError: other shapes, clips shorter than one frame of the encoder, or longer than Whisper hears (30 s).
        """
        reference = silence_padding(reference, padding_mask, "reference").float()
        estimate = silence_padding(estimate, padding_mask, "estimate").float()
        with torch.no_grad():
            noise = self._noise(reference)
            wanted = self.layer_states(reference, self.layers, noise)
        loss = 0
        for a, b in zip(wanted, self.layer_states(estimate, self.layers, noise)):
            a, b = (nn.functional.layer_norm(states.float(), states.shape[-1:]) for states in (a, b))
            first_samples = torch.arange(a.shape[1], device=a.device) * padding_mask.shape[1] // a.shape[1]
            counted = padding_mask[:, first_samples].bool()
            distances = (a - b).square().mean(dim=-1).masked_fill(~counted, 0)
            loss = loss + distances.sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
        return loss / len(self.layers)

    def _noise(self, reference: torch.Tensor) -> torch.Tensor | float:
        """What is added to the mel powers of both waveforms, `(batch, 1, 1)`: 40 dB below the loudest of the reference.
        In pauses the logarithm of nearly nothing would have a gradient a thousand times that of speech."""
        if not isinstance(self.feature_extractor, WhisperFeatureExtractor):
            return 0.0
        loudest = whisper_mel_powers(reference, self.feature_extractor).amax(dim=(1, 2), keepdim=True)
        return LOUDEST_SHARE * loudest + AUDIBLE_FLOOR


class TokenAlignment(nn.Module):
    """How far a linear map of a codec's features is from what an audio encoder makes of the same audio, for tokens that
    say what the encoder hears: 1 less the cosine, mean over frames. The map is trained, the encoder is frozen.

    Lycodec has it with MERT and mHuBERT (https://github.com/mini-kio/Lycodec at commit 8040de3). The encoder hears the
    channels' mean, at its own sampling rate (the original: the left channel).

    Args:
        model: as of `FrozenEncoder`.
        latent_dim: of the features.
        sampling_rate: Hz, of the audio.

    Raises:
        ValueError: as `FrozenEncoder`.
    """

    def __init__(self, model: str | os.PathLike, latent_dim: int, sampling_rate: int):
        super().__init__()
        encoder = FrozenEncoder(model)
        self.sampling_rate = sampling_rate
        self.projection = nn.Linear(latent_dim, encoder.encoder.config.hidden_size)
        self._encoder = [encoder]  # a list keeps it from being registered: it is not saved with a run

    def forward(self, audio: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Float `(batch, num_channels, num_samples)` and `(batch, num_frames, latent_dim)` of it to `(batch,)`."""
        encoder = self._encoder[0].to(audio.device)
        with torch.no_grad():
            heard = resample(
                audio.mean(dim=1).cpu().numpy(), self.sampling_rate, encoder.feature_extractor.sampling_rate
            )
            states = encoder.hidden_states(torch.from_numpy(heard).to(audio.device))
            states = nn.functional.adaptive_avg_pool1d(states.transpose(1, 2), features.shape[1]).transpose(1, 2)
        return 1 - nn.functional.cosine_similarity(self.projection(features), states, dim=-1).mean(dim=1)


def whisper_log_mel(
    audio: torch.Tensor,
    extractor: WhisperFeatureExtractor,
    num_samples: int,
    noise: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """What `extractor` makes of clips, with gradients (Radford et al. 2022, arXiv:2212.04356, section 2.2).

    The log10 of mel powers, at least 1e-10 and at least 8 below the clip's loudest, plus 4, over 4, of each clip
    followed by silence. Dither is left out.

    Args:
        audio: float32 `(batch, num_samples)` at the extractor's sampling rate.
        num_samples: that clips are padded to with silence; the extractor does so up to its `n_samples` (30 s).
        noise: what is added to the mel powers, `(batch, 1, 1)`; the extractor adds nothing.

    Returns:
        float32 `(batch, num_mels, num_samples // extractor.hop_length)`.
    """
    audio = nn.functional.pad(audio, (0, num_samples - audio.shape[-1]))
    mels = whisper_mel_powers(audio, extractor)
    logarithms = (mels + noise).clamp(min=WHISPER_FLOOR).log10()
    return (torch.maximum(logarithms, logarithms.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4


def whisper_mel_powers(audio: torch.Tensor, extractor: WhisperFeatureExtractor) -> torch.Tensor:
    """Clips float32 `(batch, num_samples)` to mel powers `(batch, num_mels, num_samples // extractor.hop_length)`."""
    window = torch.hann_window(extractor.n_fft, device=audio.device)
    frames = torch.stft(audio, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)[..., :-1]
    filters = torch.from_numpy(extractor.mel_filters.T).to(audio)
    with torch.autocast(audio.device.type, enabled=False):
        return filters @ torch.view_as_real(frames).square().sum(dim=-1)


def normalized(audio: torch.Tensor) -> torch.Tensor:
    """Clips `(batch, num_samples)` with mean 0 and variance 1, as `Wav2Vec2FeatureExtractor` makes them."""
    centred = audio - audio.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-7).sqrt()
