"""Encode and decode speed against the original packages and the codecs of Transformers, in one process, turn by turn.

    python benchmarks/speed.py                       # l3ac-1kbps
    python benchmarks/speed.py --preset l3ac-3kbps --preset sqcodec-12kbps-24khz --no-peers
    python benchmarks/speed.py --batch               # 16 clips of 4 s against one of 64 s
    python benchmarks/speed.py --device cuda         # 64 clips of 10 s, also hours of audio a minute

Random weights, float32 and bfloat16, clips of 10 s. A turn runs every codec once. Printed are seconds of work for each
second of audio, the minimum and the median of all turns, and the minimum as a multiple of ours in float32. Work is
processor time where there is one thread, so that other work on the machine counts less, and else the time that passes.
Multiply-accumulates are counted by `fsqcodec.counting`; what the machine can do is a product of two matrices of 1024 x
1024, timed in every turn.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from fsqcodec import CodecConfig, CodecModel
from fsqcodec.conversion.originals import ORIGINS, OriginalCodec
from fsqcodec.counting import multiply_accumulates

CLIP_SECONDS = 10
GPU_CLIPS = 64
GEMM_SIZE = 1024
PARTS = ("encode", "decode")
Functions = dict[str, Callable[[], object]]  # for each of PARTS, on the clips that the benchmark is about


@torch.inference_mode()
def main(
    preset: Annotated[list[str], typer.Option(help="May be given several times.")] = ["l3ac-1kbps"],  # noqa: B006
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    turns: Annotated[int, typer.Option(help="After a first one that does not count.")] = 5,
    peers: Annotated[bool, typer.Option(help="EnCodec, DAC and Mimi too.")] = True,
    batch: Annotated[bool, typer.Option(help="A batch of short clips against a long clip instead.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
):
    torch.set_num_threads(threads)
    work = "processor time" if clock_of(device) is time.process_time else "time"
    print(f"torch {torch.__version__}, {device}, {threads} thread(s); seconds of {work} per second of audio")
    for name in preset:
        config = CodecConfig.from_preset(name)
        if batch:
            compare_batch(name, config, turns, device)
        else:
            compare_codecs(name, config, turns, peers, device)
        print(f"load average of the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)


def compare_codecs(name: str, config: CodecConfig, turns: int, peers: bool, device: str):
    num_clips = GPU_CLIPS if device != "cpu" else 1
    codecs = {name: our_functions(config, num_clips, CLIP_SECONDS, device)}
    codecs[f"{name}, bfloat16"] = our_functions(config, num_clips, CLIP_SECONDS, device, torch.bfloat16)
    origin = name.split("-")[0]
    if origin in ORIGINS:
        codecs[f"original {origin}"] = original_functions(origin, config, num_clips, device)
    if peers:
        codecs |= peer_functions(num_clips, device)
    functions = {(codec, part): functions[part] for codec, functions in codecs.items() for part in PARTS}
    functions["product"] = matrix_product(device)
    times = measure(functions, turns, device)
    seconds = num_clips * CLIP_SECONDS
    print(f"\n{'':26}" + "".join(f"{part:>9}{'median':>9}{'ratio':>7}{'x real time':>13}" for part in PARTS))
    for codec in codecs:
        row = f"{codec:26}"
        for part in PARTS:
            work = [spent / seconds for spent in times[codec, part]]
            ratio = min(times[codec, part]) / min(times[name, part])
            row += f"{min(work):9.4f}{statistics.median(work):9.4f}{ratio:7.2f}{1 / min(work):13.0f}"
        print(row)
    reachable = GEMM_SIZE**3 / min(times["product"]) / 1e9
    for part, count in multiply_accumulates(config, CLIP_SECONDS).items():
        achieved = num_clips * count / min(times[name, part]) / 1e9
        print(f"{part}: {achieved:.1f} of {reachable:.1f} G multiply-accumulates/s, {achieved / reachable:.0%}")
    if device != "cpu":
        for part in PARTS:
            print(f"{part}: {seconds / min(times[name, part]) / 60:.1f} hours of audio a minute")


def compare_batch(name: str, config: CodecConfig, turns: int, device: str):
    """16 clips of 4 s and one of 64 s are the same audio."""
    clips = {"16 x 4 s": our_functions(config, 16, 4, device), "1 x 64 s": our_functions(config, 1, 64, device)}
    times = measure({(shape, part): clips[shape][part] for shape in clips for part in PARTS}, turns, device)
    print(f"\n{name:26}" + "".join(f"{part:>9}{'median':>9}" for part in PARTS))
    for shape in clips:
        works = ([spent / 64 for spent in times[shape, part]] for part in PARTS)
        print(f"{shape:26}" + "".join(f"{min(work):9.4f}{statistics.median(work):9.4f}" for work in works))


def measure(functions: dict, turns: int, device: str) -> dict[object, list[float]]:
    """Seconds that each function took in each turn but the first."""
    clock = clock_of(device)
    times = {key: [] for key in functions}
    for turn in range(turns + 1):
        for key, function in functions.items():
            started = clock()
            function()
            spent = clock() - started
            if turn > 0:
                times[key].append(spent)
    return times


def clock_of(device: str) -> Callable[[], float]:
    if device != "cpu":
        return synchronized_clock
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def synchronized_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def noise(num_clips: int, seconds: float, sampling_rate: int, device: str) -> torch.Tensor:
    return 0.1 * torch.randn(num_clips, 1, seconds * sampling_rate).to(device)


def our_functions(
    config: CodecConfig, num_clips: int, seconds: int, device: str, dtype: torch.dtype = torch.float32
) -> Functions:
    model = CodecModel(config).eval().to(device, dtype)
    audio = noise(num_clips, seconds, config.sampling_rate, device)
    codes = model.encode(audio).audio_codes
    return {"encode": lambda: model.encode(audio), "decode": lambda: model.decode(codes)}


def original_functions(origin: str, config: CodecConfig, num_clips: int, device: str) -> Functions:
    network = OriginalCodec(origin, config).float32_network().to(device)
    audio = noise(num_clips, CLIP_SECONDS, config.sampling_rate, device)[:, 0]

    def encode():
        padded, _ = network.preprocess(audio)
        return network.quantizer(network.en_encoder(network.encoder(padded.unsqueeze(1))))

    features = encode()[0]
    return {"encode": encode, "decode": lambda: network.decoder(network.en_decoder(features))}


def peer_functions(num_clips: int, device: str) -> dict[str, Functions]:
    """EnCodec at 24 kHz with 6 kbit/s, DAC at 16 kHz, Mimi with 8 codebooks: the sizes that are published."""
    encodec = EncodecModel(EncodecConfig()).eval().to(device)
    dac_config = DacConfig(sampling_rate=16000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12)
    dac = DacModel(dac_config).eval().to(device)
    mimi = MimiModel(MimiConfig()).eval().to(device)
    at_24_khz, at_16_khz = (noise(num_clips, CLIP_SECONDS, rate, device) for rate in (24000, 16000))
    encodec_codes = encodec.encode(at_24_khz, bandwidth=6.0)
    dac_codes = dac.encode(at_16_khz).audio_codes
    mimi_codes = mimi.encode(at_24_khz, num_quantizers=8).audio_codes
    return {
        "EnCodec, 24 kHz": {
            "encode": lambda: encodec.encode(at_24_khz, bandwidth=6.0),
            "decode": lambda: encodec.decode(encodec_codes.audio_codes, encodec_codes.audio_scales),
        },
        "DAC, 16 kHz": {
            "encode": lambda: dac.encode(at_16_khz),
            "decode": lambda: dac.decode(audio_codes=dac_codes),
        },
        "Mimi, 24 kHz": {
            "encode": lambda: mimi.encode(at_24_khz, num_quantizers=8),
            "decode": lambda: mimi.decode(mimi_codes),
        },
    }


def matrix_product(device: str) -> Callable[[], torch.Tensor]:
    first, second, product = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device) for _ in range(3))
    return lambda: torch.mm(first, second, out=product)


if __name__ == "__main__":
    typer.run(main)
