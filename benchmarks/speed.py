"""Encode and decode speed against the original packages, in one process, turn by turn.

    python benchmarks/speed.py                       # l3ac-1kbps
    python benchmarks/speed.py --preset l3ac-3kbps --preset sqcodec-12kbps-24khz --threads 2

Random weights, float32, clips of 10 s. Prints seconds of work per second of audio (the minimum of all turns) and the
ratio to the original.
"""

import time
from typing import Annotated

import numpy as np
import torch
import typer

from fsqcodec import CodecConfig, CodecModel
from fsqcodec.conversion.originals import OriginalCodec

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
    print(f"{'preset':24}{'':8}{'original':>10}{'fsqcodec':>10}{'ratio':>8}")
    for name in preset:
        for part, (original_time, our_time) in measure(name, turns).items():
            print(f"{name:24}{part:8}{original_time:10.4f}{our_time:10.4f}{original_time / our_time:8.2f}")


@torch.inference_mode()
def measure(preset: str, turns: int) -> dict[str, tuple[float, float]]:
    """Minimum times of original and ours, seconds per second of audio, for "encode" and "decode"."""
    config = CodecConfig.from_preset(preset)
    network = OriginalCodec(preset.split("-")[0], config).float32_network()
    model = CodecModel(config).eval()
    rng = np.random.default_rng(0)
    audio = torch.from_numpy(0.1 * rng.standard_normal((1, CLIP_SECONDS * config.sampling_rate))).float()
    codes = model.encode(audio[:, None]).audio_codes

    def original_encode():
        padded, _ = network.preprocess(audio)
        return network.quantizer(network.en_encoder(network.encoder(padded.unsqueeze(1))))

    features = original_encode()[0]
    contenders = {
        "encode": (original_encode, lambda: model.encode(audio[:, None])),
        "decode": (lambda: network.decoder(network.en_decoder(features)), lambda: model.decode(codes)),
    }
    times = {part: ([], []) for part in contenders}
    for _ in range(turns + 1):
        for part, functions in contenders.items():
            for function, measured in zip(functions, times[part]):
                started = time.perf_counter()
                function()
                measured.append((time.perf_counter() - started) / CLIP_SECONDS)
    return {part: tuple(min(measured[1:]) for measured in pair) for part, pair in times.items()}


if __name__ == "__main__":
    typer.run(main)
