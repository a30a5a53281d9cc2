"""A codec as two graphs, encoder and decoder, that run without its Python code.

program = export_encoder(model)        # torch.export
export_onnx(model, "codec-onnx")       # encoder.onnx, decoder.onnx and codec.json, for onnxruntime and OpenVINO

Batch size and length are free. A graph can't look at values, so what `CodecModel.encode` and `decode` check of them is
up to the caller: samples are finite, masks are ones followed by zeros, codes are in range.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from .atomic import atomic_folder, check_new_folder
from .models.modeling_codec import CodecModel
from .models.pretrained import PreTrainedCodec
from .packing import token_digest

OPSET = 20
ENCODER_INPUTS, ENCODER_OUTPUTS = ["input_values", "padding_mask"], ["audio_codes"]
DECODER_INPUTS, DECODER_OUTPUTS = ["audio_codes"], ["audio_values"]
FACTS = (
    "sampling_rate",
    "hop_length",
    "frame_rate",
    "num_codebooks",
    "codebook_size",
    "quantization_levels",
    "bitrate",
)
SHORTEST_CLIP = 3  # frames, of an ExportedProgram: torch takes sizes of 1, and of 2 less 1, for special


def export_encoder(model: CodecModel) -> ExportedProgram:
    """`input_values` `(batch, 1, num_samples)` float32 and `padding_mask` `(batch, num_samples)` int64 to `audio_codes`
    `(batch, 1, num_frames)`, 0 in padding, as [`CodecModel.encode`] has them.

    The program takes clips of more than two frames; as ONNX, which does not check, it runs from one sample on.

    Raises `ValueError` for a model in training mode or not in float32.
    """
    _check_exportable(model)
    hop_length = model.config.hop_length
    num_samples = _example_frames(model) * hop_length - 1
    shapes = _encoder_shapes(Dim("batch"), Dim("num_samples", min=(SHORTEST_CLIP - 1) * hop_length + 1))
    clips = torch.zeros(2, 1, num_samples, device=model.device)
    mask = torch.ones(2, num_samples, dtype=torch.int64, device=model.device)
    return _export(_Encoder(_without(model, "decoder")), (clips, mask), shapes)


def export_decoder(model: CodecModel) -> ExportedProgram:
    """`audio_codes` `(batch, 1, num_frames)` int64 to `audio_values` `(batch, 1, num_frames * hop_length)` float32, as
    [`CodecModel.decode`] has them. There is no mask: the clips of a batch have one length.

    The program takes clips of more than two frames; as ONNX, which does not check, it runs from one frame on.

    Raises `ValueError` for a model in training mode or not in float32.
    """
    _check_exportable(model)
    shapes = _decoder_shapes(Dim("batch"), Dim("num_frames", min=SHORTEST_CLIP))
    codes = torch.zeros(2, 1, _example_frames(model), dtype=torch.int64, device=model.device)
    return _export(_Decoder(_without(model, "encoder")), (codes,), shapes)


def export_onnx(model: CodecModel, output_dir: str | os.PathLike) -> Path:
    """Write `encoder.onnx` and `decoder.onnx`, inputs and outputs as in `export_encoder` and `export_decoder`, weights
    inside, and `codec.json` with the codec's rates, its token digest and the opset.

    Args:
        model: in float32 and evaluation mode.
        output_dir: a folder that does not exist yet, or is empty. It appears when everything has succeeded.

    Returns:
        The output folder.

    Raises:
        ValueError: another model, one in training mode or not in float32.
        FileExistsError: an output folder with something in it.
        ImportError: onnx or onnxscript is not installed.
    """
    _check_onnx_is_installed()
    _check_exportable(model)
    output_dir = Path(output_dir)
    check_new_folder(output_dir)
    with atomic_folder(output_dir) as unfinished:
        shapes = _encoder_shapes("batch", "num_samples")
        _write_onnx(export_encoder(model), unfinished / "encoder.onnx", ENCODER_INPUTS, ENCODER_OUTPUTS, shapes)
        shapes = _decoder_shapes("batch", "num_frames")
        _write_onnx(export_decoder(model), unfinished / "decoder.onnx", DECODER_INPUTS, DECODER_OUTPUTS, shapes)
        facts = {name: getattr(model.config, name) for name in FACTS}
        facts |= {"token_digest": token_digest(model), "onnx_opset": OPSET}
        (unfinished / "codec.json").write_text(json.dumps(facts, indent=2) + "\n")
    return output_dir


class _Encoder(nn.Module):
    def __init__(self, model: CodecModel):
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode(input_values, padding_mask).audio_codes


class _Decoder(nn.Module):
    def __init__(self, model: CodecModel):
        super().__init__()
        self.model = model

    def forward(self, audio_codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(audio_codes).audio_values


def _check_exportable(model: CodecModel):
    if not (isinstance(model, PreTrainedCodec) and model.config.streams_frames):
        raise ValueError(f"a {type(model).__name__} can't be exported: a CodecModel of fsqcodec is wanted")
    if model.training:
        raise ValueError("the model is in training mode, which would be exported: call model.eval() first")
    if model.dtype != torch.float32:
        raise ValueError(f"the model is in {model.dtype}: load it with dtype=torch.float32 to export it")


def _example_frames(model: CodecModel) -> int:
    """A length at which nothing is special: blocks of attention, and part of one."""
    return 2 * model.config.attention_window_size + SHORTEST_CLIP


def _encoder_shapes(batch, num_samples) -> tuple[dict, dict]:
    return {0: batch, 2: num_samples}, {0: batch, 1: num_samples}


def _decoder_shapes(batch, num_frames) -> tuple[dict]:
    return ({0: batch, 2: num_frames},)


def _without(model: CodecModel, name: str) -> CodecModel:
    """The same model less one of its modules, whose weights a program would carry."""
    part = copy.copy(model)
    part._modules = {key: module for key, module in model._modules.items() if key != name}
    return part


@torch.no_grad()
def _export(part: nn.Module, inputs: tuple, shapes: tuple) -> ExportedProgram:
    # Deferred, the guards that torch can't prove, as n <= ceil(n / window) * window, become checks of the program.
    return torch.export.export(
        part.eval(), inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
    )


def _check_onnx_is_installed():
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"exporting to ONNX needs {error.name}: pip install 'fsqcodec[export]'") from error


def _write_onnx(program: ExportedProgram, path: Path, inputs: list[str], outputs: list[str], shapes: tuple):
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _quiet_exporter():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(onnx_program.model)  # which code made a node, with paths of this machine
    onnx_program.save(path, external_data=False)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch's notes on itself: no torchvision, deprecations, axes that have one name."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
