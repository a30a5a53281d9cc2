"""Tokens and audio of every original's preset against the original packages: same random weights, same real speech.

    python benchmarks/parity.py

The original runs in float64, ours in float32, on both clips of examples/audio, 13.3 s, at the rate of the preset.
"""

import numpy as np
import torch

from fsqcodec import CodecConfig, list_presets
from fsqcodec.audio import read_audio
from fsqcodec.conversion.originals import ORIGINS, OriginalCodec
from fsqcodec.conversion.verification import compare_with_original

CLIPS = ("examples/audio/lj_gutenberg.flac", "examples/audio/thorsten_eurasien.flac")


@torch.inference_mode()
def main():
    for name in [name for origin in ORIGINS for name in list_presets(origin)]:
        config = CodecConfig.from_preset(name)
        speech = np.concatenate([read_audio(clip, config.sampling_rate) for clip in CLIPS])
        original = OriginalCodec(name.split("-")[0], config)
        original.randomize(seed=0, clip=speech[: 5 * config.sampling_rate])
        print(f"{name:24}{compare_with_original(original, original.converted(), speech)}", flush=True)


if __name__ == "__main__":
    main()
