"""Speech to tokens and back without PyTorch: it needs onnxruntime, numpy and soundfile.

python examples/onnx_codec.py FOLDER_OF_FSQCODEC_EXPORT input.flac output.wav
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

if len(sys.argv) != 4:
    sys.exit(__doc__)
folder, source, target = map(Path, sys.argv[1:])
encoder = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
decoder = onnxruntime.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
codec = json.loads((folder / "codec.json").read_text())
audio, sampling_rate = soundfile.read(source, dtype="float32")
if audio.ndim > 1 or sampling_rate != codec["sampling_rate"]:
    sys.exit(f"{source} must be mono at {codec['sampling_rate']} Hz")
if not (len(audio) and np.abs(audio).max() <= 8):  # neither does the graph notice NaN
    sys.exit(f"{source} must hold finite audio in [-1, 1], and some")
mask = np.ones((1, len(audio)), dtype=np.int64)  # 0 where a clip is shorter than the longest of its batch
(audio_codes,) = encoder.run(None, {"input_values": audio[None, None], "padding_mask": mask})
(audio_values,) = decoder.run(None, {"audio_codes": audio_codes})
soundfile.write(target, audio_values[0, 0, : len(audio)], sampling_rate)
print(f"{audio_codes.shape[-1]} tokens, {codec['bitrate']:.0f} bit/s: {audio_codes[0, 0, :8].tolist()} ...")
