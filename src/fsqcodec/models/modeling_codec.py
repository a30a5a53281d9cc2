"""CodecModel: the codecs L3AC and SQCodec (https://arxiv.org/abs/2504.04949) and our own, one architecture.

waveform -> convolutions -> local transformer -> scalar quantizer -> local transformer -> convolutions -> waveform

Inside, data is `(batch, num_steps, channels)`; the public methods take and return what Transformers' codecs do.
"""

import torch
from torch import nn
from transformers.utils import can_return_tuple, logging

from .configuration_codec import LATENT_KERNEL_SIZE, TAIL_CONTEXT, TAIL_DILATIONS, TAIL_KERNEL_SIZE, CodecConfig
from .convolution import (
    Conv1d,
    ConvUnit,
    DownsamplingConv1d,
    Snake,
    SnakeUnit,
    TrendEnhance,
    TrendStem,
    in_tiles,
    layer_norm,
    upsample_linear,
)
from .frames import FrameHead, FrameStem
from .local_attention import DownsamplingTransformer, UpsamplingTransformer
from .outputs import CodecDecoderOutput, CodecEncoderOutput, CodecOutput
from .padding import ceil_divide, ceil_to_multiple, right_padding_mask, zero_padding
from .pretrained import PreTrainedCodec, check_code_range, check_finite, check_num_samples, check_tensor
from .quantization import FiniteScalarQuantizer

logger = logging.get_logger(__name__)

FRAMES_UNIT_START_GAIN = 0.1  # deep stacks of units at one rate learn fast and steadily from near the identity


class EncoderStage(nn.Module):
    """Convolution units at one rate, then down to the next."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, ratio: int, norm_eps: float | None):
        super().__init__()
        self.ratio = ratio
        self.units = nn.ModuleList(ConvUnit(in_channels, norm_eps) for _ in range(depth))
        self.downsample = DownsamplingConv1d(in_channels, out_channels, ratio)
        self.norm = layer_norm(out_channels, norm_eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, num_steps, in_channels)` and its mask to `(batch, num_steps / ratio, out_channels)` and its mask."""
        for unit in self.units:
            x = unit(x, mask)
        return self.norm(self.downsample(x)), None if mask is None else mask[:, :: self.ratio]


class CodecEncoder(nn.Module):
    """Waveform `(batch, num_samples, 1)` to latents `(batch, num_samples / hop_length, latent_dim)`."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        sizes = config.encoder_hidden_sizes
        on_frames = config.encoder_stem == "frames"
        self.stem = FrameStem(sizes[0], config.downsampling_ratios[0]) if on_frames else TrendStem(sizes[0])
        self.stages = nn.ModuleList(
            EncoderStage(in_channels, out_channels, depth, ratio, config.norm_eps)
            for in_channels, out_channels, depth, ratio in zip(
                sizes[:-1], sizes[1:], config.encoder_depths, config.downsampling_ratios
            )
        )
        start_gain = FRAMES_UNIT_START_GAIN if on_frames else 1.0
        self.units = nn.ModuleList(
            ConvUnit(sizes[-1], config.norm_eps, start_gain) for _ in range(config.encoder_depths[-1])
        )
        self.to_latents = Conv1d(sizes[-1], config.latent_dim, LATENT_KERNEL_SIZE)
        self.transformer = DownsamplingTransformer(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x, mask = self.stem(x, mask)
        for stage in self.stages:
            x, mask = stage(x, mask)
        for unit in self.units:
            x = unit(x, mask)
        return self.transformer(self.to_latents(zero_padding(x, mask)))


class DecoderStage(nn.Module):
    """Convolution units at one rate, the enhance block, then up to the next rate."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, ratio: int, norm_eps: float, enhance_normalization: str
    ):
        super().__init__()
        self.ratio = ratio
        self.units = nn.ModuleList(ConvUnit(in_channels, norm_eps) for _ in range(depth))
        self.enhance = TrendEnhance(in_channels, enhance_normalization)
        self.project = nn.Linear(in_channels, out_channels)
        self.norm = nn.LayerNorm(out_channels, eps=norm_eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, num_steps, in_channels)` and its mask to `(batch, num_steps * ratio, out_channels)` and its mask."""
        for unit in self.units:
            x = unit(x, mask)
        inputs = x, self.enhance(x, mask), mask
        x = in_tiles(self._upsample, inputs, self.ratio * self.project.out_features, context=1)
        return x, None if mask is None else mask.repeat_interleave(self.ratio, dim=1)

    def _upsample(self, x: torch.Tensor, envelopes: torch.Tensor, mask: torch.Tensor | None, inside: slice):
        x = self.project(self.enhance.scale(x, envelopes))
        x = upsample_linear(x, self.ratio, mask)
        return self.norm(x[:, self.ratio * inside.start : self.ratio * inside.stop])


class CodecDecoder(nn.Module):
    """The quantizer's output `(batch, num_frames, latent_dim)` to a waveform `(batch, num_frames * hop_length, 1)`."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        sizes = config.decoder_hidden_sizes
        self.steps_per_frame = config.transformer_downsampling_ratio
        self.transformer = UpsamplingTransformer(config)
        self.from_latents = Conv1d(config.latent_dim, sizes[0], LATENT_KERNEL_SIZE)
        self.on_frames = config.decoder_head == "frames"
        if self.on_frames:
            self.units = nn.ModuleList(
                ConvUnit(sizes[0], config.norm_eps, FRAMES_UNIT_START_GAIN) for _ in range(config.decoder_depths[0])
            )
            self.to_waveform = FrameHead(sizes[0], config.upsampling_ratios[0])
            return
        self.stages = nn.ModuleList(
            DecoderStage(in_channels, out_channels, depth, ratio, config.norm_eps, config.enhance_normalization)
            for in_channels, out_channels, depth, ratio in zip(
                sizes[:-1], sizes[1:], config.decoder_depths, config.upsampling_ratios
            )
        )
        self.tail_units = nn.ModuleList(SnakeUnit(sizes[-1], dilation) for dilation in TAIL_DILATIONS)
        self.tail_snake = Snake(sizes[-1])
        self.to_waveform = Conv1d(sizes[-1], 1, TAIL_KERNEL_SIZE)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = self.transformer(x, mask)
        if mask is not None:
            mask = mask.repeat_interleave(self.steps_per_frame, dim=1)
        x = self.from_latents(zero_padding(x, mask))
        x, mask = self._frames_to_waveform(x, mask) if self.on_frames else self._upsample_to_waveform(x, mask)
        return zero_padding(torch.tanh(x), mask)

    def _frames_to_waveform(self, x: torch.Tensor, mask: torch.Tensor | None):
        for unit in self.units:
            x = unit(x, mask)
        return self.to_waveform(x, mask)

    def _upsample_to_waveform(self, x: torch.Tensor, mask: torch.Tensor | None):
        for stage in self.stages:
            x, mask = stage(x, mask)
        return in_tiles(self._tail, (x, mask), 2 * x.shape[-1], TAIL_CONTEXT), mask

    def _tail(self, x: torch.Tensor, mask: torch.Tensor | None, inside: slice) -> torch.Tensor:
        for unit in self.tail_units:
            x = unit(x, mask)
        return self.to_waveform(zero_padding(self.tail_snake(x), mask))[:, inside]


def warn_of_half_precision(model: PreTrainedCodec):
    """Say once of a model that encodes in half precision what that means."""
    if model.dtype in (torch.bfloat16, torch.float16) and not torch.compiler.is_compiling():
        logger.warning_once(
            f"encoding in {model.dtype} gives other tokens than float32 for a part of the frames: take them from a "
            "model loaded with dtype=torch.float32 where they are to be equal everywhere"
        )


class CodecModel(PreTrainedCodec):
    """Speech and audio to one stream of tokens, and back.

    A clip's tokens and its audio do not depend on the batch it is in: padding is masked wherever steps are mixed.
    """

    config: CodecConfig
    base_model_prefix = "codec"
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "TrendStem",
        "ConvUnit",
        "TrendEnhance",
        "SnakeUnit",
        "LocalTransformer",
        "EncoderStage",
        "DecoderStage",
        "FiniteScalarQuantizer",
    ]

    def __init__(self, config: CodecConfig):
        super().__init__(config)
        config.validate()  # `from_pretrained(folder, field=value)` sets fields without validation
        self.encoder = CodecEncoder(config)
        self.quantizer = FiniteScalarQuantizer(config.latent_dim, config.quantization_levels, config.quantizer_bound)
        self.decoder = CodecDecoder(config)
        self.post_init()

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecEncoderOutput:
        """Audio to tokens.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch, 1, num_samples)`): audio in [-1, 1] at
                `config.sampling_rate`.
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for audio, 0 for padding on the
                right; all audio if not given.
            output_latents (`bool`): return the latents too.

        A model in half precision gives other tokens than in float32 for a part of the frames, and says so once.

        Returns:
            [`CodecEncoderOutput`] with `ceil(num_samples / config.hop_length)` frames.

        Raises:
            ValueError: no tensor, integers, another shape, no samples, NaN or infinity, a clip that is all padding,
                padding on the left. Values are not checked under `torch.compile`.
        """
        warn_of_half_precision(self)
        latents, frame_mask = self._encode_latents(input_values, padding_mask)
        _, indices = self.quantizer(latents)
        return CodecEncoderOutput(
            **self._code_outputs(indices, frame_mask),
            latents=self._channels_first(latents, frame_mask) if output_latents else None,
        )

    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.Tensor | None = None,
        *,
        audio_codes_mask: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        num_samples: int | None = None,
        return_dict: bool | None = None,
    ) -> CodecDecoderOutput:
        """Tokens, or latents, to audio.

        Args:
            audio_codes (`torch.LongTensor` of shape `(batch, 1, num_frames)`, *optional*): tokens from anywhere.
            audio_codes_mask (`torch.Tensor` of shape `(batch, num_frames)`, *optional*): 1 for frames, 0 for padding on
                the right, whose codes are not looked at; all frames if not given.
            latents (`torch.FloatTensor` of shape `(batch, latent_dim, num_frames)`, *optional*): instead of
                `audio_codes`; decoded without being quantized.
            num_samples (`int`, *optional*): cut the audio to this length. A whole number of frames if not given.

        Returns:
            [`CodecDecoderOutput`] with `num_frames * config.hop_length` samples, or `num_samples`.

        Raises:
            ValueError: both or none of `audio_codes` and `latents`, another type or shape, codes out of range, a
                `num_samples` that the frames do not hold. Values of codes and mask are not checked under
                `torch.compile`.
        """
        if (audio_codes is None) == (latents is None):
            raise ValueError("decode takes either audio_codes or latents")
        if latents is None:
            check_tensor(audio_codes, "audio_codes", self.config.num_codebooks, "num_frames", is_float=False)
        else:
            check_tensor(latents, "latents", self.config.latent_dim, "num_frames", is_float=True)
        batch_size, _, num_frames = (audio_codes if latents is None else latents).shape
        check_num_samples(num_samples, num_frames, self.config.hop_length)
        mask = right_padding_mask(audio_codes_mask, (batch_size, num_frames), "audio_codes_mask", "frame")
        if latents is None:
            features = self.quantizer.indices_to_features(self._checked_indices(audio_codes, mask))
        else:
            features = self.quantizer.latents_to_features(latents.transpose(1, 2))
        return CodecDecoderOutput(self._decode_features(features, mask, num_samples))

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        output_latents: bool = False,
        return_dict: bool | None = None,
    ) -> CodecOutput:
        """Audio to tokens to audio of the same length. Arguments and errors are those of [`CodecModel.encode`]; the
        gradient of `audio_values` reaches the encoder through the straight-through quantizer."""
        latents, frame_mask = self._encode_latents(input_values, padding_mask)
        features, indices = self.quantizer(latents)
        audio_values = self._decode_features(features, frame_mask, num_samples=input_values.shape[-1])
        if padding_mask is not None:
            audio_values = zero_padding(audio_values, padding_mask.bool().unsqueeze(1))
        return CodecOutput(
            audio_values=audio_values,
            **self._code_outputs(indices, frame_mask),
            latents=self._channels_first(latents, frame_mask) if output_latents else None,
        )

    def _encode_latents(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents `(batch, num_frames, latent_dim)` and the mask of their frames, `(batch, num_frames, 1)`.

        Each clip is followed by the silence that its family's encoder hears after it, as much of it as the last frames
        can hear; what lies further to the right is padding of the batch.
        """
        check_tensor(input_values, "input_values", 1, "num_samples", is_float=True)
        config = self.config
        num_samples = input_values.shape[-1]
        num_frames = ceil_divide(num_samples, config.hop_length)
        silent_frames = torch.sym_min(  # `min`, also of numbers that a graph does not know
            -num_frames % config.padding_frames, ceil_divide(config.encoder_lookahead_samples, config.hop_length)
        )
        heard_samples = (num_frames + silent_frames) * config.hop_length
        mask = right_padding_mask(padding_mask, (input_values.shape[0], num_samples), "padding_mask", "sample")
        frame_mask = sample_mask = None
        x = input_values.transpose(1, 2).to(self.dtype)
        if mask is not None:
            x = zero_padding(x, mask)
            clip_samples = mask.sum(dim=1, keepdim=True)
            samples, frames = (torch.arange(n, device=mask.device)[None, :, None] for n in (heard_samples, num_frames))
            sample_mask = samples < ceil_to_multiple(clip_samples, config.padding_multiple)
            frame_mask = frames * config.hop_length < clip_samples
        check_finite(x, "input_values")
        x = nn.functional.pad(x, (0, 0, 0, heard_samples - num_samples))
        return self.encoder(x, sample_mask)[:, :num_frames], frame_mask

    def _decode_features(
        self, features: torch.Tensor, frame_mask: torch.Tensor | None, num_samples: int | None
    ) -> torch.Tensor:
        """The quantizer's output `(batch, num_frames, latent_dim)` to audio `(batch, 1, num_samples)`."""
        return self.decoder(features, frame_mask).transpose(1, 2)[..., :num_samples]

    def _checked_indices(self, audio_codes: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Indices `(batch, num_frames)`, 0 in padding."""
        indices = audio_codes[:, 0].to(torch.int64)
        if frame_mask is not None:
            indices = zero_padding(indices, frame_mask[..., 0])
        check_code_range(indices, self.config.codebook_size)
        return indices

    def _code_outputs(self, indices: torch.Tensor, frame_mask: torch.Tensor | None) -> dict:
        """`audio_codes` and `audio_codes_mask` as the outputs hold them."""
        if frame_mask is None:
            return {"audio_codes": indices.unsqueeze(1), "audio_codes_mask": torch.ones_like(indices)}
        mask = frame_mask[..., 0]
        return {"audio_codes": zero_padding(indices, mask).unsqueeze(1), "audio_codes_mask": mask.to(torch.int64)}

    def _channels_first(self, latents: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        return zero_padding(latents, frame_mask).transpose(1, 2)


CodecConfig.register_for_auto_class()
CodecModel.register_for_auto_class("AutoModel")

__all__ = ["CodecModel"]
