"""What a codec costs: parameters, multiply-accumulates, speed and memory.

python -m fsqcodec.evaluation.cost MODEL SECONDS [DEVICE]    # the memory, as a line of JSON
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..codecs import Codec, TransformersCodec, load_codec
from ..models.configuration_codec import CodecConfig
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.modeling_codec import CodecModel
from ..presets import PRESETS
from .dependence import noise

TURNS = 5
NUM_COUNTED_WINDOWS = 3  # enough for every layer to have met all kinds: the first, whole ones, a part of one


def load_codec_or_preset(name: str, device: str | None = None) -> Codec:
    """The codec that `load_codec` finds, or one with a preset's sizes and random weights, always the same ones: enough
    for all that does not depend on how it sounds. Raises as `load_codec` does."""
    if name not in PRESETS:
        return load_codec(name, device)
    config = CodecConfig.from_preset(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CodecModel(config).eval()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    return TransformersCodec(name, model, CodecFeatureExtractor(sampling_rate=config.sampling_rate))


def num_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of the `total` model and of each of its parts, for a `CodecModel` encoder, quantizer and decoder."""
    parts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in model.named_children()}
    return {"total": sum(parameter.numel() for parameter in model.parameters()), **parts}


def multiply_accumulates(config: CodecConfig, seconds: float) -> dict[str, int]:
    """Multiply-accumulates that `encode` and `decode` take for one clip of `seconds`, frames rounded up.

    Counted are matrix products, convolutions and attention, as they are computed: attention includes the masked scores
    of a tile. Norms, activations and pooling are not. Nothing is computed: meta tensors have shapes only.
    """
    num_frames = math.ceil(seconds * config.frame_rate)
    with torch.device("meta"):
        model = CodecModel(config).eval()
    num_more_windows = max(0, num_frames // config.attention_window_size - NUM_COUNTED_WINDOWS)
    num_frames -= num_more_windows * config.attention_window_size
    counts = _counted(model, num_frames)
    if num_more_windows:  # each costs the same
        longer = _counted(model, num_frames + config.attention_window_size)
        counts = {part: count + num_more_windows * (longer[part] - count) for part, count in counts.items()}
    return counts


def real_time_factors(codec: Codec, seconds: float, turns: int = TURNS) -> dict[str, dict[str, float]]:
    """Seconds of audio a second of work gets through, above 1 faster than real time, for one clip at a time.

    Returns:
        for `encode`, `decode` and `both` after each other, the `fastest` turn and the `median` of all, after one turn
        to warm up.
    """
    clip = noise(round(seconds * codec.input_sampling_rate), codec.input_sampling_rate, codec.num_channels)
    times = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        codes = codec.encode([clip])
        encoded = time.perf_counter()
        codec.decode(codes)
        times.append((encoded - started, time.perf_counter() - encoded))
    encode, decode = np.array(times[1:]).T
    parts = {"encode": encode, "decode": decode, "both": encode + decode}
    return {
        name: {"fastest": float(seconds / part.min()), "median": float(seconds / np.median(part))}
        for name, part in parts.items()
    }


def peak_memory(name: str, seconds: float, device: str | None = None) -> dict[str, int]:
    """Peak memory of a fresh process that loads a codec by its name and encodes and decodes one clip, bytes.

    Returns:
        `libraries`: what the process holds before it loads the codec; and beyond that, at most until then, `load`,
        `encode` and `decode`, each including the ones before. On a GPU these three are of its memory.

    Raises:
        RuntimeError: the process failed, with the last line it wrote, or the system is not Linux.
    """
    command = [sys.executable, "-m", __name__, name, str(seconds), *([device] if device else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        raise RuntimeError(f"the memory of {name} can't be measured: {run.stderr.strip().splitlines()[-1:]}")
    return json.loads(run.stdout.splitlines()[-1])


@torch.no_grad()
def _counted(model: CodecModel, num_frames: int) -> dict[str, int]:
    """For a model on the meta device. Torch counts two operations for each multiply-accumulate, and of fused attention
    on a CPU none."""
    with FlopCounterMode(display=False) as encode:
        audio_codes = model.encode(torch.empty(1, 1, num_frames * model.config.hop_length, device="meta")).audio_codes
    with FlopCounterMode(display=False) as decode:  # `model.decode` would look at the codes' values first
        model.decoder(model.quantizer.indices_to_features(audio_codes[:, 0]), None)
    return {"encode": encode.get_total_flops() // 2, "decode": decode.get_total_flops() // 2}


def _measure_memory(name: str, seconds: float, device: str | None) -> dict[str, int]:
    libraries = _peak_bytes()
    codec = load_codec_or_preset(name, device)
    on_gpu = codec.model is not None and codec.model.device.type == "cuda"
    used = torch.cuda.max_memory_allocated if on_gpu else lambda: _peak_bytes() - libraries
    clip = noise(round(seconds * codec.input_sampling_rate), codec.input_sampling_rate, codec.num_channels)
    memory = {"libraries": libraries, "load": used()}
    codes = codec.encode([clip])
    memory["encode"] = used()
    codec.decode(codes)
    return {**memory, "decode": used()}


def _peak_bytes() -> int:
    """The largest resident size of this process so far. (`getrusage` would count the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(_measure_memory(sys.argv[1], float(sys.argv[2]), (sys.argv[3:] or [None])[0])))
