"""LycodecModel: Lycodec (https://github.com/mini-kio/Lycodec at commit 8040de3), stereo at 48 kHz.

crops of 1.5 s -> spectrograms of mid and side -> 18 frames each -> a level for each of 256 numbers of a frame
              <- spectrograms of mid and side <- one step of a consistency model, from noise <-

Each crop is encoded and decoded apart from all others. The original's code is in other terms: it transmits floats. Here
codes are integers, and what it transmits can be made from `latents`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .configuration_lycodec import LycodecConfig
from .decoder_lycodec import LycodecDecoder
from .encoder_lycodec import SPECTROGRAM_CHANNELS, LycodecEncoder
from .layers_lycodec import DROPOUT, LycodecMLP
from .outputs import CodecDecoderOutput, CodecEncoderOutput, CodecOutput
from .padding import ceil_divide, right_padding_mask, zero_padding
from .precision import at_least_float32
from .pretrained import PreTrainedCodec, check_code_range, check_finite, check_num_samples, check_tensor
from .spectrogram_lycodec import MidSideSpectrogram

CROPS_PER_PASS = 8  # that are computed together, which bounds the memory that long clips take


class LycodecQuantizer(nn.Module):
    """Each latent number bounded by tanh and rounded to a level, and what the decoder reads of it.

    Digits are integers in [0, L), L = quantization_levels[0]; values are the levels, evenly over [-1, 1]. Features are
    the values and what a small network adds for the residual, bounded latents less values. The decoder has seen only
    the residual 0 in training, in the original too, and codes hold no other.

    Digits, values and residuals are float32 or int64 whatever the model's dtype is.
    """

    def __init__(self, config: LycodecConfig):
        super().__init__()
        self.half_range = (config.codebook_size - 1) // 2
        self.residual_scale = nn.Parameter(torch.empty(1))
        self.residual_mlp = LycodecMLP(config.latent_dim, 2 * config.latent_dim, DROPOUT)
        self.reset_parameters()

    def reset_parameters(self):
        """As in the original."""
        nn.init.ones_(self.residual_scale)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `(..., latent_dim)` to features of the same shape and digits, int64. The gradient passes the rounding
        unchanged (straight-through)."""
        bounded = torch.tanh(at_least_float32(latents))
        digits = self.round(latents)
        values = self.digits_to_values(digits).to(bounded.dtype)
        return self.values_to_features(bounded + (values - bounded).detach()), digits

    def round(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to digits, int64."""
        positions = self.half_range * torch.tanh(at_least_float32(latents.detach()))
        return positions.round().to(torch.int64) + self.half_range

    def digits_to_values(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits to values in [-1, 1], float32."""
        return (digits.to(torch.float32) - self.half_range) / self.half_range

    def values_to_features(self, values: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Values `(..., latent_dim)` and a residual of the same shape, 0 if not given, to features, in the model's
        dtype."""
        residual = torch.zeros_like(values) if residual is None else residual
        dtype = self.residual_scale.dtype
        return values.to(dtype) + self.residual_scale * self.residual_mlp(residual.to(dtype))

    def latents_to_features(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to features with their residual, which codes do not hold: what the original transmits."""
        bounded = torch.tanh(at_least_float32(latents))
        values = self.digits_to_values(self.round(latents)).to(bounded.dtype)
        return self.values_to_features(values, bounded - values)


class LycodecModel(PreTrainedCodec):
    """Stereo music and audio to 12 frames a second of 256 codes each, and back.

    A clip is padded with silence to whole crops, and every crop is computed apart from all others: neither codes nor
    audio depend on the batch.
    """

    config: LycodecConfig
    base_model_prefix = "lycodec"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "LycodecConvBlock",
        "LycodecResampler",
        "LycodecEncoderLayer",
        "LycodecQuantizer",
        "LycodecConditioner",
        "LycodecNetwork",
        "LycodecBandHead",
    ]

    def __init__(self, config: LycodecConfig):
        super().__init__(config)
        config.validate()  # `from_pretrained(folder, field=value)` sets fields without validation
        self.spectrogram = MidSideSpectrogram(config)
        self.encoder = LycodecEncoder(config)
        self.quantizer = LycodecQuantizer(config)
        self.decoder = LycodecDecoder(config)
        self.post_init()

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecEncoderOutput:
        """Audio to codes.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch, 2, num_samples)`): audio in [-1, 1] at
                `config.sampling_rate`, left and right; `(batch, 1, num_samples)` is taken as two equal channels.
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for audio, 0 for padding on the
                right; all audio if not given.
            output_latents (`bool`): return the latents too.

        Returns:
            [`CodecEncoderOutput`] with `config.frames_per_crop` frames for each crop of `config.crop_length` samples
            that is begun. Value = (code - half) / half, with half = (codebook_size - 1) / 2.

        Raises:
            ValueError: no tensor, integers, another shape, no samples, NaN or infinity, a clip that is all padding,
                padding on the left.
        """
        latents, crop_mask = self._encode_latents(input_values, padding_mask)
        return CodecEncoderOutput(
            **self._code_outputs(self.quantizer.round(latents), latents, crop_mask, output_latents)
        )

    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.Tensor | None = None,
        *,
        audio_codes_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        num_samples: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        noise_level: float | None = None,
        return_dict: bool | None = None,
    ) -> CodecDecoderOutput:
        """Codes, or latents, to audio.

        It starts from noise, which without `noise` and `generator` follows from `config.noise_seed` and a crop's place
        in its clip: the same codes are always decoded to the same audio, alone, in any batch and on any device.

        Args:
            audio_codes (`torch.LongTensor` of shape `(batch, num_codebooks, num_frames)`, *optional*): whole crops of
                `config.frames_per_crop` frames.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): 1 for frames, 0 for padding on
                the right, whose codes are not looked at; all frames if not given.
            latents (`torch.FloatTensor` of shape `(batch, latent_dim, num_frames)`, *optional*): instead of
                `audio_codes`; decoded with the residual that codes lack, as the original does.
            num_samples (`int`, *optional*): cut the audio to this length. Whole crops if not given.
            noise (`torch.FloatTensor` of shape `(batch * num_crops, 4, stft_bins, stft_frames)`, *optional*): of
                deviation 1, to start from; a clip's crops follow each other.
            generator (`torch.Generator`, *optional*): draws the noise instead.
            noise_level (`float`, *optional*): deviation that the noise is scaled to, `config.noise_level` if not given.
                At the original's, 0.001, the audio hardly depends on the codes where weights are random; a consistency
                model is meant to start at the highest level of its training, 80.

        Returns:
            [`CodecDecoderOutput`] with `config.crop_length` samples for each crop, or `num_samples`.

        Raises:
            ValueError: both or none of `audio_codes` and `latents`, both of `noise` and `generator`, another type or
                shape, no whole crops, codes out of range, a `num_samples` that the frames do not hold, a `noise_level`
                that is not above 0, or with the boundary "exact" not above `config.min_noise_level`.
        """
        if (audio_codes is None) == (latents is None):
            raise ValueError("decode takes either audio_codes or latents")
        if latents is None:
            check_tensor(audio_codes, "audio_codes", self.config.num_codebooks, "num_frames", is_float=False)
        else:
            check_tensor(latents, "latents", self.config.latent_dim, "num_frames", is_float=True)
        given = (audio_codes if latents is None else latents).transpose(1, 2)
        batch_size, num_frames = given.shape[:2]
        check_num_samples(num_samples, num_frames, self.config.hop_length)
        crop_mask = self._crop_mask_of_frames(audio_codes_mask, batch_size, num_frames)
        if latents is None:
            codes = zero_padding(given, crop_mask.repeat_interleave(self.config.frames_per_crop, dim=1).unsqueeze(-1))
            check_code_range(codes, self.config.codebook_size)
            features = self.quantizer.values_to_features(self.quantizer.digits_to_values(codes))
        else:
            features = self.quantizer.latents_to_features(given)
        audio_values = self._decode_features(features, crop_mask, noise, generator, noise_level)
        return CodecDecoderOutput(audio_values[..., :num_samples])

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        noise_level: float | None = None,
        return_dict: bool | None = None,
    ) -> CodecOutput:
        """Audio to codes to audio of the same length. Arguments and errors are those of [`LycodecModel.encode`] and
        [`LycodecModel.decode`]; the gradient of `audio_values` reaches the encoder through the straight-through
        quantizer."""
        latents, crop_mask = self._encode_latents(input_values, padding_mask)
        features, digits = self.quantizer(latents)
        audio_values = self._decode_features(features, crop_mask, noise, generator, noise_level)
        audio_values = audio_values[..., : input_values.shape[-1]]
        if padding_mask is not None:
            audio_values = zero_padding(audio_values, padding_mask.bool().unsqueeze(1))
        return CodecOutput(audio_values, **self._code_outputs(digits, latents, crop_mask, output_latents))

    def crop_noise(self, places: torch.Tensor) -> torch.Tensor:
        """The noise that `decode` starts from, `(num_crops, 4, stft_bins, stft_frames)` float32 on the CPU, of crops at
        these places in their clips, `(num_crops,)` from 0. It depends on nothing else but `config.noise_seed`."""
        generators = [torch.Generator().manual_seed(self.config.noise_seed + place) for place in places.tolist()]
        drawn = [torch.randn(self._spectrogram_shape, generator=each, device="cpu") for each in generators]
        return torch.stack(drawn)

    def _encode_latents(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `(batch, num_frames, latent_dim)` and which crops hold audio, bool `(batch, num_crops)`."""
        check_tensor(input_values, "input_values", (1, self.config.num_channels), "num_samples", is_float=True)
        batch_size, _, num_samples = input_values.shape
        mask = right_padding_mask(padding_mask, (batch_size, num_samples), "padding_mask", "sample")
        crop_length = self.config.crop_length
        num_crops = ceil_divide(num_samples, crop_length)
        crop_starts = torch.arange(num_crops, device=input_values.device) * crop_length
        if mask is None:
            crop_mask = (crop_starts < num_samples).expand(batch_size, -1)
        else:
            input_values = zero_padding(input_values, mask.transpose(1, 2))
            crop_mask = crop_starts < mask.sum(dim=1)
        check_finite(input_values, "input_values")
        padded = nn.functional.pad(input_values, (0, num_crops * crop_length - num_samples))
        crops = padded.expand(-1, self.config.num_channels, -1).unflatten(-1, (num_crops, -1)).transpose(1, 2)
        latents = _for_real_crops(lambda crops: self.encoder(self.spectrogram(crops)), crop_mask, crops)
        return latents.flatten(1, 2), crop_mask

    def _decode_features(
        self,
        features: torch.Tensor,
        crop_mask: torch.Tensor,
        noise: torch.Tensor | None,
        generator: torch.Generator | None,
        noise_level: float | None,
    ) -> torch.Tensor:
        """Features `(batch, num_frames, latent_dim)` to audio `(batch, 2, num_crops * crop_length)`."""
        noise_level = self.config.noise_level if noise_level is None else noise_level
        lowest = self.config.min_noise_level if self.config.boundary == "exact" else 0
        if not lowest < noise_level < float("inf"):
            raise ValueError(f"noise_level is {noise_level}: a number above {lowest:g} is wanted")
        noise = self._given_noise(crop_mask.shape, noise, generator)
        places = torch.arange(crop_mask.shape[1], device=features.device).expand(crop_mask.shape)

        def decode_crops(features: torch.Tensor, noise_or_places: torch.Tensor) -> torch.Tensor:
            drawn = self.crop_noise(noise_or_places) if noise is None else noise_or_places
            levels = torch.full((len(features),), noise_level, dtype=torch.float32, device=features.device)
            return self.spectrogram.inverse(self.decoder(features, noise_level * drawn.to(features.device), levels))

        crops = _for_real_crops(
            decode_crops,
            crop_mask,
            features.unflatten(1, (-1, self.config.frames_per_crop)),
            places if noise is None else noise,
        )
        return crops.transpose(1, 2).flatten(2)

    def _given_noise(
        self, crops: tuple[int, int], noise: torch.Tensor | None, generator: torch.Generator | None
    ) -> torch.Tensor | None:
        """The caller's noise, `(batch, num_crops, 4, stft_bins, stft_frames)` for `crops` (batch, num_crops)."""
        if noise is not None and generator is not None:
            raise ValueError("decode takes noise or generator, not both")
        if generator is not None:
            return torch.randn((*crops, *self._spectrogram_shape), generator=generator, device=generator.device)
        if noise is None:
            return None
        wanted = (crops[0] * crops[1], *self._spectrogram_shape)
        if not isinstance(noise, torch.Tensor) or noise.shape != wanted or not noise.is_floating_point():
            given = f"shape {tuple(noise.shape)}" if isinstance(noise, torch.Tensor) else f"type {type(noise).__name__}"
            raise ValueError(f"noise has {given}: a tensor of floats {wanted} is wanted, (crops, 4, bins, columns)")
        return at_least_float32(noise).unflatten(0, crops)

    @property
    def _spectrogram_shape(self) -> tuple[int, int, int]:
        return SPECTROGRAM_CHANNELS, self.config.stft_bins, self.config.stft_frames

    def _crop_mask_of_frames(self, audio_codes_mask, batch_size: int, num_frames: int) -> torch.Tensor:
        """Which crops hold frames, bool `(batch, num_crops)`."""
        frames_per_crop = self.config.frames_per_crop
        mask = right_padding_mask(audio_codes_mask, (batch_size, num_frames), "audio_codes_mask", "frame")
        full = torch.full((batch_size, 1), num_frames, device=self.device)
        lengths = full if mask is None else mask.sum(dim=1)
        for length in {num_frames, *lengths.flatten().tolist()}:
            if length % frames_per_crop:
                raise ValueError(f"{length} frames are no whole crops: a multiple of {frames_per_crop} is wanted")
        return torch.arange(0, num_frames, frames_per_crop, device=lengths.device) < lengths

    def _code_outputs(
        self, digits: torch.Tensor, latents: torch.Tensor, crop_mask: torch.Tensor, output_latents: bool
    ) -> dict:
        """`audio_codes`, `audio_codes_mask` and `latents` as the outputs hold them."""
        frame_mask = crop_mask.repeat_interleave(self.config.frames_per_crop, dim=1)
        return {
            "audio_codes": zero_padding(digits, frame_mask.unsqueeze(-1)).transpose(1, 2),
            "audio_codes_mask": frame_mask.to(torch.int64),
            "latents": latents.transpose(1, 2) if output_latents else None,
        }


def _for_real_crops(function: Callable, crop_mask: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """`function` of the crops that hold audio, a few at a time, and zeros for the others.

    Inputs are `(batch, num_crops, ...)`, those of `function` `(some, ...)`; so are outputs.
    """
    passes = zip(*(values[crop_mask.to(values.device)].split(CROPS_PER_PASS) for values in inputs))
    results = torch.cat([function(*values) for values in passes])
    output = results.new_zeros(*crop_mask.shape, *results.shape[1:])
    output[crop_mask] = results
    return output


LycodecConfig.register_for_auto_class()
LycodecModel.register_for_auto_class("AutoModel")

__all__ = ["LycodecModel"]
