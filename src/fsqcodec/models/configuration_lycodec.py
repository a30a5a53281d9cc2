"""LycodecConfig: the architecture of Lycodec in numbers, rates derived from them, presets."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .codec_facts import OneRateFacts
from .configuration_codec import KNOWN_EXTRAS

NORM_GROUPS = 8  # of every group norm
LAST_UPSAMPLING_CHANNELS = 64
BOUNDARIES = ("original", "exact")


@strict
class LycodecConfig(OneRateFacts, PreTrainedConfig):
    r"""
    Configuration of [`LycodecModel`] (https://github.com/mini-kio/Lycodec at commit 8040de3): stereo audio in crops of
    1.5 s, each of them 18 frames of 256 numbers with 11 levels.

    Rates follow from the fields and are properties: `hop_length`, `frame_rate`, `codebook_size`, `bitrate`, ...

    An unknown argument raises `TypeError`; a value of the wrong type, or values that contradict each other, raise the
    `StrictDataclassFieldValidationError` and `StrictDataclassClassValidationError` of huggingface_hub.

    Args:
        sampling_rate (`int`): Hz, of the audio that goes in and comes out.
        num_channels (`int`): of that audio; 2, as the spectrogram is one of mid and side.
        crop_length (`int`): samples that are encoded and decoded together and apart from all others.
        frames_per_crop (`int`): frames that a crop is encoded to; `crop_length` is a multiple of it.
        stft_size (`int`): of the Fourier transform, samples; even.
        stft_hop_length (`int`): samples between two columns of the spectrogram.
        stft_window_length (`int`): samples of the Hann window, `stft_size` at most.
        spectrogram_exponent (`float`): encoder and decoder work on spectrograms whose magnitudes are raised to it, in
            (0, 1]; 1 for the original's checkpoints.
        encoder_channels (`list[int]`): of the encoder's four convolution blocks, multiples of 8.
        hidden_size (`int`): width of the encoder's transformer, even.
        num_layers (`int`): of the encoder's transformer.
        num_heads (`int`): of each of these layers.
        attention_chunk_size (`int`): the first frames of a crop, this many, don't see the later ones.
        use_rotary_embedding (`bool`): rotate the queries and keys of the encoder by their frame's place.
        latent_dim (`int`): numbers of a frame. Each is a codebook of its own.
        quantization_levels (`list[int]`): one odd number, the levels of each of these.
        conditioner_channels (`int`): of what the decoder's network reads beside the noisy spectrogram.
        decoder_hidden_size (`int`): width of the decoder's transformer.
        decoder_num_layers (`int`): of the decoder's transformer.
        decoder_num_heads (`int`): of each of these layers.
        decoder_patch_size (`int`): bins and columns of the spectrogram in one step of that transformer, a power of two.
        band_split_hz (`float`): the bins up to here have one output head, those above have another.
        sigma_data (`float`): deviation of spectrograms that the decoder's scaling assumes.
        noise_level (`float`): deviation of the noise that decoding starts from, if the caller does not say.
        boundary (`str`): `"original"` for the original's checkpoints; `"exact"` for new training: at the level
            `min_noise_level` the decoder returns its input as it is, as a consistency model must.
        min_noise_level (`float`): that level, the lowest of training.
        noise_seed (`int`): of that noise.
    """

    model_type = "lycodec"
    token_fields = (  # what codes depend on, beside the weights of encoder and quantizer, whose shapes tell the sizes
        "sampling_rate",
        "crop_length",
        "frames_per_crop",
        "stft_size",
        "stft_hop_length",
        "stft_window_length",
        "spectrogram_exponent",
        "num_heads",
        "attention_chunk_size",
        "use_rotary_embedding",
        "quantization_levels",
    )

    sampling_rate: int = 48000
    num_channels: int = 2
    crop_length: int = 72000
    frames_per_crop: int = 18
    stft_size: int = 2048
    stft_hop_length: int = 640
    stft_window_length: int = 2048
    spectrogram_exponent: float = 1.0
    encoder_channels: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    hidden_size: int = 512
    num_layers: int = 8
    num_heads: int = 8
    attention_chunk_size: int = 9
    use_rotary_embedding: bool = True
    latent_dim: int = 256
    quantization_levels: list[int] | tuple[int, ...] = (11,)
    conditioner_channels: int = 64
    decoder_hidden_size: int = 512
    decoder_num_layers: int = 6
    decoder_num_heads: int = 8
    decoder_patch_size: int = 16
    band_split_hz: float = 12000.0
    sigma_data: float = 0.5
    noise_level: float = 1e-3
    boundary: str = "original"
    min_noise_level: float = 0.002
    noise_seed: int = 0

    def __post_init__(self, **kwargs):
        unknown = set(kwargs) - KNOWN_EXTRAS
        if unknown:
            raise TypeError(
                f"LycodecConfig has no field {', '.join(sorted(map(repr, unknown)))}; it has: {', '.join(_OWN_FIELDS)}"
            )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Called by `@strict` after construction; raises `ValueError` naming the field and its value."""
        for name in _OWN_FIELDS:
            value = getattr(self, name)
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if name not in ("use_rotary_embedding", "noise_seed", "boundary") and (not numbers or not min(numbers) > 0):
                raise ValueError(f"{name} is {value}: it must be above 0")
        if self.num_channels != 2:
            raise ValueError(f"num_channels is {self.num_channels}: Lycodec is stereo, 2 is wanted")
        if (
            len(self.quantization_levels) != 1
            or self.quantization_levels[0] < 3
            or self.quantization_levels[0] % 2 == 0
        ):
            raise ValueError(
                f"quantization_levels is {tuple(self.quantization_levels)}: one odd number is wanted, 3 or more, as "
                "levels lie on both sides of 0"
            )
        for whole, part in (
            ("crop_length", "frames_per_crop"),
            ("hidden_size", "num_heads"),
            ("decoder_hidden_size", "decoder_num_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} is {getattr(self, whole)}: it must be a multiple of {part}, {getattr(self, part)}"
                )
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}: an even number is wanted")
        if self.stft_size % 2 or not self.stft_hop_length <= self.stft_window_length <= self.stft_size:
            raise ValueError(
                f"stft_size is {self.stft_size}, stft_window_length {self.stft_window_length} and stft_hop_length "
                f"{self.stft_hop_length}: they must not grow in this order, and stft_size must be even"
            )
        if self.spectrogram_exponent > 1:
            raise ValueError(f"spectrogram_exponent is {self.spectrogram_exponent}: 1 at most is wanted")
        if self.crop_length <= self.stft_size // 2:
            raise ValueError(f"crop_length is {self.crop_length}: it must exceed half of stft_size, {self.stft_size}")
        if len(self.encoder_channels) != 4 or any(channels % NORM_GROUPS for channels in self.encoder_channels):
            raise ValueError(
                f"encoder_channels is {tuple(self.encoder_channels)}: four multiples of {NORM_GROUPS} are wanted"
            )
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary is {self.boundary!r}: one of {', '.join(BOUNDARIES)} is wanted")
        if self.boundary == "exact" and self.noise_level <= self.min_noise_level:
            raise ValueError(
                f"noise_level is {self.noise_level}: with the boundary 'exact' it must be above min_noise_level, "
                f"{self.min_noise_level}, where the decoder returns the noise"
            )
        self._validate_patches()

    def _validate_patches(self):
        patch_size = self.decoder_patch_size
        if patch_size < 2 or patch_size.bit_count() != 1 or 0 in self.patch_grid:
            raise ValueError(
                f"decoder_patch_size is {patch_size}: a power of two is wanted that fits into a spectrogram of "
                f"{self.stft_bins} x {self.stft_frames}"
            )
        if any(channels % NORM_GROUPS for channels in self.upsampling_channels):
            raise ValueError(
                f"decoder_hidden_size is {self.decoder_hidden_size}: halved for each factor of two in "
                f"decoder_patch_size, {patch_size}, but the last it must be a multiple of {NORM_GROUPS}"
            )

    @property
    def hop_length(self) -> int:
        """Samples for each frame, on average: a frame depends on its whole crop."""
        return self.crop_length // self.frames_per_crop

    @property
    def num_codebooks(self) -> int:
        """Code streams, one for each latent dimension."""
        return self.latent_dim

    @property
    def stft_bins(self) -> int:
        """Frequencies of the spectrogram."""
        return self.stft_size // 2 + 1

    @property
    def stft_frames(self) -> int:
        """Columns of a crop's spectrogram."""
        return 1 + self.crop_length // self.stft_hop_length

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches along frequency and time; bins and columns that fill no patch are left out, the last ones."""
        return self.stft_bins // self.decoder_patch_size, self.stft_frames // self.decoder_patch_size

    @property
    def upsampling_channels(self) -> list[int]:
        """Channels after each stage that doubles the patch grid back towards a spectrogram."""
        num_stages = self.decoder_patch_size.bit_length() - 1
        return [self.decoder_hidden_size >> stage for stage in range(1, num_stages)] + [LAST_UPSAMPLING_CHANNELS]

    @property
    def encoder_lookahead_samples(self) -> int:
        """Samples after a frame's last one that its codes depend on at most: the rest of the crop."""
        return self.crop_length - self.hop_length

    @property
    def encoder_context_samples(self) -> int:
        """Samples before a frame's first one that its codes depend on at most: the rest of the crop."""
        return self.crop_length - self.hop_length

    @property
    def decoder_lookahead_samples(self) -> int:
        """Samples after a frame's last one whose codes its audio depends on at most."""
        return self.crop_length - self.hop_length

    @property
    def decoder_context_samples(self) -> int:
        """Samples before a frame's first one whose codes its audio depends on at most."""
        return self.crop_length - self.hop_length

    @property
    def algorithmic_latency(self) -> float:
        """Seconds between a sample that goes in and the same sample out of a stream, at least: one crop."""
        return self.crop_length / self.sampling_rate

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "LycodecConfig":
        """The configuration of a name in `fsqcodec.list_presets("lycodec")`.

        `overrides` replace single fields. Raises `ValueError` for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; the presets are: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


_OWN_FIELDS = tuple(LycodecConfig.__annotations__)

PRESETS = {
    "lycodec-48khz": {},
    "lycodec-48khz-fast": {"decoder_patch_size": 32, "decoder_num_layers": 4},
    "lycodec-48khz-fine": {"decoder_patch_size": 8, "decoder_num_layers": 8},
}
