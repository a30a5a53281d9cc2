"""The original package and the converted model on the same weights and the same audio: tokens and audio compared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..models.configuration_codec import CodecConfig
from ..models.modeling_codec import CodecModel
from .originals import OriginalCodec

ROUNDING_MARGIN = 2e-4  # in digits: a token this close to a rounding boundary may fall on either side in float32
MAX_BOUNDARY_SHARE = 1 / 500  # of tokens that may differ for that reason
AUDIO_TOLERANCE = 5e-4
VERIFICATION_SECONDS = 6


class VerificationError(RuntimeError):
    """The converted model does not do what the original does."""


@dataclass
class Agreement:
    """How a model compares with its original on one clip, or several added up."""

    num_tokens: int = 0
    num_boundary_tokens: int = 0  # differ, and lie within ROUNDING_MARGIN of a rounding boundary
    num_wrong_tokens: int = 0  # differ, and do not
    max_audio_error: float = 0.0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.num_tokens + other.num_tokens,
            self.num_boundary_tokens + other.num_boundary_tokens,
            self.num_wrong_tokens + other.num_wrong_tokens,
            max(self.max_audio_error, other.max_audio_error),
        )

    @property
    def holds(self) -> bool:
        """Whether the model does what the original does, within the stated margins."""
        return (
            self.num_wrong_tokens == 0
            and self.num_boundary_tokens <= self.num_tokens * MAX_BOUNDARY_SHARE
            and self.max_audio_error <= AUDIO_TOLERANCE
        )

    def __str__(self) -> str:
        equal = self.num_tokens - self.num_boundary_tokens - self.num_wrong_tokens
        return (
            f"{equal} of {self.num_tokens} tokens equal, {self.num_boundary_tokens} on a rounding boundary, "
            f"largest difference of decoded audio {self.max_audio_error:.1e}"
        )


@torch.no_grad()
def compare_with_original(original: OriginalCodec, model: CodecModel, audio: np.ndarray) -> Agreement:
    """Encode `audio` `(num_samples,)` with both; decode the original's tokens with both."""
    positions = original.positions(audio)
    expected = model.quantizer.digits_to_indices(model.quantizer.round(positions))
    codes = model.encode(torch.as_tensor(audio)[None, None]).audio_codes[0, 0]
    differs = codes != expected
    distance = (positions - positions.floor() - 0.5).abs().amin(dim=-1)
    excused = differs & (distance < ROUNDING_MARGIN)
    error = model.decode(expected[None, None]).audio_values[0, 0] - original.decode(expected)
    return Agreement(len(codes), int(excused.sum()), int((differs & ~excused).sum()), float(error.abs().max()))


def verify_conversion(origin: str, checkpoint_dir: Path, model: CodecModel) -> Agreement:
    """Compare with the original on a synthetic clip. Raises [`VerificationError`] where they differ, `ImportError`
    with a hint where the original package is not installed."""
    try:
        original = OriginalCodec(origin, model.config)
    except ImportError as error:
        raise ImportError(
            f"verifying needs the original package, which can't be imported ({error}): "
            "pip install 'fsqcodec[originals]'"
        ) from error
    original.load(checkpoint_dir)
    agreement = compare_with_original(original, model, verification_clip(model.config))
    if not agreement.holds:
        raise VerificationError(f"the converted model differs from the original: {agreement}; nothing was written")
    return agreement


def verification_clip(config: CodecConfig) -> np.ndarray:
    """A few seconds of gliding, pulsating harmonics in noise, and not a whole number of frames; float32."""
    rng = np.random.default_rng(0)
    num_samples = VERIFICATION_SECONDS * config.sampling_rate + config.hop_length // 2
    seconds = np.arange(num_samples) / config.sampling_rate
    phase = 2 * np.pi * np.cumsum(140 + 60 * np.sin(2.1 * seconds)) / config.sampling_rate
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 12))
    loudness = 0.1 * np.clip(np.sin(9 * seconds), 0, 1) + 0.002
    return (loudness * (harmonics + 0.3 * rng.standard_normal(num_samples))).astype(np.float32)
