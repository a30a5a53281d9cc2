"""Size and speed of a codec's exports: torch, torch.compile, onnxruntime, OpenVINO, in one process, turn by turn.

    python benchmarks/export.py                      # speech-3kbps
    python benchmarks/export.py --preset l3ac-1kbps

Random weights, float32, one thread, a clip of 10 s that is all audio. Prints seconds of work per second of audio (the
minimum and the median of all turns), the ratio to torch by the minimum, and what each must have on disk.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import onnxruntime
import openvino
import torch
import typer

from fsqcodec import CodecConfig, CodecModel
from fsqcodec.export import export_onnx

CLIP_SECONDS = 10


def main(
    preset: Annotated[list[str], typer.Option(help="May be given several times.")] = ["speech-3kbps"],  # noqa: B006
    turns: Annotated[int, typer.Option(help="Of which the fastest and the middle one count.")] = 10,
):
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, OpenVINO {openvino.__version__}"
    print(f"{versions}; seconds of work per second of audio")
    print(f"{'preset':16}{'':8}{'':16}{'minimum':>10}{'median':>10}{'x torch':>10}{'MB':>8}")
    for name in preset:
        measure(name, turns)


@torch.inference_mode()
def measure(preset: str, turns: int):
    """Print one line for each half of the codec and each way to run it."""
    model = CodecModel(CodecConfig.from_preset(preset)).eval()
    num_samples = CLIP_SECONDS * model.config.sampling_rate
    generator = torch.Generator().manual_seed(0)
    clip = 0.1 * torch.randn(1, 1, num_samples, generator=generator)
    mask = torch.ones(1, num_samples, dtype=torch.int64)
    codes = model.encode(clip).audio_codes
    encode_inputs = {"input_values": clip.numpy(), "padding_mask": mask.numpy()}
    compiled_encode = torch.compile(model.encode, fullgraph=True, dynamic=True)
    compiled_decode = torch.compile(model.decode, fullgraph=True, dynamic=True)
    with tempfile.TemporaryDirectory() as folder:
        onnx = export_onnx(model, Path(folder) / "onnx")
        encoder, decoder = onnx / "encoder.onnx", onnx / "decoder.onnx"
        runs = {
            "encode": {
                "torch": (lambda: model.encode(clip), _parameter_bytes(model.encoder, model.quantizer.project_in)),
                "torch.compile": (lambda: compiled_encode(clip), 0),
                "onnxruntime": (_onnxruntime(encoder, encode_inputs), encoder.stat().st_size),
                "OpenVINO": (_openvino(encoder, encode_inputs), encoder.stat().st_size),
            },
            "decode": {
                "torch": (lambda: model.decode(codes), _parameter_bytes(model.decoder, model.quantizer.project_out)),
                "torch.compile": (lambda: compiled_decode(codes), 0),
                "onnxruntime": (_onnxruntime(decoder, {"audio_codes": codes.numpy()}), decoder.stat().st_size),
                "OpenVINO": (_openvino(decoder, {"audio_codes": codes.numpy()}), decoder.stat().st_size),
            },
        }
    for half, ways in runs.items():
        times = _interleaved({name: function for name, (function, _) in ways.items()}, turns)
        for name, (_, num_bytes) in ways.items():
            ratio = min(times["torch"]) / min(times[name])
            size = f"{num_bytes / 1e6:8.1f}" if num_bytes else f"{'-':>8}"
            row = f"{min(times[name]):10.4f}{median(times[name]):10.4f}{ratio:10.2f}{size}"
            print(f"{preset:16}{half:8}{name:16}{row}", flush=True)


def _parameter_bytes(*modules: torch.nn.Module) -> int:
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())


def _onnxruntime(path: Path, inputs: dict[str, np.ndarray]):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def _openvino(path: Path, inputs: dict[str, np.ndarray]):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_model(path, "CPU", settings)
    return lambda: compiled(inputs)


def _interleaved(functions: dict, turns: int) -> dict[str, list[float]]:
    """Seconds per second of audio of every function's turns; one more before them is not counted."""
    times = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - started) / CLIP_SECONDS)
    return {name: measured[1:] for name, measured in times.items()}


if __name__ == "__main__":
    typer.run(main)
