"""Throughput of `fsqcodec tokenize` with one process, several processes and Ray on the same files, and what 100,000
hours take at the rate that was measured.

    python benchmarks/tokenization.py                                       # examples/audio again and again, an hour
    python benchmarks/tokenization.py --model demo/codec-1kbps --audio recordings --workers 8
    python benchmarks/tokenization.py --plan-rate 1500                      # the plan alone, at 1500 times real time

Every run is a command as a user types it, with one thread of torch for each worker; the contenders take turns, and each
number is the median of the rounds. `start` is what the same command takes for one clip of 10 s a worker, with imports
and loading; `work` is the rest, which is what a longer run consists of. Rates are hours of audio in an hour of work.
Processor seconds are those of all processes that belong to a run, a Ray cluster's own among them: where a machine is
busy with something else they say what processes cost, and seconds by the clock what they were left. Ray's daemons also
take some for every second that passes. Without --model, `l3ac-1kbps` with random weights.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
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
    minutes: Annotated[float, typer.Option(help="Of audio, where --audio is not given.")] = 60,
    workers: Annotated[int, typer.Option(help="Processes, and CPUs or GPUs of the Ray cluster.")] = 2,
    shard_size: Annotated[int, typer.Option(help="Rows of a shard.")] = 10,
    rounds: Annotated[int, typer.Option(help="Of all contenders.")] = 3,
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
        first_clips = write_clips(folder / "first", workers * CLIP_SECONDS / 60)
        facts = estimate(Settings(audio, model, "mix", shard_size))
        hours = facts["hours"]
        work_seconds = hours * 3600 - workers * CLIP_SECONDS  # without what the start has encoded
        print(f"{facts['clips']} clips, {hours:.3f} h of audio, {facts['shards']} shards, {os.cpu_count()} cores")
        measured = defaultdict(list)
        for _ in range(rounds):
            for contender, prepared in contenders(workers).items():
                with prepared as (launcher, options):
                    command = [sys.executable, *launcher, "-m", "fsqcodec", "tokenize", "--model", model]
                    command += ["--channels", "mix", *options]
                    start, start_cpu = run([*command, first_clips, "--shard-size", "1"], folder / "tokens")
                    whole, whole_cpu = run([*command, audio, "--shard-size", str(shard_size)], folder / "tokens")
                measured[contender].append((start, whole - start, start_cpu, whole_cpu - start_cpu))
        rate = print_table(measured, work_seconds)
    print()
    print_plan(rate, facts["frames"] / (hours * 3600), facts["bits_per_second"])


def print_table(measured: dict[str, list[tuple]], work_seconds: float) -> float:
    """As Markdown; the rate of the first contender."""
    print("| | start, s | work, s | x real time | to one process | start, cpu s | work, cpu s | to one process |")
    print("|---|---|---|---|---|---|---|---|")
    first_work = first_work_cpu = None
    for contender, rounds in measured.items():
        start, work, start_cpu, work_cpu = map(statistics.median, zip(*rounds))
        first_work, first_work_cpu = first_work or work, first_work_cpu or work_cpu
        print(
            f"| {contender} | {start:.1f} | {work:.1f} | {work_seconds / work:.1f} | {first_work / work:.2f} | "
            f"{start_cpu:.1f} | {work_cpu:.1f} | {work_cpu / first_work_cpu:.2f} |"
        )
    return work_seconds / first_work


def contenders(workers: int) -> dict[str, AbstractContextManager[tuple[list[str], list[str]]]]:
    """By name, what is put before `-m fsqcodec` and the options of `tokenize`, for the time of one turn."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
    return {
        "1 process": nullcontext(([], [])),
        f"{workers} processes": nullcontext((torchrun, [])),
        f"Ray, {workers} workers": ray_cluster(workers),
    }


@contextmanager
def ray_cluster(workers: int) -> Iterator[tuple[list[str], list[str]]]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False})
    try:
        yield [], ["--engine", "ray", "--address", cluster.address]
    finally:
        cluster.shutdown()


def run(command: list[str], output: Path) -> tuple[float, float]:
    """Seconds by the clock and of processors that a command takes that writes to `output`, which is removed again."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = cpu_seconds()
    latest, start = dict(before), time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([*command, "--output", str(output)], env=environment, stdout=printed, stderr=printed)
        while process.poll() is None:
            latest |= cpu_seconds()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        seconds = time.perf_counter() - start
        if process.returncode:
            printed.seek(0)
            raise RuntimeError(printed.read())
    shutil.rmtree(output)
    return seconds, sum(latest.values()) - sum(before.values())


def cpu_seconds() -> dict[int, float]:
    """Of every process below this one, by its id: that of a command, and of a cluster that was started here."""
    seconds = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
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
