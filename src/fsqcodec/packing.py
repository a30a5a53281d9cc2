"""Codes <-> bytes, the token file, and the digest that says what tokens mean.

A packed stream is the frames one after the other, in each frame the codebooks, each code in as many bits as the
largest one needs (17 for 117,649 codes: 1,007 bit/s at 59.26 frames a second), least significant bit first, with zero
bits to fill the last byte.

Where that wastes whole bytes, all codes of a crop, of one frame for codecs without crops, are the digits of one number
instead, the first the least significant, in as many bytes as the largest such number takes, the lowest first (1,993
for a crop of Lycodec, 18 frames of 256 codes from 0 to 10: 10,629 bit/s).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.numpy import save_file

from .atomic import atomic_path

FORMAT = "fsqcodec-tokens-1"
PIECE_FRAMES = 2**14  # unpacked to bits at a time, a multiple of 8: its last byte has no bits of the next
DIGEST_LENGTH = 16  # hexadecimal digits
FACTS = {
    "model": str,
    "token_digest": str,
    "sampling_rate": int,
    "num_samples": int,
    "num_frames": int,
    "num_codebooks": int,
    "codebook_size": int,
}


def pack(codes, config) -> bytes:
    """Codes `(num_codebooks, num_frames)`, integers, tensor or array, to bytes.

    `config` is the codec's: its `codebook_size`, `num_codebooks` and `frames_per_crop` say how many bits a frame
    takes. A leading batch axis of one clip is allowed. Raises `ValueError` for another shape, for
    codes outside [0, codebook_size) and for a part of a crop.
    """
    codes = np.asarray(codes.cpu() if isinstance(codes, torch.Tensor) else codes)
    if codes.ndim == 3 and codes.shape[0] == 1:
        codes = codes[0]
    if codes.ndim != 2 or codes.shape[0] != config.num_codebooks:
        raise ValueError(f"codes have shape {codes.shape}: ({config.num_codebooks}, num_frames) is wanted, one clip")
    if codes.dtype.kind not in "iu":
        raise ValueError(f"codes are {codes.dtype}: integers are wanted")
    if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook_size:
        raise ValueError(
            f"codes range from {codes.min()} to {codes.max()}: this codec's are 0 to {config.codebook_size - 1}"
        )
    if _crop_bytes(config):
        return _pack_crops(codes, config)
    bit_places = np.arange(_bits_per_code(config), dtype=np.uint64)
    packed = []
    for start in range(0, codes.shape[1], PIECE_FRAMES):
        frames = codes[:, start : start + PIECE_FRAMES].T.astype(np.uint64)
        bits = ((frames[..., np.newaxis] >> bit_places) & np.uint64(1)).astype(np.uint8)
        packed.append(np.packbits(bits.ravel(), bitorder="little").tobytes())
    return b"".join(packed)


def unpack(data: bytes, config, num_frames: int | None = None) -> torch.Tensor:
    """Bytes of `pack` to codes `(num_codebooks, num_frames)`, int64.

    `num_frames` is found from the length of `data` where a frame takes a byte or more, as in every preset; where it
    takes less it must be given. Raises `ValueError` for bytes that `pack` does not make for this codec.
    """
    if _crop_bytes(config):
        return _unpack_crops(data, config, num_frames)
    bits_per_code = _bits_per_code(config)
    bits_per_frame = bits_per_code * config.num_codebooks
    if num_frames is None:
        if bits_per_frame < 8:
            raise ValueError(f"a frame takes {bits_per_frame} bits: num_frames can't be found from the bytes, give it")
        num_frames = len(data) * 8 // bits_per_frame
    num_bytes = -(-num_frames * bits_per_frame // 8)
    if len(data) != num_bytes:
        raise ValueError(f"{len(data)} bytes: {num_frames} frames of {bits_per_frame} bits take {num_bytes}")
    num_last_bits = (num_frames * bits_per_frame) % 8
    if num_last_bits and data[-1] >> num_last_bits:
        raise ValueError("the last byte has bits after the last frame: these are not packed codes of this codec")
    codes = np.empty((config.num_codebooks, num_frames), dtype=np.int64)
    for start in range(0, num_frames, PIECE_FRAMES):
        piece = codes[:, start : start + PIECE_FRAMES]
        first_byte = start * bits_per_frame // 8
        num_bits = piece.shape[1] * bits_per_frame
        packed = np.frombuffer(data, np.uint8, count=-(-num_bits // 8), offset=first_byte)
        bits = np.unpackbits(packed, count=num_bits, bitorder="little").astype(np.int64)
        piece[:] = (bits.reshape(-1, config.num_codebooks, bits_per_code) << np.arange(bits_per_code)).sum(axis=-1).T
    if codes.size and codes.max() >= config.codebook_size:
        raise ValueError(f"code {codes.max()} is unpacked: this codec's are 0 to {config.codebook_size - 1}")
    return torch.from_numpy(codes)


def num_packed_bytes(num_frames: int, config) -> int:
    """How many bytes `pack` makes of so many frames. Raises `ValueError` for a part of a crop."""
    if not _crop_bytes(config):
        return -(-num_frames * config.num_codebooks * _bits_per_code(config) // 8)
    num_crops, rest = divmod(num_frames, config.frames_per_crop)
    if rest:
        raise ValueError(f"{num_frames} frames are no whole crops: a multiple of {config.frames_per_crop} is wanted")
    return num_crops * _crop_bytes(config)


def check_duration(num_samples: int, num_frames: int, config):
    """Raise `ValueError` unless the codec makes so many frames of so many samples."""
    if num_frames != config.num_frames(num_samples):
        raise ValueError(f"{num_samples} samples don't make {num_frames} frames")


def _pack_crops(codes: np.ndarray, config) -> bytes:
    frames_per_crop = config.frames_per_crop
    if codes.shape[1] % frames_per_crop:
        raise ValueError(f"{codes.shape[1]} frames are no whole crops: a multiple of {frames_per_crop} is wanted")
    packed = []
    for crop in codes.T.reshape(-1, frames_per_crop * config.num_codebooks):
        number = 0
        for code in reversed(crop.tolist()):
            number = number * config.codebook_size + code
        packed.append(number.to_bytes(_crop_bytes(config), "little"))
    return b"".join(packed)


def _unpack_crops(data: bytes, config, num_frames: int | None) -> torch.Tensor:
    crop_bytes, frames_per_crop = _crop_bytes(config), config.frames_per_crop
    num_crops = len(data) // crop_bytes
    if len(data) % crop_bytes or num_frames not in (None, num_crops * frames_per_crop):
        wanted = "" if num_frames is None else f", {num_frames} frames are wanted"
        raise ValueError(f"{len(data)} bytes: crops of {frames_per_crop} frames take {crop_bytes} each{wanted}")
    codes = np.empty((num_crops, frames_per_crop * config.num_codebooks), dtype=np.int64)
    for i in range(num_crops):
        number = int.from_bytes(data[i * crop_bytes : (i + 1) * crop_bytes], "little")
        for j in range(codes.shape[1]):
            number, codes[i, j] = divmod(number, config.codebook_size)
        if number:
            raise ValueError(f"crop {i} is a number too large: these are not packed codes of this codec")
    return torch.from_numpy(codes.reshape(-1, config.num_codebooks).T.copy())


def _crop_bytes(config) -> int:
    """Bytes of a crop whose codes are one number, 0 where each code on its own takes no more bits."""
    num_codes = config.frames_per_crop * config.num_codebooks
    num_bytes = -(-(config.codebook_size**num_codes - 1).bit_length() // 8)
    return num_bytes if 8 * num_bytes < num_codes * _bits_per_code(config) else 0


def token_digest(model) -> str:
    """What the model's tokens mean, in 16 hexadecimal digits: SHA-256 of the weights of its `token_parts` (encoder and
    quantizer) and of its config's `token_fields`. A codec with another decoder has the same digest."""
    digest = hashlib.sha256()
    digest.update(json.dumps({name: getattr(model.config, name) for name in model.config.token_fields}).encode())
    for part in model.token_parts:
        for name, tensor in sorted(getattr(model, part).state_dict().items()):
            digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:DIGEST_LENGTH]


@dataclass
class Tokens:
    """A clip's codes and what is needed to decode them.

    Args:
        codes: int64 `(num_codebooks, num_frames)`.
        model: folder or id of the codec that made them.
        token_digest: that codec's.
        sampling_rate: Hz of the audio that was encoded.
        num_samples: length of that audio at `sampling_rate`.
    """

    codes: torch.Tensor
    model: str
    token_digest: str
    sampling_rate: int
    num_samples: int


def write_tokens(path: str | os.PathLike, tokens: Tokens, config):
    """Write a token file: safetensors with the packed codes, and the facts as JSON in its metadata. The same tokens
    make the same bytes. The file appears when it is complete."""
    facts = {
        "model": tokens.model,
        "token_digest": tokens.token_digest,
        "sampling_rate": tokens.sampling_rate,
        "num_samples": tokens.num_samples,
        "num_frames": tokens.codes.shape[-1],
        "num_codebooks": config.num_codebooks,
        "codebook_size": config.codebook_size,
    }
    packed = np.frombuffer(pack(tokens.codes, config), dtype=np.uint8)
    with atomic_path(Path(path)) as unfinished:
        save_file({"packed_codes": packed}, unfinished, metadata={FORMAT: json.dumps(facts)})


def read_token_facts(path: str | os.PathLike) -> dict[str, str | int]:
    """The facts of a token file by name. Raises `FileNotFoundError`, and `ValueError` for a damaged or foreign file."""
    return _read(path)[0]


def read_tokens(path: str | os.PathLike, config) -> Tokens:
    """Read a token file. `config` is the codec's that is to decode it.

    Raises `FileNotFoundError`, and `ValueError` for a damaged or foreign file and for codes of another codebook.
    """
    facts, packed = _read(path)
    for name in ("num_codebooks", "codebook_size"):
        if facts[name] != getattr(config, name):
            raise ValueError(f"{path} has {name} {facts[name]}, the codec has {getattr(config, name)}: another codec's")
    if facts["sampling_rate"] != config.input_sampling_rate:
        raise ValueError(
            f"{path} is damaged: it is of audio at {facts['sampling_rate']} Hz, which the codec can't take"
        )
    try:
        check_duration(facts["num_samples"], facts["num_frames"], config)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return Tokens(
        codes=unpack(packed.tobytes(), config, facts["num_frames"]),
        **{name: facts[name] for name in ("model", "token_digest", "sampling_rate", "num_samples")},
    )


def _read(path: str | os.PathLike) -> tuple[dict[str, str | int], np.ndarray]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"{path} is not a token file of fsqcodec")
            facts = json.loads(metadata[FORMAT])
            for name, kind in FACTS.items():
                if not isinstance(facts.get(name), kind):
                    raise ValueError(f"{path} is damaged: its {name} is {facts.get(name)!r}")
                if kind is int and facts[name] < 1:
                    raise ValueError(f"{path} is damaged: its {name} is {facts[name]}")
            return facts, file.get_tensor("packed_codes")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} can't be read: truncated, damaged or not a token file ({error})") from error


def _bits_per_code(config) -> int:
    return (config.codebook_size - 1).bit_length()
