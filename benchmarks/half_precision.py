"""What half precision costs: decoded audio and tokens of a model in bfloat16 against the same in float32.

    python benchmarks/half_precision.py ../shared/audio/speech_eval
    python benchmarks/half_precision.py examples/audio --model FOLDER --dtype float16

Means over the clips: signal-to-noise ratio of the audio decoded from the same tokens, PESQ-WB of both against the
recording, and the share of tokens, and of their digits, that change when the encoder runs in half precision.
"""

from typing import Annotated

import numpy as np
import torch
import typer
from transformers import AutoModel

from fsqcodec import bundled_checkpoint
from fsqcodec.audio import read_audio
from fsqcodec.data import find_clips
from fsqcodec.evaluation.metrics import pesq_wb, sdr_db


@torch.inference_mode()
def main(
    audio: Annotated[list[str], typer.Argument(help="Files, folders, globs or manifests.")],
    model: Annotated[str, typer.Option(help="The folder of a codec; the bundled one if not given.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float16.")] = "bfloat16",
):
    torch.set_num_threads(1)
    folder = model or bundled_checkpoint()
    full = AutoModel.from_pretrained(folder, dtype=torch.float32)
    half = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype))
    rows = []
    clips = find_clips(audio)
    for clip in clips:
        samples = read_audio(clip.audio, full.config.sampling_rate)
        rows.append(compare(full, half, samples))
    names = "SNR dB", "PESQ float32", f"PESQ {dtype}", "tokens changed", "digits changed"
    print(f"{len(clips)} clips, {dtype}: " + ", ".join(f"{n} {v:.3f}" for n, v in zip(names, np.mean(rows, axis=0))))


def compare(full, half, samples: np.ndarray) -> tuple[float, ...]:
    """One clip: signal-to-noise ratio in dB, PESQ in float32 and in half precision, changed tokens and digits."""
    input_values = torch.from_numpy(samples)[None, None]
    codes, half_codes = (model.encode(input_values).audio_codes for model in (full, half))
    decoded = [
        model.decode(codes, num_samples=len(samples)).audio_values[0, 0].float().numpy() for model in (full, half)
    ]
    rate = full.config.sampling_rate
    digits, half_digits = (full.quantizer.indices_to_digits(indices) for indices in (codes, half_codes))
    return (
        sdr_db(*decoded, rate),
        *(pesq_wb(samples, audio, rate) for audio in decoded),
        (codes != half_codes).float().mean().item(),
        (digits != half_digits).float().mean().item(),
    )


if __name__ == "__main__":
    typer.run(main)
