"""How far NeuCodec's audio in overlapping chunks is from that of the whole clip, and what it costs.

    python benchmarks/overlapping.py [FOLDER]

FOLDER is a converted model; without one distill-NeuCodec's decoder (the same as NeuCodec's) runs at full size with
random weights that keep the variance of what passes, which says little about trained ones. Random codes of 20 s,
float32, one thread. Distance is the signal-to-noise ratio to the decode of the whole; cost is processor time per second
of audio.
"""

import sys
import time

import numpy as np
import torch

from fsqcodec import DistillNeuCodecConfig, DistillNeuCodecFeatureExtractor, DistillNeuCodecModel, OverlappingDecoder
from fsqcodec.codecs import Codec, codec_of, load_codec

SECONDS = 20
CHUNK_SECONDS = 0.5
CONTEXT_SECONDS = (0.5, 1.0, 2.0)
LOOKAHEAD_SECONDS = (0.02, 0.2, 0.5)


def main():
    torch.set_num_threads(1)
    codec = load_codec(sys.argv[1]) if len(sys.argv) > 1 else random_codec()
    num_frames = int(SECONDS * codec.frame_rate)
    codes = np.random.default_rng(0).integers(codec.codebook_sizes[0], size=(1, num_frames))
    whole, seconds = _timed(lambda: codec.decode([codes])[0])
    print(f"whole clip: {seconds / SECONDS:.2f} s of processor time per second of audio; chunks of {CHUNK_SECONDS} s:")
    print(f"{'context':>9}{'look-ahead':>12}{'distance':>11}{'cost':>8}")
    for context in CONTEXT_SECONDS:
        for lookahead in LOOKAHEAD_SECONDS:
            decoder = OverlappingDecoder(codec, CHUNK_SECONDS, context, lookahead)
            chunks, seconds = _timed(lambda decoder=decoder: [decoder.push(codes), decoder.flush()])
            error = np.concatenate(chunks) - whole
            ratio = 10 * np.log10(np.square(whole).sum() / np.square(error).sum())
            print(f"{context:7.1f} s{lookahead:10.2f} s{ratio:8.1f} dB{seconds / SECONDS:8.2f}")


@torch.no_grad()
def random_codec() -> Codec:
    torch.manual_seed(0)
    model = DistillNeuCodecModel(DistillNeuCodecConfig()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            limit = 1.5 * parameter[0].numel() ** -0.5
            parameter.uniform_(-limit, limit)
    return codec_of(model, DistillNeuCodecFeatureExtractor(), "distill-neucodec with random weights")


def _timed(function):
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
