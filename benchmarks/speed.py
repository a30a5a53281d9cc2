"""Encode and decode speed against the original packages, in one process, turn by turn.

    python benchmarks/speed.py                       # l3ac-1kbps
    python benchmarks/speed.py --preset l3ac-3kbps --preset sqcodec-12kbps-24khz --threads 2

Random weights, float32, clips of 10 s. Prints seconds of work per second of audio (the minimum of all turns), the ratio
to the original where there is one, and how many times faster than real time ours is.
"""

import time
from typing import Annotated

import numpy as np
import torch
import typer

from fsqcodec import CodecConfig, CodecModel
from fsqcodec.conversion.originals import ORIGINS, OriginalCodec

CLIP_SECONDS = 10


def main(
    preset: Annotated[list[str], typer.Option(help="May be given several times.")] = ["l3ac-1kbps"],  # noqa: B006
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    turns: Annotated[int, typer.Option(help="Of which the fastest counts.")] = 5,
):
    torch.set_num_threads(threads)
    print(
        f"torch {torch.__version__}, {threads} thread(s), {CLIP_SECONDS} s clips; seconds of work per second of audio"
    )
    print(f"{'preset':24}{'':8}{'original':>10}{'fsqcodec':>10}{'ratio':>8}{'real time':>11}")
    for name in preset:
        for part, (original_time, our_time) in measure(name, turns).items():
            original = ratio = "-"
            if original_time is not None:
                original, ratio = f"{original_time:.4f}", f"{original_time / our_time:.2f}"
            print(f"{name:24}{part:8}{original:>10}{our_time:10.4f}{ratio:>8}{1 / our_time:10.0f}x")


@torch.inference_mode()
def measure(preset: str, turns: int) -> dict[str, tuple[float | None, float]]:
    """Minimum times of original and ours, seconds per second of audio, for "encode" and "decode"; `None` without an
    original."""
    config = CodecConfig.from_preset(preset)
    model = CodecModel(config).eval()
    rng = np.random.default_rng(0)
    audio = torch.from_numpy(0.1 * rng.standard_normal((1, CLIP_SECONDS * config.sampling_rate))).float()
    codes = model.encode(audio[:, None]).audio_codes
    ours = {"encode": lambda: model.encode(audio[:, None]), "decode": lambda: model.decode(codes)}
    originals = original_functions(preset, config, audio)
    times = {part: ([], []) for part in ours}
    for _ in range(turns + 1):
        for part in ours:
            for function, measured in zip((originals.get(part), ours[part]), times[part]):
                if function is not None:
                    started = time.perf_counter()
                    function()
                    measured.append((time.perf_counter() - started) / CLIP_SECONDS)
    return {part: tuple(min(measured[1:], default=None) for measured in pair) for part, pair in times.items()}


def original_functions(preset: str, config: CodecConfig, audio: torch.Tensor) -> dict:
    family = preset.split("-")[0]
    if family not in ORIGINS:
        return {}
    network = OriginalCodec(family, config).float32_network()

    def encode():
        padded, _ = network.preprocess(audio)
        return network.quantizer(network.en_encoder(network.encoder(padded.unsqueeze(1))))

    features = encode()[0]
    return {"encode": encode, "decode": lambda: network.decoder(network.en_decoder(features))}


if __name__ == "__main__":
    typer.run(main)
