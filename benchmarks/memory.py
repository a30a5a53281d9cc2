"""Peak memory and time of encode_file and decode_file, for a short file and a long one.

    python benchmarks/memory.py --preset speech-3kbps --minutes 1 --minutes 180
    python benchmarks/memory.py --preset l3ac-1kbps --minutes 1 --minutes 20

Random weights, float32, the example clips one after the other, one thread. Every measurement is a process of its own;
peak memory is its maximum resident set, libraries and model included. The last column is seconds of processor time per
second of audio.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from fsqcodec import CodecConfig, CodecModel, decode_file, encode_file
from fsqcodec.audio import read_audio, write_audio_pieces

CLIPS = sorted((Path(__file__).parent.parent / "examples" / "audio").glob("*.flac"))


def main(
    preset: Annotated[list[str], typer.Option(help="May be given several times.")] = ["speech-3kbps"],  # noqa: B006
    minutes: Annotated[list[float], typer.Option(help="Durations, at least two.")] = [1, 180],  # noqa: B006
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
):
    if only is not None:
        print(json.dumps(measured(*json.loads(only))))
        return
    print(f"{'preset':16}{'':8}{'minutes':>8}{'peak MB':>9}{'more than first':>17}{'work/s':>9}")
    for name in preset:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            CodecModel(CodecConfig.from_preset(name)).save_pretrained(Path(folder) / "model")
            for part in ("encode", "decode"):
                first = None
                for duration in minutes:
                    command = [sys.executable, __file__, "--only", json.dumps([folder, part, duration])]
                    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                    megabytes, seconds = json.loads(result.stdout)
                    first = megabytes if first is None else first
                    work = seconds / 60 / duration
                    print(
                        f"{name:16}{part:8}{duration:8g}{megabytes:9.0f}{megabytes - first:17.0f}{work:9.4f}",
                        flush=True,
                    )


def measured(folder: str, part: str, minutes: float) -> tuple[float, float]:
    """Peak resident set in MB, and seconds of processor time, of one conversion in this process."""
    torch.set_num_threads(1)
    folder = Path(folder)
    model = CodecModel.from_pretrained(folder / "model").eval()
    audio, tokens = folder / f"{minutes:g}.flac", folder / f"{minutes:g}.safetensors"
    if part == "encode":
        write_audio_pieces(audio, speech(minutes, model.config.sampling_rate), model.config.sampling_rate)
    started = time.process_time()
    if part == "encode":
        encode_file(audio, model, tokens)
    else:
        decode_file(tokens, model, folder / "decoded.wav", overwrite=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time() - started


def speech(minutes: float, sampling_rate: int):
    """The example clips again and again, in pieces."""
    clip = np.concatenate([read_audio(path, sampling_rate) for path in CLIPS])
    num_left = int(60 * minutes * sampling_rate)
    while num_left > 0:
        yield clip[:num_left]
        num_left -= len(clip)


if __name__ == "__main__":
    typer.run(main)
