"""How far decoded audio is from the original's result in float64, for clips of growing length.

    python benchmarks/drift.py
    python benchmarks/drift.py --preset sqcodec-6kbps --seconds 60

The original interpolates at positions computed in float32, whose error grows with the length of the clip. Random
weights and tokens, audio as loud as speech (RMS about 0.1), largest absolute difference in float32.
"""

from typing import Annotated

import torch
import typer

from fsqcodec import CodecConfig
from fsqcodec.audio import read_audio
from fsqcodec.conversion.originals import OriginalCodec, decode_with

CLIP = "examples/audio/lj_gutenberg.flac"


@torch.inference_mode()
def main(
    preset: Annotated[list[str], typer.Option(help="May be given several times.")] = ["l3ac-1kbps"],  # noqa: B006
    seconds: Annotated[list[int], typer.Option(help="Length of a clip; several times.")] = [2, 15, 60],  # noqa: B006
):
    print(f"{'preset':24}{'seconds':>8}{'original':>12}{'fsqcodec':>12}")
    for name in preset:
        config = CodecConfig.from_preset(name)
        original = OriginalCodec(name.split("-")[0], config)
        original.randomize(seed=0, clip=read_audio(CLIP, config.sampling_rate))
        model = original.converted()
        for length in seconds:
            codes = torch.randint(config.codebook_size, (round(length * config.frame_rate),))
            exact = original.decode(codes)
            theirs = decode_with(original.float32_network(), codes)
            ours = model.decode(codes[None, None]).audio_values[0, 0]
            errors = [f"{(audio - exact).abs().max().item():12.1e}" for audio in (theirs, ours)]
            print(f"{name:24}{length:8}{''.join(errors)}")


if __name__ == "__main__":
    typer.run(main)
