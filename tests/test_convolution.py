"""What runs in tiles, or in place, where no gradient is needed is what runs whole where one is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsqcodec.models import convolution
from fsqcodec.models.convolution import in_tiles
from small_configs import SMALL_CONFIGS, small_model, speech_like_clip


@pytest.fixture
def short_tiles(monkeypatch):
    """A few steps each: small models then work in many of them."""
    monkeypatch.setattr(convolution, "TILE_BYTES", 400)
    monkeypatch.setattr(convolution, "SHORTEST_TILE", 3)


def smooth_and_repeat(x, mask, inside, ratio=2):
    """Looks at one step on each side, and makes two steps of each."""
    x = x if mask is None else x.masked_fill(~mask, 0)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth[:, inside].repeat_interleave(ratio, dim=1)


@settings(max_examples=50, deadline=None)
@given(
    batch_size=st.integers(1, 5),
    num_steps=st.integers(3, 40),
    context=st.integers(1, 4),
    margin=st.integers(0, 1),
    inner_size=st.sampled_from([1, 10, 30, 200]),
    masked=st.booleans(),
)
def test_tiles_give_what_the_whole_gives(batch_size, num_steps, context, margin, inner_size, masked):
    x = torch.randn(batch_size, num_steps, 3)
    mask = torch.rand(batch_size, num_steps, 1) > 0.3 if masked else None
    sizes = []

    def recorded(x, mask, inside):
        sizes.append(x.shape[0] * (inside.stop - inside.start))
        return smooth_and_repeat(x, mask, inside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "TILE_BYTES", 400)
        patch.setattr(convolution, "SHORTEST_TILE", 2)
        with torch.no_grad():
            tiled = in_tiles(recorded, (x, mask), inner_size, context, margin)
    assert torch.equal(tiled, smooth_and_repeat(x, mask, slice(margin, num_steps - margin)))
    assert max(sizes) <= max(2, 100 // inner_size)


def test_tiles_may_be_written_over_an_input(short_tiles):
    x, y = torch.randn(2, 2, 50, 3).unbind()
    expected = x[:, 2:-2] + 2 * y[:, 2:-2]
    with torch.no_grad():
        result = in_tiles(lambda x, y, inside: x[:, inside] + 2 * y[:, inside], (x, y), 10, 0, 2, output=y[:, 2:-2])
    assert torch.equal(result, expected)
    assert torch.equal(y[:, 2:-2], expected)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_without_gradients_models_compute_what_they_compute_with_them(name, short_tiles):
    model = small_model(name)
    hop_length = model.config.hop_length
    lengths = torch.tensor([31 * hop_length, 12 * hop_length - 5])
    clips = torch.stack([speech_like_clip(31 * hop_length, seed) for seed in (0, 1)]).unsqueeze(1)
    padding_mask = torch.arange(31 * hop_length) < lengths[:, None]
    for arguments in ({"input_values": clips}, {"input_values": clips, "padding_mask": padding_mask}):
        reference = model.encode(**arguments, output_latents=True)
        assert reference.latents.requires_grad
        decoded = model.decode(reference.audio_codes, audio_codes_mask=reference.audio_codes_mask).audio_values
        with torch.no_grad():
            encoded = model.encode(**arguments, output_latents=True)
            audio_values = model.decode(reference.audio_codes, audio_codes_mask=reference.audio_codes_mask).audio_values
        assert torch.allclose(encoded.latents, reference.latents, atol=1e-4)
        assert torch.allclose(audio_values, decoded, atol=1e-5)
