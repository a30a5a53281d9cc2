"""Compiled residual units: the same values and gradients, in float32 and near them in bfloat16, or a warning."""

import pytest
import torch

from fsqcodec.models.convolution import ConvUnit
from fsqcodec.training import compilation
from fsqcodec.training.compilation import compile_units, unit_function
from small_configs import small_model, speech_like_clip


def output_and_gradients(model) -> tuple[torch.Tensor, torch.Tensor]:
    clips = torch.stack([speech_like_clip(480, seed) for seed in range(2)]).unsqueeze(1)
    mask = torch.ones(2, 480, dtype=torch.long)
    mask[1, 200:] = 0
    audio = model(clips, padding_mask=mask).audio_values
    model.zero_grad()
    (audio * torch.linspace(0, 1, 480)).sum().backward()
    return audio.detach(), torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_the_function_is_the_unit():
    """Without a compiler: with and without a mask, and with a mask of nothing but audio."""
    torch.manual_seed(0)
    unit = ConvUnit(12, 1e-5).train()
    x = torch.randn(2, 30, 12)
    mask = torch.arange(30)[None, :, None] < torch.tensor([30, 11])[:, None, None]
    for given in (None, mask, torch.ones_like(mask)):
        expected = unit(x, given)
        torch.testing.assert_close(unit_function(x, given, *compilation._parameters(unit), torch.float32), expected)


@pytest.mark.slow
def test_a_compiled_model_trains_as_it_did():
    model = small_model("frames-plain").train()
    expected, expected_gradients = output_and_gradients(model)
    assert compile_units(model, in_bf16=False)
    output, gradients = output_and_gradients(model)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    assert (gradients - expected_gradients).norm() < 1e-5 * expected_gradients.norm()


@pytest.mark.slow
def test_bfloat16_is_near():
    """Of a wide unit; a narrow one stays in float32."""
    torch.manual_seed(0)
    for channels, tolerance in ((64, 0.01), (32, 1e-5)):
        unit, x = ConvUnit(channels, 1e-5).train(), torch.randn(2, 30, channels)
        expected = unit(x, None) - x
        assert compile_units(unit, in_bf16=True)
        difference = (unit(x, None) - x - expected).norm() / expected.norm()
        assert difference < tolerance and (difference > 1e-4) == (channels == 64)


def test_without_a_compiler_it_says_so_in_a_line_and_leaves_the_model_alone(monkeypatch):
    def broken(*args, **kwargs):
        def run(*args):
            raise RuntimeError("no C++ compiler\nand more lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model = small_model("frames-plain").train()
    expected, _ = output_and_gradients(model)
    with pytest.warns(UserWarning, match="torch.compile failed here: no C.. compiler$"):
        assert not compile_units(model, in_bf16=False)
    assert torch.equal(output_and_gradients(model)[0], expected)
