"""Graphs of a codec do what the codec does, at every length and in every batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clips import ENGLISH, speech
from fsqcodec import CodecConfig, CodecModel
from fsqcodec.audio import read_audio
from fsqcodec.conversion.verification import AUDIO_TOLERANCE, ROUNDING_MARGIN
from fsqcodec.export import OPSET, export_decoder, export_encoder, export_onnx
from fsqcodec.models.local_attention import LocalTransformer
from small_configs import randomize, small_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install fsqcodec[export]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install fsqcodec[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install fsqcodec[export]")

SPEECH_DIR = Path(__file__).parents[2] / "shared" / "audio" / "speech_eval"
EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_codec.py"
CODECS = ["frames-plain"] + [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("sqcodec-coarse", "l3ac-coarse", "running", "frames-attention")
]
PRESETS = ["speech-3kbps", "l3ac-1kbps", "sqcodec-6kbps"]


@pytest.fixture(scope="module", params=CODECS)
def exported(request, tmp_path_factory):
    """A small model and the folder of its export."""
    model = small_model(request.param)
    return model, export_onnx(model, tmp_path_factory.mktemp(request.param) / "onnx")


class OnnxCodec:
    """The two files of an export, run by onnxruntime."""

    def __init__(self, folder: Path):
        self.encoder, self.decoder = (_session(folder / name) for name in ("encoder.onnx", "decoder.onnx"))

    def encode(self, input_values: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        inputs = {"input_values": input_values.numpy(), "padding_mask": padding_mask.numpy()}
        return torch.from_numpy(self.encoder.run(None, inputs)[0])

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.decoder.run(None, {"audio_codes": audio_codes.numpy()})[0])


def _session(path: Path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def batch_of_clips(num_samples: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of speech, each shorter than the one before, padded to `num_samples`; and their mask."""
    clip = np.resize(speech(), num_samples + 997 * batch_size)
    clips = torch.stack([torch.from_numpy(clip[997 * i :][:num_samples]) for i in range(batch_size)])
    lengths = torch.tensor([max(1, num_samples - i * num_samples // 4) for i in range(batch_size)])
    mask = (torch.arange(num_samples) < lengths[:, None]).long()
    return clips.unsqueeze(1), mask


@torch.no_grad()
def num_wrong_tokens(model: CodecModel, codes: torch.Tensor, input_values, padding_mask) -> int:
    """Tokens that differ from the model's, save those of which a digit lies on a rounding boundary."""
    encoded = model.encode(input_values, padding_mask, output_latents=True)
    assert codes.shape == encoded.audio_codes.shape
    positions = model.quantizer.positions(encoded.latents.transpose(1, 2))
    is_boundary = ((positions - positions.floor() - 0.5).abs() < ROUNDING_MARGIN).any(dim=-1)
    assert is_boundary.float().mean() < 0.02  # or the excuse would cover anything
    return int(((codes != encoded.audio_codes)[:, 0] & ~is_boundary).sum())


def lengths_in_frames(model: CodecModel) -> list[int]:
    window = model.config.attention_window_size
    return [1, 2, 3, window, window + 1, 2 * window, 5 * window + 7]


@torch.no_grad()
def test_onnx_equals_torch_at_every_length_and_batch(exported):
    model, folder = exported
    codec, hop_length = OnnxCodec(folder), model.config.hop_length
    for num_frames in lengths_in_frames(model):
        for batch_size in (1, 2, 4):
            clips = batch_of_clips(num_frames * hop_length - num_frames % 3, batch_size)
            codes = model.encode(*clips).audio_codes
            assert num_wrong_tokens(model, codec.encode(*clips), *clips) == 0
            audio = model.decode(codes).audio_values
            torch.testing.assert_close(codec.decode(codes), audio, rtol=0, atol=1e-5)
    one_sample = batch_of_clips(1, 1)
    assert torch.equal(codec.encode(*one_sample), model.encode(*one_sample).audio_codes)


@torch.no_grad()
def test_openvino_equals_torch_in_float32(exported):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    model, folder = exported
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    encoder, decoder = (
        openvino.compile_model(folder / f"{part}.onnx", "CPU", settings) for part in ("encoder", "decoder")
    )
    for num_frames in lengths_in_frames(model):
        clips = batch_of_clips(num_frames * model.config.hop_length, 2)
        codes = torch.from_numpy(encoder(dict(zip(("input_values", "padding_mask"), map(np.asarray, clips))))[0])
        assert num_wrong_tokens(model, codes, *clips) == 0
        audio = torch.from_numpy(decoder({"audio_codes": codes.numpy()})[0])
        torch.testing.assert_close(audio, model.decode(codes).audio_values, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_of_the_clips_vary(exported):
    model, _ = exported
    assert len(model.encode(*batch_of_clips(100 * model.config.hop_length, 1)).audio_codes.unique()) > 30


def test_folder_is_complete_and_says_what_it_is(exported):
    model, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == ["codec.json", "decoder.onnx", "encoder.onnx"]
    facts = json.loads((folder / "codec.json").read_text())
    assert facts["frame_rate"] == model.config.frame_rate and facts["codebook_size"] == model.config.codebook_size
    assert facts["onnx_opset"] == OPSET
    axes = {"encoder.onnx": [("batch", 1, "num_samples"), ("batch", "num_samples")]}
    axes["decoder.onnx"] = [("batch", 1, "num_frames")]
    for name, expected in axes.items():
        graph = onnx.load(folder / name)
        onnx.checker.check_model(graph)
        assert [(part.domain, part.version) for part in graph.opset_import if not part.domain] == [("", OPSET)]
        assert [tuple(_session(folder / name).get_inputs()[i].shape) for i in range(len(expected))] == expected
        assert str(Path(__file__).parents[1]).encode() not in (folder / name).read_bytes()


@torch.no_grad()
def test_torch_programs_equal_the_model():
    model = small_model("l3ac-coarse")
    encoder, decoder = export_encoder(model), export_decoder(model)
    assert not any("decoder" in key for key in encoder.state_dict)
    assert not any("encoder" in key for key in decoder.state_dict)
    hop_length = model.config.hop_length
    for num_frames in lengths_in_frames(model)[2:]:
        for batch_size in (1, 3):
            clips = batch_of_clips(num_frames * hop_length - 1, batch_size)
            codes = model.encode(*clips).audio_codes
            assert num_wrong_tokens(model, encoder.module()(*clips), *clips) == 0
            torch.testing.assert_close(decoder.module()(codes), model.decode(codes).audio_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 9, 10, 11, 20, 47])
@torch.no_grad()
def test_attention_of_graphs_is_that_of_the_loop(num_steps, monkeypatch):
    torch.manual_seed(0)
    for window_size in (10, 150):  # of one tile, of two
        transformer = LocalTransformer(12, num_layers=2, num_heads=6, head_dim=3, window_size=window_size).double()
        x = torch.randn(2, num_steps * window_size // 10, 12, dtype=torch.float64)
        loop = transformer(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            torch.testing.assert_close(transformer(x), loop, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["frames-plain", "l3ac-coarse"])
@torch.no_grad()
def test_compiled_methods_are_one_graph_for_all_lengths(name):
    torch.compiler.reset()
    model, graphs = small_model(name), []

    def count(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    encode = torch.compile(model.encode, fullgraph=True, dynamic=True, backend=count)
    decode = torch.compile(model.decode, fullgraph=True, dynamic=True, backend=count)
    for num_frames in (37, *lengths_in_frames(model)[1:]):
        clips = batch_of_clips(num_frames * model.config.hop_length - 1, batch_size=2)
        codes = model.encode(*clips).audio_codes
        assert torch.equal(encode(*clips).audio_codes, codes)
        torch.testing.assert_close(decode(codes).audio_values, model.decode(codes).audio_values, rtol=0, atol=1e-5)
    assert len(graphs) == 2


@pytest.mark.slow
@torch.no_grad()
def test_compiled_code_equals_the_model():
    torch.compiler.reset()
    model = small_model("frames-attention")
    encode = torch.compile(model.encode, fullgraph=True, dynamic=True)
    decode = torch.compile(model.decode, fullgraph=True, dynamic=True)
    for num_frames in (37, 100):
        clips = batch_of_clips(num_frames * model.config.hop_length - 1, batch_size=2)
        codes = model.encode(*clips).audio_codes
        assert num_wrong_tokens(model, encode(*clips).audio_codes, *clips) == 0
        torch.testing.assert_close(decode(codes).audio_values, model.decode(codes).audio_values, rtol=0, atol=1e-4)


def test_example_runs_without_torch(exported, tmp_path):
    model, folder = exported
    target = tmp_path / "out.wav"
    code = (
        "import runpy, sys; sys.modules.update(torch=None, transformers=None, fsqcodec=None); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0])"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE), str(folder), str(ENGLISH), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    clip = torch.from_numpy(read_audio(ENGLISH, 16000))
    with torch.no_grad():
        audio = model(clip[None, None]).audio_values[0, 0].numpy()
    assert np.abs(read_audio(target, 16000) - audio).max() < 1e-4  # 16 bits


@pytest.fixture(scope="module", params=PRESETS)
def exported_preset(request, tmp_path_factory):
    torch.manual_seed(0)
    model = CodecModel(CodecConfig.from_preset(request.param)).eval()
    randomize(model, seed=0)
    return model, export_onnx(model, tmp_path_factory.mktemp(request.param) / "onnx")


@pytest.mark.slow
@pytest.mark.skipif(not SPEECH_DIR.is_dir(), reason="needs the recordings of ../shared/audio/speech_eval")
def test_tokens_of_every_clip_of_speech_equal_torch(exported_preset):
    model, folder = exported_preset
    codec, clips = OnnxCodec(folder), sorted(SPEECH_DIR.glob("*.flac"))
    assert len(clips) > 30
    for path in clips:
        clip = torch.from_numpy(read_audio(path, model.config.sampling_rate))[None, None]
        mask = torch.ones(1, clip.shape[-1], dtype=torch.long)
        assert num_wrong_tokens(model, codec.encode(clip, mask), clip, mask) == 0, path.name


@pytest.mark.slow
@torch.no_grad()
def test_presets_run_from_one_frame_to_a_minute(exported_preset):
    model, folder = exported_preset
    codec = OnnxCodec(folder)
    for num_samples, batch_size in ((model.config.hop_length, 4), (5000, 3), (60 * model.config.sampling_rate, 1)):
        clips = batch_of_clips(num_samples, batch_size)
        codes = codec.encode(*clips)
        assert num_wrong_tokens(model, codes, *clips) == 0
        error = (codec.decode(codes) - model.decode(codes).audio_values).abs().max()
        assert error < AUDIO_TOLERANCE


def test_wrong_models_and_folders_are_refused(tmp_path):
    model = small_model("frames-plain")
    with pytest.raises(ValueError, match="training mode"):
        export_onnx(model.train(), tmp_path / "onnx")
    with pytest.raises(ValueError, match="bfloat16: load it with dtype=torch.float32"):
        export_onnx(model.eval().to(torch.bfloat16), tmp_path / "onnx")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        export_onnx(small_model("frames-plain"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
