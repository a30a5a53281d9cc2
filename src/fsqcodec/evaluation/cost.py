"""What it costs to run a codec: time and memory. (What can be counted without running it: `fsqcodec.counting`.)

python -m fsqcodec.evaluation.cost MODEL SECONDS [DEVICE]    # the memory, as a line of JSON
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import FEATURE_EXTRACTOR_MAPPING, MODEL_MAPPING

from ..codecs import Codec, TransformersCodec, load_codec, usable_device
from ..presets import PRESETS, preset_config
from .dependence import noise

TURNS = 5


def load_codec_or_preset(name: str, device: str | None = None) -> Codec:
    """The codec that `load_codec` finds, or one with a preset's sizes and random weights, always the same ones: enough
    for all that does not depend on how it sounds. Raises as `load_codec` does."""
    if name not in PRESETS:
        return load_codec(name, device)
    config = preset_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODEL_MAPPING[type(config)](config).eval()
    model.to(usable_device(device))
    feature_extractor = FEATURE_EXTRACTOR_MAPPING[type(config)](sampling_rate=config.sampling_rate)
    return TransformersCodec(name, model, feature_extractor)


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
