"""How steady the tokens of a codec are, and what one wrong token does to the audio."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..audio import resample
from ..codecs import Codec
from ..models.quantization import indices_to_digits
from .metrics import mel_distance

GAIN_DB = -1.0
NOISE_SNR_DB = 40.0
NUM_FLIPS = 20
CHANGED_SAMPLE = 1e-4  # a sample that differs by more than this has changed; 16-bit steps are 3e-5


def robustness(codec: Codec, clips: Sequence[np.ndarray], seed: int = 0) -> dict:
    """Tokens under changes that listeners don't hear, and audio under one changed token.

    Args:
        codec: any with tokens, see `fsqcodec.codecs.load_codec`. It takes one clip at a time.
        clips: float32 `(num_samples,)`, or `(num_channels, num_samples)` as the codec has it, in [-1, 1] at
            `codec.input_sampling_rate`.
        seed: of the noise and of the flipped tokens.

    Returns:
        Numbers and dicts that `json.dumps` takes:

        - `num_clips`, `num_tokens`;
        - `shift` (the clip one sample later, of the same length), `gain` (1 dB softer), `noise` (with white Gaussian
          noise 40 dB below the clip's mean power) and `reencoding` (the decoded audio, resampled to the codec's input
          rate): each with `tokens_changed_share`, the share in [0, 1] of all clips' tokens that are not the same in the
          same frame, and for codecs with `quantization_levels`, `digits_changed_share`, the same for digits;
        - `flip`: one token, drawn from all, replaced by another of its codebook, `num_flips` times:
            - `damage_db`: mean energy of the difference in the decoded audio relative to the mean energy of a frame,
              dB, so it does not depend on the length of clips. Where tokens are wrong at a small rate p and damages
              add up, a codec of one codebook is left with a signal-to-noise ratio of -(damage_db + 10 log10(p)) dB.
              None where flips change nothing, or the decoded audio is silence;
            - `extent_seconds`: how much audio changes by more than 1e-4, seconds, median over flips; of a decoder that
              normalises over the clip, as ours do, all of it may;
            - `mel_distance`: of the clip with the flip to the one without, times its frames, for the same reason as
              above; median over flips.

    Raises:
        ValueError: no clips, clips of other channels than the codec's or too short for it or `mel_distance`, a codec
            without tokens.
    """
    _check(codec, clips)
    generator = np.random.default_rng(seed)
    audio_codes = _encode(codec, clips)
    decoded = [_decode(codec, codes, _output_length(codec, clip)) for codes, clip in zip(audio_codes, clips)]
    changed_clips = {
        "shift": [np.concatenate([np.zeros_like(clip[..., :1]), clip[..., :-1]], axis=-1) for clip in clips],
        "gain": [clip * np.float32(10 ** (GAIN_DB / 20)) for clip in clips],
        "noise": [_add_noise(clip, generator) for clip in clips],
        "reencoding": [_as_input(codec, audio, clip.shape[-1]) for audio, clip in zip(decoded, clips)],
    }
    return {
        "num_clips": len(clips),
        "num_tokens": sum(codes.size for codes in audio_codes),
        **{name: _change(codec, audio_codes, _encode(codec, changed)) for name, changed in changed_clips.items()},
        "flip": _flip_damage(codec, audio_codes, decoded, generator),
    }


def _check(codec: Codec, clips: Sequence[np.ndarray]):
    if not codec.codebook_sizes:
        raise ValueError(f"{codec.name} has no tokens: robustness needs a codec with codebooks")
    if not len(clips):
        raise ValueError("there are no clips: robustness needs at least one")
    for clip in clips:
        if (clip.ndim == 1) != (codec.num_channels == 1) or clip.ndim == 2 and len(clip) != codec.num_channels:
            raise ValueError(f"a clip is {clip.shape}: {codec.name} has {codec.num_channels} channels")


def _encode(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [codec.encode([clip])[0] for clip in clips]


def _decode(codec: Codec, codes: np.ndarray, num_samples: int) -> np.ndarray:
    return codec.decode([codes], [num_samples])[0]


def _output_length(codec: Codec, clip: np.ndarray) -> int:
    return round(clip.shape[-1] * codec.output_sampling_rate / codec.input_sampling_rate)


def _add_noise(clip: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noise_rms = math.sqrt(np.mean(np.square(clip, dtype=np.float64)) * 10 ** (-NOISE_SNR_DB / 10))
    return (clip + noise_rms * generator.standard_normal(clip.shape)).astype(np.float32)


def _as_input(codec: Codec, audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Decoded audio at the codec's input rate, cut or filled with silence to `num_samples`: resampling rounds."""
    audio = resample(audio, codec.output_sampling_rate, codec.input_sampling_rate)[..., :num_samples]
    return np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, num_samples - audio.shape[-1])])


def _change(codec: Codec, audio_codes: list[np.ndarray], changed_codes: list[np.ndarray]) -> dict:
    before, after = (np.concatenate(codes, axis=1) for codes in (audio_codes, changed_codes))
    change = {"tokens_changed_share": float(np.mean(before != after))}
    if codec.quantization_levels is not None:
        before, after = (
            indices_to_digits(torch.from_numpy(codes), codec.quantization_levels) for codes in (before, after)
        )
        change["digits_changed_share"] = float((before != after).double().mean())
    return change


def _flip_damage(
    codec: Codec, audio_codes: list[np.ndarray], decoded: list[np.ndarray], generator: np.random.Generator
) -> dict:
    num_frames = np.array([codes.shape[1] for codes in audio_codes])
    energies, extents, distances = [], [], []
    for _ in range(NUM_FLIPS):
        clip = generator.choice(len(num_frames), p=num_frames / num_frames.sum())
        codebook = generator.integers(len(codec.codebook_sizes))
        frame = generator.integers(num_frames[clip])
        size = codec.codebook_sizes[codebook]
        flipped_codes = audio_codes[clip].copy()
        flipped_codes[codebook, frame] = (flipped_codes[codebook, frame] + generator.integers(1, size)) % size
        flipped = _decode(codec, flipped_codes, decoded[clip].shape[-1])
        difference = flipped.astype(np.float64) - decoded[clip]
        energies.append(np.sum(difference**2))
        extents.append(
            np.atleast_2d(np.abs(difference) > CHANGED_SAMPLE).any(axis=0).sum() / codec.output_sampling_rate
        )
        pairs = zip(np.atleast_2d(decoded[clip]), np.atleast_2d(flipped))
        distance = np.mean([mel_distance(*pair, codec.output_sampling_rate) for pair in pairs])
        distances.append(distance * num_frames[clip])
    frame_energy = sum(np.sum(np.square(audio, dtype=np.float64)) for audio in decoded) / num_frames.sum()
    return {
        "num_flips": NUM_FLIPS,
        "damage_db": _ratio_db(np.mean(energies), frame_energy),
        "extent_seconds": float(np.median(extents)),
        "mel_distance": float(np.median(distances)),
    }


def _ratio_db(energy: float, reference: float) -> float | None:
    return 10 * math.log10(energy / reference) if energy > 0 and reference > 0 else None
