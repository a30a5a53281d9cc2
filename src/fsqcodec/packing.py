"""Codes <-> bytes, the token file, and the digest that says what tokens mean.

A packed stream is the frames one after the other, in each frame the codebooks, each code in as many bits as the
largest one needs (17 for 117,649 codes: 1,007 bit/s at 59.26 frames a second), least significant bit first, with zero
bits to fill the last byte.
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

    `config` is the codec's: its `codebook_size` and `num_codebooks` say how many bits a frame takes. A leading batch
    axis of one clip is allowed. Raises `ValueError` for another shape and for codes outside [0, codebook_size).
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
    frames = codes.T.astype(np.uint64)
    bits = (frames[..., np.newaxis] >> np.arange(_bits_per_code(config), dtype=np.uint64)) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack(data: bytes, config, num_frames: int | None = None) -> torch.Tensor:
    """Bytes of `pack` to codes `(num_codebooks, num_frames)`, int64.

    `num_frames` is found from the length of `data` where a frame takes a byte or more, as in every preset; where it
    takes less it must be given. Raises `ValueError` for bytes that `pack` does not make for this codec.
    """
    bits_per_code = _bits_per_code(config)
    bits_per_frame = bits_per_code * config.num_codebooks
    if num_frames is None:
        if bits_per_frame < 8:
            raise ValueError(f"a frame takes {bits_per_frame} bits: num_frames can't be found from the bytes, give it")
        num_frames = len(data) * 8 // bits_per_frame
    num_bytes = -(-num_frames * bits_per_frame // 8)
    if len(data) != num_bytes:
        raise ValueError(f"{len(data)} bytes: {num_frames} frames of {bits_per_frame} bits take {num_bytes}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[num_frames * bits_per_frame :].any():
        raise ValueError("the last byte has bits after the last frame: these are not packed codes of this codec")
    bits = bits[: num_frames * bits_per_frame].reshape(num_frames, config.num_codebooks, bits_per_code).astype(np.int64)
    codes = (bits << np.arange(bits_per_code)).sum(axis=-1).T
    if codes.size and codes.max() >= config.codebook_size:
        raise ValueError(f"code {codes.max()} is unpacked: this codec's are 0 to {config.codebook_size - 1}")
    return torch.from_numpy(np.ascontiguousarray(codes))


def token_digest(model) -> str:
    """What the model's tokens mean, in 16 hexadecimal digits: SHA-256 of the weights of the config's `token_parts`
    (encoder and quantizer) and of its `token_fields`. A codec with another decoder has the same digest."""
    digest = hashlib.sha256()
    digest.update(json.dumps({name: getattr(model.config, name) for name in model.config.token_fields}).encode())
    for part in model.config.token_parts:
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
            return facts, file.get_tensor("packed_codes")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} can't be read: truncated, damaged or not a token file ({error})") from error


def _bits_per_code(config) -> int:
    return (config.codebook_size - 1).bit_length()
