"""CodecConfig: the architecture of L3AC, SQCodec and our own codecs in numbers, rates derived from them, presets."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .codec_facts import OneRateFacts

TREND_KERNEL_SIZES = (1, 5, 11, 21, 45)  # of the encoder's first block, samples
ENHANCE_KERNEL_SIZES = (1, 3, 5, 9)  # of the decoder's enhance blocks, steps of their rate
TREND_CHANNELS = 4  # of each trend in the first block
TREND_CONV_KERNEL_SIZE = 7
UNIT_KERNEL_SIZE = 7
LATENT_KERNEL_SIZE = 3
TAIL_KERNEL_SIZE = 7
TAIL_DILATIONS = (1, 3, 9)


def enhance_dilation(kernel_size: int) -> int:
    """Dilation of the convolution that follows a trend pool of an enhance block."""
    return kernel_size // 2 + 1


# steps on each side that the encoder's first block and an enhance block look at: two pools and a convolution
TREND_CONTEXT = 2 * (max(TREND_KERNEL_SIZES) // 2) + TREND_CONV_KERNEL_SIZE // 2
ENHANCE_CONTEXT = max(
    2 * (kernel_size // 2) + TREND_CONV_KERNEL_SIZE // 2 * enhance_dilation(kernel_size)
    for kernel_size in ENHANCE_KERNEL_SIZES
)
# samples on each side that the full-rate tail looks at: its units and the last convolution
TAIL_CONTEXT = TAIL_KERNEL_SIZE // 2 * (sum(TAIL_DILATIONS) + 1)


@strict
class CodecConfig(OneRateFacts, PreTrainedConfig):
    r"""
    Configuration of [`CodecModel`]: L3AC and SQCodec (https://arxiv.org/abs/2504.04949) are two settings of it, codecs
    that work on frames are a third.

    Rates follow from the fields and are properties: `hop_length`, `frame_rate`, `codebook_size`, `bitrate`, ...

    An unknown argument raises `TypeError`; a value of the wrong type, or values that contradict each other, raise the
    `StrictDataclassFieldValidationError` and `StrictDataclassClassValidationError` of huggingface_hub.

    Args:
        sampling_rate (`int`): Hz, of the audio that goes in and comes out.
        latent_dim (`int`): channels of the latents and of both transformers.
        encoder_stem (`str`): what the encoder begins with. "trend" (the originals) hears the waveform and its envelopes
            at the full rate, and stages follow that lower it. "frames" takes windows of three hops, a hop being the one
            number in `downsampling_ratios`, to the rate of all that follows; `encoder_hidden_sizes` and
            `encoder_depths` have one number too.
        decoder_head (`str`): what the decoder ends with. "upsampling" (the originals) are stages up to the full rate
            and convolutions there. "frames" makes overlapping windows of two hops, a hop being the one number in
            `upsampling_ratios`, even and 4 or more; `decoder_hidden_sizes` and `decoder_depths` have one number too.
        downsampling_ratios (`list[int]`): strides of the encoder's convolutions, first to last.
        encoder_hidden_sizes (`list[int]`): channels of each encoder stage and after the last one.
        encoder_depths (`list[int]`): convolution units of each encoder stage and after the last one.
        upsampling_ratios (`list[int]`): of the decoder's stages, first to last; their product equals that of
            `downsampling_ratios`, their number does not have to.
        decoder_hidden_sizes (`list[int]`): channels of each decoder stage and of the full-rate tail.
        decoder_depths (`list[int]`): convolution units of each decoder stage.
        enhance_normalization (`str`): what the enhance blocks of the decoder's stages normalise by: "clip" (the
            originals), the statistics of the clip, or "running", constants that training has measured.
        transformer_downsampling_ratio (`int`): how many steps of the convolutions make one frame (one token).
        encoder_transformer_depths (`list[int]`): layers at the rate of the convolutions, layers at the frame rate.
        decoder_transformer_depths (`list[int]`): layers at the frame rate, layers at the rate of the convolutions.
        attention_window_size (`int`): frames of a block; a query sees its own block's past and the whole block before.
            Of no effect where all transformer depths are 0, as are the two fields that follow.
        num_attention_heads (`int`): of every transformer layer.
        head_dim (`int`): channels of a head.
        quantization_levels (`list[int]`): levels of each dimension of the quantizer.
        quantizer_bound (`str`): "tanh" (L3AC) or "fsq" (SQCodec), see [`FiniteScalarQuantizer`].
        padding_frames (`int`): the encoder hears a clip followed by silence up to a multiple of this many frames
            (1 for L3AC, a whole attention window for SQCodec).
        norm_eps (`float`): epsilon of the layer norms between convolutions.
    """

    model_type = "codec"
    token_fields = (  # what tokens depend on, beside the weights of encoder and quantizer, whose names tell the stem
        "sampling_rate",
        "downsampling_ratios",
        "transformer_downsampling_ratio",
        "attention_window_size",
        "num_attention_heads",
        "quantization_levels",
        "quantizer_bound",
        "padding_frames",
        "norm_eps",
    )

    sampling_rate: int = 16000
    latent_dim: int = 128
    encoder_stem: Literal["trend", "frames"] = "trend"
    decoder_head: Literal["upsampling", "frames"] = "upsampling"
    downsampling_ratios: list[int] | tuple[int, ...] = (6, 5, 3)
    encoder_hidden_sizes: list[int] | tuple[int, ...] = (24, 48, 96, 192)
    encoder_depths: list[int] | tuple[int, ...] = (1, 1, 1, 2)
    upsampling_ratios: list[int] | tuple[int, ...] = (5, 3, 3, 2)
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (512, 256, 96, 48, 24)
    decoder_depths: list[int] | tuple[int, ...] = (3, 3, 2, 1)
    enhance_normalization: Literal["clip", "running"] = "clip"
    transformer_downsampling_ratio: int = 3
    encoder_transformer_depths: list[int] | tuple[int, ...] = (1, 2)
    decoder_transformer_depths: list[int] | tuple[int, ...] = (3, 2)
    attention_window_size: int = 250
    num_attention_heads: int = 6
    head_dim: int = 32
    quantization_levels: list[int] | tuple[int, ...] = (7, 7, 7, 7, 7, 7)
    quantizer_bound: Literal["tanh", "fsq"] = "tanh"
    padding_frames: int = 1
    norm_eps: float = 1e-8

    def __post_init__(self, **kwargs):
        unknown = set(kwargs) - KNOWN_EXTRAS
        if unknown:
            raise TypeError(
                f"CodecConfig has no field {', '.join(sorted(map(repr, unknown)))}; it has: {', '.join(_OWN_FIELDS)}"
            )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Called by `@strict` after construction; raises `ValueError` naming the field and its value."""
        for name in _OWN_FIELDS:
            value = getattr(self, name)
            lowest = 0 if name.endswith("_depths") else 2 if name == "quantization_levels" else 1
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if not isinstance(value, (str, float)) and (not numbers or min(numbers) < lowest):
                raise ValueError(f"{name} is {value}: it needs at least one number, none below {lowest}")
        encoder_fields = "downsampling_ratios", "encoder_hidden_sizes", "encoder_depths"
        if self.encoder_stem == "frames":
            self._validate_frames("encoder_stem", *encoder_fields)
        else:
            self._validate_stages(*encoder_fields, units_after_last_stage=1)
        decoder_fields = "upsampling_ratios", "decoder_hidden_sizes", "decoder_depths"
        if self.decoder_head == "frames":
            self._validate_frames("decoder_head", *decoder_fields)
            if self.upsampling_ratios[0] % 2 or self.upsampling_ratios[0] < 4:
                raise ValueError(
                    f"upsampling_ratios is {tuple(self.upsampling_ratios)}: with decoder_head 'frames' it needs an "
                    "even number of 4 or more, as frames overlap by half of it on each side"
                )
        else:
            self._validate_stages(*decoder_fields, units_after_last_stage=0)
        if math.prod(self.downsampling_ratios) != math.prod(self.upsampling_ratios):
            raise ValueError(
                f"downsampling_ratios {tuple(self.downsampling_ratios)} and upsampling_ratios "
                f"{tuple(self.upsampling_ratios)} multiply to {math.prod(self.downsampling_ratios)} and "
                f"{math.prod(self.upsampling_ratios)}: the products must be equal"
            )
        self._validate_transformers()
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps is {self.norm_eps}: it must lie between 0 and 1")
        if self.codebook_size >= 2**63:
            raise ValueError(
                f"quantization_levels {tuple(self.quantization_levels)} make {self.codebook_size} codes: "
                "indices are int64"
            )

    def _validate_stages(self, ratios: str, sizes: str, depths: str, units_after_last_stage: int):
        num_stages = len(getattr(self, ratios))
        for name, expected in ((sizes, num_stages + 1), (depths, num_stages + units_after_last_stage)):
            if len(getattr(self, name)) != expected:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} numbers, {ratios} has {num_stages}: {name} needs {expected}"
                )

    def _validate_frames(self, part: str, *names: str):
        for name in names:
            if len(getattr(self, name)) != 1:
                raise ValueError(
                    f"{name} is {tuple(getattr(self, name))}: with {part} 'frames' it needs one number, as there is "
                    "only one rate"
                )

    def _validate_transformers(self):
        for name in ("encoder_transformer_depths", "decoder_transformer_depths"):
            if len(getattr(self, name)) != 2:
                raise ValueError(
                    f"{name} is {tuple(getattr(self, name))}: it needs two numbers, in the order of the data"
                )
        layers_off_frame_rate = self.encoder_transformer_depths[0] + self.decoder_transformer_depths[1]
        if self.transformer_downsampling_ratio == 1 and layers_off_frame_rate:
            raise ValueError(
                "with transformer_downsampling_ratio 1 there is only the frame rate: encoder_transformer_depths must "
                f"be (0, n) and decoder_transformer_depths (n, 0), not {tuple(self.encoder_transformer_depths)} and "
                f"{tuple(self.decoder_transformer_depths)}"
            )

    @property
    def hop_length(self) -> int:
        """Samples of one frame."""
        return math.prod(self.downsampling_ratios) * self.transformer_downsampling_ratio

    @property
    def padding_multiple(self) -> int:
        """Samples: the encoder hears silence after a clip up to a multiple of this."""
        return self.padding_frames * self.hop_length

    @property
    def has_attention(self) -> bool:
        """Whether there is any transformer layer."""
        return any((*self.encoder_transformer_depths, *self.decoder_transformer_depths))

    @property
    def normalizes_over_clip(self) -> bool:
        """Whether decoded audio depends on statistics of the whole clip, through the decoder's enhance blocks."""
        return self.decoder_head == "upsampling" and self.enhance_normalization == "clip"

    @property
    def encoder_lookahead_samples(self) -> int:
        """Samples after a frame's last one that its token depends on (the transformer is causal)."""
        unit_context = UNIT_KERNEL_SIZE // 2
        if self.encoder_stem == "frames":
            lookahead = step = self.downsampling_ratios[0]
        else:
            lookahead = TREND_CONTEXT
            step = 1
            for ratio, depth in zip(self.downsampling_ratios, self.encoder_depths):
                lookahead += depth * unit_context * step
                step *= ratio
        return lookahead + (self.encoder_depths[-1] * unit_context + LATENT_KERNEL_SIZE // 2) * step

    @property
    def decoder_lookahead_samples(self) -> int:
        """Samples after a frame's last one whose tokens its audio depends on, through the convolutions: whole frames.

        With `decoder_head` "upsampling" and `enhance_normalization` "clip" the audio depends on the whole clip's
        statistics beside this.
        """
        last_step = self.transformer_downsampling_ratio - 1 + self._decoder_convolution_steps
        return _last_interpolated(last_step, self.transformer_downsampling_ratio) * self.hop_length

    @property
    def encoder_context_samples(self) -> int:
        """Samples before a frame's first one that its token depends on at most.

        The convolutions reach as far back as ahead. Every transformer layer adds the block before, which is made of the
        same frames at both rates; the last frame of a block sees most.
        """
        num_layers = sum(self.encoder_transformer_depths)
        num_frames = (num_layers + 1) * self.attention_window_size - 1 if num_layers else 0
        return num_frames * self.hop_length + self.encoder_lookahead_samples

    @property
    def decoder_context_samples(self) -> int:
        """Samples before a frame's first one whose tokens its audio depends on at most: whole frames.

        As for `decoder_lookahead_samples`, the clip's statistics may come on top.
        """
        ratio, window_size = self.transformer_downsampling_ratio, self.attention_window_size
        num_frame_layers, num_fine_layers = self.decoder_transformer_depths
        most_frames = 0
        for frame in range(window_size):
            step = frame * ratio - self._decoder_convolution_steps
            step = _first_attended(step, window_size * ratio, num_fine_layers)
            first_frame = _first_attended(_first_interpolated(step, ratio), window_size, num_frame_layers)
            most_frames = max(most_frames, frame - first_frame)
        return most_frames * self.hop_length

    @property
    def algorithmic_latency(self) -> float:
        """Seconds from the moment a sample goes in to the moment it can come out, if computing took no time and the
        decoder makes whole frames: one frame, until the last sample of it is there, and both look-aheads.

        Statistics of the whole clip, where the decoder uses them, are not counted: a stream has to do without them.
        """
        num_samples = self.hop_length + self.encoder_lookahead_samples + self.decoder_lookahead_samples
        return num_samples / self.sampling_rate

    @property
    def _decoder_convolution_steps(self) -> int:
        """Steps of the transformer's output, at the rate of the convolutions, that a frame's audio depends on after the
        frame's own, and as many before."""
        if self.decoder_head == "frames":
            return 1 + self.decoder_depths[0] * (UNIT_KERNEL_SIZE // 2) + LATENT_KERNEL_SIZE // 2
        # from the last sample of frame 0 back to the last step it depends on, at ever lower rates
        last_step = self.hop_length - 1 + TAIL_CONTEXT
        for ratio, depth in zip(reversed(self.upsampling_ratios), reversed(self.decoder_depths)):
            last_step = _last_interpolated(last_step, ratio) + ENHANCE_CONTEXT + depth * (UNIT_KERNEL_SIZE // 2)
        return last_step + LATENT_KERNEL_SIZE // 2 - (self.transformer_downsampling_ratio - 1)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "CodecConfig":
        """The configuration of a published model or of one of our own, by a name of `fsqcodec.list_presets()`.

        `overrides` replace single fields. Raises `ValueError` for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; the presets are: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


def _last_interpolated(step: int, ratio: int) -> int:
    """The last input step that up-sampling by `ratio` reads for output `step`: (step + 0.5) / ratio - 0.5, up."""
    return -((ratio - 2 * step - 1) // (2 * ratio))


def _first_interpolated(step: int, ratio: int) -> int:
    """The first input step that up-sampling by `ratio` reads for output `step`: (step + 0.5) / ratio - 0.5, down."""
    return (2 * step + 1 - ratio) // (2 * ratio)


def _first_attended(step: int, window_size: int, num_layers: int) -> int:
    """The first step that `step` depends on through layers that each see the step's block and the one before."""
    return (step // window_size - num_layers) * window_size if num_layers else step


_OWN_FIELDS = tuple(CodecConfig.__annotations__)
KNOWN_EXTRAS = {  # what Transformers itself passes to a configuration, beside its fields
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "model_type",
    "name_or_path",
    "output_attentions",
    "torch_dtype",
}


# What the families share at every rate, and each preset's own numbers. Those of L3AC and SQCodec are from the
# configurations that come with the original packages l3ac 1.0 and sq_codec 0.0.1 (the latter's file for 12 kbit/s at
# 24 kHz says 16000 Hz; the table its authors publish says 24000).

_L3AC = {
    "latent_dim": 128,
    "head_dim": 32,
    "encoder_hidden_sizes": (24, 48, 96, 192),
    "encoder_depths": (1, 1, 1, 2),
    "decoder_hidden_sizes": (512, 256, 96, 48, 24),
    "decoder_depths": (3, 3, 2, 1),
    "encoder_transformer_depths": (1, 2),
    "decoder_transformer_depths": (3, 2),
    "quantizer_bound": "tanh",
    "norm_eps": 1e-8,
}
_SQCODEC = {
    "latent_dim": 256,
    "head_dim": 64,
    "encoder_hidden_sizes": (24, 48, 96, 192),
    "encoder_depths": (1, 1, 1, 2),
    "decoder_hidden_sizes": (384, 192, 96, 48, 24),
    "decoder_depths": (3, 2, 2, 1),
    "encoder_transformer_depths": (2, 3),
    "decoder_transformer_depths": (3, 2),
    "quantizer_bound": "fsq",
    "norm_eps": 2.0**-23,
}
_SQCODEC_HIGH_RATE = {
    **_SQCODEC,
    "encoder_hidden_sizes": (24, 96, 192),
    "encoder_depths": (1, 1, 2),
    "decoder_hidden_sizes": (384, 192, 96, 48),
    "decoder_depths": (3, 2, 1),
    "transformer_downsampling_ratio": 1,
    "encoder_transformer_depths": (0, 3),
    "decoder_transformer_depths": (3, 0),
}
_SPEECH = {
    "latent_dim": 32,
    "encoder_stem": "frames",
    "decoder_head": "frames",
    "encoder_hidden_sizes": (256,),
    "encoder_depths": (4,),
    "decoder_hidden_sizes": (256,),
    "decoder_depths": (5,),
    "encoder_transformer_depths": (0, 0),
    "decoder_transformer_depths": (0, 0),
    "quantizer_bound": "tanh",
    "norm_eps": 1e-5,
}
_7_LEVELS = (7, 7, 7, 7, 7, 7)
_9_AND_7_LEVELS = (9, 9, 9, 7, 7, 7)


def _rate(downsampling, upsampling, transformer_ratio, window, levels, sampling_rate=16000) -> dict:
    return {
        "sampling_rate": sampling_rate,
        "downsampling_ratios": downsampling,
        "upsampling_ratios": upsampling,
        "transformer_downsampling_ratio": transformer_ratio,
        "attention_window_size": window,
        "quantization_levels": levels,
    }


def _sqcodec(shared: dict, *rate, **kwargs) -> dict:
    fields = {**shared, **_rate(*rate, **kwargs)}
    return {**fields, "padding_frames": fields["attention_window_size"]}


PRESETS = {
    "l3ac-0k75bps": {**_L3AC, **_rate((6, 5, 4), (5, 4, 3, 2), 3, 200, _7_LEVELS)},
    "l3ac-1kbps": {**_L3AC, **_rate((6, 5, 3), (5, 3, 3, 2), 3, 250, _7_LEVELS)},
    "l3ac-1k5bps": {**_L3AC, **_rate((6, 5, 3), (5, 3, 3, 2), 2, 300, _7_LEVELS)},
    "l3ac-3kbps": {
        **_L3AC,
        **_rate((6, 4, 4), (4, 4, 3, 2), 1, 400, _9_AND_7_LEVELS),
        "encoder_transformer_depths": (0, 1),
        "decoder_transformer_depths": (3, 0),
    },
    "sqcodec-0k75bps": _sqcodec(_SQCODEC, (6, 5, 4), (5, 4, 3, 2), 3, 200, _7_LEVELS),
    "sqcodec-1k5bps": _sqcodec(_SQCODEC, (6, 5, 3), (5, 3, 3, 2), 2, 300, _7_LEVELS),
    "sqcodec-3kbps": {
        **_sqcodec(_SQCODEC, (6, 5, 3), (5, 3, 3, 2), 1, 400, _7_LEVELS),
        "encoder_transformer_depths": (0, 3),
        "decoder_transformer_depths": (3, 0),
    },
    "sqcodec-6kbps": _sqcodec(_SQCODEC_HIGH_RATE, (9, 5), (5, 3, 3), 1, 300, _7_LEVELS),
    "sqcodec-12kbps": _sqcodec(_SQCODEC_HIGH_RATE, (6, 4), (4, 3, 2), 1, 400, _9_AND_7_LEVELS),
    "sqcodec-12kbps-24khz": _sqcodec(
        _SQCODEC_HIGH_RATE, (6, 6), (4, 3, 3), 1, 400, _9_AND_7_LEVELS, sampling_rate=24000
    ),
    "sqcodec-24kbps-24khz": _sqcodec(
        _SQCODEC_HIGH_RATE, (6, 3), (3, 3, 2), 1, 600, _9_AND_7_LEVELS, sampling_rate=24000
    ),
    "speech-3kbps": {**_SPEECH, **_rate((96,), (96,), 1, 1, _9_AND_7_LEVELS)},
}
