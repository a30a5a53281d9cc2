"""Throughput of `fsqcodec tokenize` with one process, several processes and Ray on the same files, and what 100,000
hours take at the rate that was measured.

    python benchmarks/tokenization.py                                       # examples/audio again and again, 20 minutes
    python benchmarks/tokenization.py --model demo/codec-1kbps --audio recordings --workers 8
    python benchmarks/tokenization.py --plan-rate 1500                      # the plan alone, at 1500 times real time

Every run is a command as a user types it, with one thread of torch for each worker. `start` is what the same command
takes for one clip, with imports and loading; `work` is the rest, which is what a longer run consists of. Rates are
hours of audio in an hour of work. Without --model, `l3ac-1kbps` with random weights.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer

from fsqcodec import CodecConfig, CodecFeatureExtractor, CodecModel
from fsqcodec.audio import read_audio
from fsqcodec.tokenization import Settings
from fsqcodec.tokenization.estimate import estimate

PRESET = "l3ac-1kbps"
EXAMPLES = Path(__file__).parent.parent / "examples" / "audio"
CLIP_SECONDS = 10
PLAN_HOURS = 100_000
SHARD_OVERHEAD = 1.1  # bytes of a shard for a byte of codes, at most: tests/test_tokenization.py


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a codec.")] = None,
    audio: Annotated[str | None, typer.Option(help="What to tokenize, as `fsqcodec tokenize` takes it.")] = None,
    minutes: Annotated[float, typer.Option(help="Of audio, where --audio is not given.")] = 20,
    workers: Annotated[int, typer.Option(help="Processes, and CPUs or GPUs of the Ray cluster.")] = 2,
    shard_size: Annotated[int, typer.Option(help="Rows of a shard.")] = 10,
    plan_rate: Annotated[float | None, typer.Option(help="Print the plan at this rate, and measure nothing.")] = None,
):
    if plan_rate is not None:
        config = CodecConfig.from_preset(PRESET)
        print_plan(plan_rate, config.frame_rate, config.bitrate)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model or write_model(folder / "codec")
        audio = audio or write_clips(folder / "audio", minutes)
        one_clip = write_clips(folder / "one", CLIP_SECONDS / 60)
        facts = estimate(Settings(audio, model, "mix", shard_size))
        hours = facts["hours"]
        print(f"{facts['clips']} clips, {hours:.3f} h of audio, {facts['shards']} shards, {os.cpu_count()} cores")
        print(f"{'':24}{'start s':>10}{'work s':>10}{'x real time':>13}{'to one process':>16}")
        rates = {}
        for contender, (launcher, options) in contenders(workers).items():
            seconds = []
            for source in (one_clip, audio):
                command = [sys.executable, *launcher, "-m", "fsqcodec", "tokenize", source, "--model", model]
                command += ["--channels", "mix", "--shard-size", str(shard_size), *options]
                seconds.append(run(command, folder / "tokens"))
            start, work = seconds[0], seconds[1] - seconds[0]
            rates[contender] = hours * 3600 / work
            ratio = rates[contender] / rates["1 process"]
            print(f"{contender:24}{start:10.1f}{work:10.1f}{rates[contender]:13.1f}{ratio:16.2f}")
    print()
    print_plan(rates["1 process"], facts["frames"] / (hours * 3600), facts["bits_per_second"])


def contenders(workers: int) -> dict[str, tuple[list[str], list[str]]]:
    """What is put before `-m fsqcodec`, and the options of `tokenize`, by name; a Ray cluster is started."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False})
    return {
        "1 process": ([], []),
        f"{workers} processes": (torchrun, []),
        f"Ray, {workers} workers": ([], ["--engine", "ray", "--address", cluster.address]),
    }


def run(command: list[str], output: Path) -> float:
    """Seconds that a command takes that writes to `output`, which is removed again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    result = subprocess.run([*command, "--output", str(output)], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if result.returncode:
        raise RuntimeError(result.stderr)
    shutil.rmtree(output)
    return seconds


def write_model(folder: Path) -> str:
    config = CodecConfig.from_preset(PRESET)
    CodecModel(config).save_pretrained(folder)
    CodecFeatureExtractor(sampling_rate=config.sampling_rate).save_pretrained(folder)
    return str(folder)


def write_clips(folder: Path, minutes: float) -> str:
    """Speech of the examples in clips of 10 s."""
    folder.mkdir()
    speech = np.concatenate([read_audio(path, 16000) for path in sorted(EXAMPLES.glob("*.flac"))])
    for number in range(max(1, round(minutes * 60 / CLIP_SECONDS))):
        clip = np.take(speech, range(number * 997, number * 997 + CLIP_SECONDS * 16000), mode="wrap")
        soundfile.write(folder / f"{number:05}.flac", clip, 16000)
    return str(folder)


def print_plan(rate: float, frame_rate: float, bitrate: float):
    """What 100,000 hours take with devices that each tokenize at `rate` times real time."""
    seconds = PLAN_HOURS * 3600
    print(f"{PLAN_HOURS:,} hours at {rate:.0f} times real time a device, {frame_rate:.2f} frames a second:")
    print(f"    audio in, 16 kHz 16-bit      {seconds * 32000 / 1e12:10.2f} TB")
    print(f"    frames                       {seconds * frame_rate / 1e9:10.2f} billion")
    print(f"    shards                       {seconds * bitrate / 8 * SHARD_OVERHEAD / 1e9:10.2f} GB at most")
    print(f"    device-hours                 {PLAN_HOURS / rate:10.1f}")
    print(f"    {'devices':>10}{'hours':>12}{'MB/s to read':>15}")
    for num_devices in (1, 8, 64):
        hours = PLAN_HOURS / rate / num_devices
        print(f"    {num_devices:10}{hours:12.1f}{rate * num_devices * 32000 / 1e6:15.1f}")


if __name__ == "__main__":
    typer.run(main)
