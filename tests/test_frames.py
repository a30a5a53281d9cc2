"""Codecs on frames, and the running statistics of decoders that are not."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from clips import speech
from fsqcodec import CodecConfig, CodecModel, convert_checkpoint
from fsqcodec.models.convolution import RunningNorm
from fsqcodec.models.frames import FrameHead, FrameStem
from small_configs import SMALL_CONFIGS, small_config, small_model

assert_close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_stem_is_a_strided_convolution_over_three_hops():
    stem = FrameStem(channels=5, hop=6).double()
    signal = torch.randn(2, 48, 1, dtype=torch.float64)
    mask = torch.arange(48)[None, :, None] < torch.tensor([30, 48])[:, None, None]
    steps, step_mask = stem(signal, mask)
    convolution = nn.functional.conv1d(
        signal.transpose(1, 2), stem.project.weight.unsqueeze(1), stem.project.bias, stride=6, padding=6
    )
    assert_close(steps, convolution.transpose(1, 2))
    assert step_mask.sum(dim=1).flatten().tolist() == [5, 8]


@torch.no_grad()
def test_head_is_a_transposed_convolution_with_windowed_kernels():
    head = FrameHead(channels=5, hop=6).double()
    x = torch.randn(2, 8, 5, dtype=torch.float64)
    kernels = (head.project.weight * torch.hann_window(12)[:, None].double()).T.unsqueeze(1)
    convolution = nn.functional.conv_transpose1d(x.transpose(1, 2), kernels, stride=6, padding=3)
    assert_close(head(x, None)[0], convolution.transpose(1, 2))


@pytest.mark.parametrize("hop", [4, 96])
@torch.no_grad()
def test_windows_of_the_head_add_up_to_one(hop):
    head = FrameHead(channels=1, hop=hop)
    head.project.weight.fill_(1.0)
    signal, _ = head(torch.ones(1, 9, 1), None)
    assert signal.shape == (1, 9 * hop, 1)
    torch.testing.assert_close(signal[:, hop // 2 : -(hop // 2)], torch.ones(1, 8 * hop, 1))


def decoded_in_pieces(model: CodecModel, codes: torch.Tensor, piece_frames: int) -> torch.Tensor:
    """Audio of pieces, each decoded with the frames before and after it that the configuration says it depends on."""
    config, pieces = model.config, []
    for start in range(0, codes.shape[-1], piece_frames):
        first = max(0, start - config.decoder_context_samples // config.hop_length)
        first -= first % config.attention_window_size  # attention has its blocks where the whole clip has them
        stop = start + piece_frames + config.decoder_lookahead_samples // config.hop_length
        audio = model.decode(codes[..., first:stop]).audio_values
        pieces.append(audio[..., (start - first) * config.hop_length :][..., : piece_frames * config.hop_length])
    return torch.cat(pieces, dim=-1)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.no_grad()
def test_pieces_decode_to_the_whole_unless_the_decoder_normalises_over_the_clip(name):
    model = small_model(name).double()
    codes = torch.randint(model.config.codebook_size, (1, 1, 331), generator=torch.Generator().manual_seed(0))
    whole = model.decode(codes).audio_values
    error = (decoded_in_pieces(model, codes, piece_frames=7) - whole).abs().max()
    if model.config.decoder_head == "upsampling" and model.config.enhance_normalization == "clip":
        assert error > 1e-4
    else:
        assert error < 1e-12


@torch.no_grad()
def test_stem_and_head_need_not_come_together():
    clip = torch.from_numpy(speech()[:3001])[None, None]
    fields = {**SMALL_CONFIGS["l3ac-coarse"], "quantization_levels": (7, 7, 5)}
    stem = {"encoder_stem": "frames", "downsampling_ratios": (6,), "encoder_hidden_sizes": (8,), "encoder_depths": (1,)}
    head = {"decoder_head": "frames", "upsampling_ratios": (6,), "decoder_hidden_sizes": (8,), "decoder_depths": (1,)}
    for part in (stem, head):
        output = CodecModel(CodecConfig(**{**fields, **part})).eval()(clip)
        assert output.audio_values.shape == clip.shape
        assert output.audio_codes.shape == (1, 1, -(-3001 // 18))


def test_speech_preset_has_the_published_size_and_no_state_beside_its_weights():
    model = CodecModel(CodecConfig.from_preset("speech-3kbps"))
    assert 4e6 < sum(parameter.numel() for parameter in model.parameters()) < 5e6  # 20 MB in float32
    assert not list(model.buffers())
    assert model.config.encoder_lookahead_samples == 96 * (1 + 4 * 3 + 1)
    assert model.config.decoder_lookahead_samples == 96 * (1 + 5 * 3 + 1)


@torch.no_grad()
def test_new_models_on_frames_start_quiet_with_units_near_the_identity():
    torch.manual_seed(0)
    model = CodecModel(CodecConfig.from_preset("speech-3kbps")).eval()
    assert 0 < model.decode(torch.arange(0, 250000, 500)[None, None]).audio_values.abs().max() < 0.1
    x = torch.randn(1, 50, 256)
    for unit in (*model.encoder.units, *model.decoder.units):
        assert 0 < (unit(x, None) - x).std() < 0.1


@pytest.mark.parametrize("preset", ["l3ac-1kbps", "sqcodec-3kbps"])
def test_layers_of_the_originals_start_as_torch_starts_them(preset):
    torch.manual_seed(0)
    units = CodecModel(CodecConfig.from_preset(preset)).encoder.units
    for layer in (units[0].expand, units[0].contract):
        assert layer.weight.std().item() == pytest.approx((3 * layer.in_features) ** -0.5, rel=0.02)
        assert layer.bias.std().item() == pytest.approx((3 * layer.in_features) ** -0.5, rel=0.15)


def test_no_original_has_frames_or_running_statistics(tmp_path):
    with pytest.raises(ValueError, match="no origin 'speech'; the origins are: l3ac, sqcodec"):
        convert_checkpoint("speech", tmp_path, tmp_path / "out", preset="speech-3kbps")
    with pytest.raises(ValueError, match="preset 'speech-3kbps' is not of the family 'l3ac'"):
        convert_checkpoint("l3ac", tmp_path, tmp_path / "out", preset="speech-3kbps")
    for name, message in (
        ("frames-plain", "encoder_stem is 'frames': checkpoints of 'l3ac' have 'trend'"),
        ("running", "enhance_normalization is 'running': checkpoints of 'l3ac' have 'clip'"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint("l3ac", tmp_path, tmp_path / "out", config=small_config(name))


def steps_of_clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Four clips `(4, 3, 50)` far from zero, and the mask of their 50, 20, 31 and 1 steps; padding is huge."""
    x = 5 + torch.randn(4, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(50)[None, None] < torch.tensor([50, 20, 31, 1])[:, None, None]
    return torch.where(mask, x, 1e6), mask


def steps_of(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The steps that belong to clips, one after the other: `(num_steps, channels)`."""
    return x.transpose(1, 2)[mask[:, 0]]


def test_running_norm_in_training_is_batch_norm_over_the_steps_of_clips():
    x, mask = steps_of_clips()
    norm, batch_norm = RunningNorm(3).double(), nn.BatchNorm1d(3).double()
    x.requires_grad_()
    output, expected = steps_of(norm(x, mask), mask), batch_norm(steps_of(x, mask))
    assert_close(output, expected)
    weight = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((output * weight).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    assert expected_gradient.abs().max() > 0.1
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-10)
    assert_close(norm.running_mean[:, 0], batch_norm.running_mean)
    torch.testing.assert_close(norm.running_variance[:, 0], batch_norm.running_var, rtol=2e-3, atol=0)  # n, n - 1


def test_running_norm_is_constant_in_evaluation_mode():
    x, mask = steps_of_clips()
    norm = RunningNorm(3).double()
    norm.momentum = 1.0
    in_training = norm(x, mask)
    norm.eval()
    assert_close(norm(x, mask)[:, :, 0], in_training[:, :, 0])
    assert_close(norm(x[1:2, :, 3:7], None), in_training[1:2, :, 3:7])
    before = norm.running_mean.clone()
    norm(2 * x, mask)
    assert torch.equal(norm.running_mean, before)


def test_a_model_moves_from_clip_to_running_statistics_with_its_weights():
    model = small_model("l3ac-coarse")
    moved = CodecModel(small_config("running"))
    missing, unexpected = moved.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} == {"running_mean", "running_variance"}
    for module in moved.modules():
        if isinstance(module, RunningNorm):
            module.momentum = 1.0
    codes = torch.randint(245, (1, 1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved.train().decode(codes)
        torch.testing.assert_close(moved.eval().decode(codes).audio_values, model.decode(codes).audio_values)


@pytest.mark.parametrize("normalization, num_buffers", [("clip", 0), ("running", 2 * 2)])
def test_folders_hold_running_statistics_only_where_they_are_used(tmp_path, normalization, num_buffers):
    model = small_model("l3ac-coarse", enhance_normalization=normalization)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights) - len(list(model.parameters())) == num_buffers
    loaded = CodecModel.from_pretrained(tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


PROCESS_SCRIPT = """
import sys
import torch
import torch.distributed as dist
from fsqcodec.models.convolution import RunningNorm

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
x, mask, weight = (part[2 * rank : 2 * rank + 2] for part in torch.load(f"{folder}/batch.pt"))
x.requires_grad_()
norm = RunningNorm(3).double()
(norm(x, mask) * weight * mask).sum().backward()
torch.save({"gradient": x.grad, "weight": norm.weight.grad, "mean": norm.running_mean}, f"{folder}/{rank}.pt")
"""


def test_two_processes_normalise_like_one_with_the_batch_of_both(tmp_path):
    x, mask = steps_of_clips()
    weight = torch.randn(x.shape, dtype=torch.float64)
    torch.save((x, mask, weight), tmp_path / "batch.pt")
    commands = [[sys.executable, "-c", PROCESS_SCRIPT, str(tmp_path), str(rank)] for rank in range(2)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    norm = RunningNorm(3).double()
    (norm(x.requires_grad_(), mask) * weight * mask).sum().backward()
    torch.testing.assert_close(torch.cat([rank["gradient"] for rank in ranks]), x.grad, rtol=1e-8, atol=1e-10)
    assert_close(sum(rank["weight"] for rank in ranks), norm.weight.grad)
    for rank in ranks:
        assert_close(rank["mean"], norm.running_mean)
