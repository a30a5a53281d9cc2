import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fsqcodec import CodecConfig, CodecModel
from fsqcodec.models.quantization import FiniteScalarQuantizer, digits_to_indices, indices_to_digits
from small_configs import SMALL_CONFIGS, small_config, small_model, speech_like_clip

BOUNDS = ["tanh", "fsq"]
# 11 ** 17 is about 2 ** 59; the others lie just below 2 ** 63, which is what int64 holds.
HUGE_CODEBOOKS = {
    "11-to-the-17": (11,) * 17,
    "11-to-the-18": (11,) * 18,
    "powers-of-two": (2,) * 62,
    "mixed": (7, 3037000499, 4, 108460000),
    "one-dimension": (2**63 - 1,),
}


def bare_quantizer(quantization_levels, bound) -> FiniteScalarQuantizer:
    """A quantizer whose latents are its pre-activations."""
    quantizer = FiniteScalarQuantizer(len(quantization_levels), quantization_levels, bound)
    with torch.no_grad():
        quantizer.project_in.weight.copy_(torch.eye(len(quantization_levels)))
        quantizer.project_in.bias.zero_()
    return quantizer


def random_quantizer(name: str) -> FiniteScalarQuantizer:
    """A quantizer of a small model's sizes that maps normally distributed latents to all of its digits."""
    config = small_config(name)
    quantizer = FiniteScalarQuantizer(config.latent_dim, config.quantization_levels, config.quantizer_bound)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * config.latent_dim**-0.5)
    return quantizer


def reference_positions(z: torch.Tensor, quantization_levels, bound: str) -> torch.Tensor:
    """Digits before rounding in float64, from the formulas of L3AC and of the FSQ paper."""
    positions = []
    for i, num_levels in enumerate(quantization_levels):
        z_i = z[..., i].double()
        if bound == "tanh":
            positions.append((torch.tanh(z_i) + 1) / 2 * (num_levels - 1))
        else:
            half = (num_levels - 1) * (1 + 1e-3) / 2
            offset = 0.5 if num_levels % 2 == 0 else 0.0
            bounded = torch.tanh(z_i + math.atanh(offset / half)) * half - offset  # in the paper, around 0
            positions.append(bounded + num_levels // 2)
    return torch.stack(positions, dim=-1)


def reference_indices(digits: list[int], quantization_levels) -> int:
    """In Python's integers, which have no largest."""
    return sum(digit * math.prod(quantization_levels[:i]) for i, digit in enumerate(digits))


some_levels = st.lists(st.integers(2, 40), min_size=1, max_size=6).map(tuple)


@st.composite
def levels_and_digits(draw, levels=some_levels):
    quantization_levels = draw(levels)
    rows = st.tuples(*(st.integers(0, num_levels - 1) for num_levels in quantization_levels))
    return quantization_levels, draw(st.lists(rows, min_size=1, max_size=20))


@given(levels_and_digits())
def test_digits_survive_their_index(case):
    quantization_levels, rows = case
    digits = torch.tensor(rows)
    indices = digits_to_indices(digits, quantization_levels)
    assert indices.dtype == torch.int64 and indices.shape == (len(rows),)
    assert indices.tolist() == [reference_indices(row, quantization_levels) for row in rows]
    assert indices.max() < math.prod(quantization_levels)
    assert torch.equal(indices_to_digits(indices, quantization_levels), digits)


@given(some_levels, st.data())
def test_indices_survive_their_digits(quantization_levels, data):
    codebook_size = math.prod(quantization_levels)
    indices = torch.tensor(data.draw(st.lists(st.integers(0, codebook_size - 1), min_size=1, max_size=20)))
    digits = indices_to_digits(indices, quantization_levels)
    assert (digits >= 0).all() and (digits < torch.tensor(quantization_levels)).all()
    assert torch.equal(digits_to_indices(digits, quantization_levels), indices)


def test_every_index_of_a_small_codebook_has_digits_of_its_own():
    digits = indices_to_digits(torch.arange(4 * 3 * 5), (4, 3, 5))
    assert len(digits.unique(dim=0)) == 60
    assert digits[:6].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [0, 1, 0], [1, 1, 0]]


@given(levels_and_digits(st.sampled_from(list(HUGE_CODEBOOKS.values()))))
def test_huge_codebooks_are_indexed_exactly(case):
    quantization_levels, rows = case
    rows = [*rows, tuple(num_levels - 1 for num_levels in quantization_levels)]
    indices = digits_to_indices(torch.tensor(rows), quantization_levels)
    assert indices.tolist() == [reference_indices(row, quantization_levels) for row in rows]
    assert indices[-1] == math.prod(quantization_levels) - 1
    assert indices_to_digits(indices, quantization_levels).tolist() == [list(row) for row in rows]


def test_indices_may_have_any_shape_and_digits_any_integer_type():
    indices = torch.randint(0, 7 * 5 * 3, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    digits = indices_to_digits(indices, (7, 5, 3))
    assert digits.shape == (2, 4, 6, 3)
    assert torch.equal(digits_to_indices(digits.to(torch.int8), (7, 5, 3)), indices)
    assert torch.equal(indices_to_digits(indices.to(torch.int32), (7, 5, 3)).long(), digits)


@pytest.mark.parametrize("bound", BOUNDS)
@given(case=levels_and_digits())
def test_digits_survive_their_values_which_lie_within_one(bound, case):
    quantization_levels, rows = case
    quantizer = FiniteScalarQuantizer(4, quantization_levels, bound)
    digits = torch.tensor(rows)
    values = quantizer.digits_to_values(digits)
    assert values.dtype == torch.float32
    assert values.abs().max() <= 1
    assert torch.equal(quantizer.values_to_digits(values), digits)
    for i, num_levels in enumerate(quantization_levels):
        origin = (num_levels - 1) / 2 if bound == "tanh" else num_levels // 2
        expected = (digits[:, i].double() - origin) / origin
        torch.testing.assert_close(values[:, i].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bound", BOUNDS)
def test_values_near_a_level_become_its_digit_and_values_out_of_range_the_last_one(bound):
    quantizer = FiniteScalarQuantizer(4, (7, 8), bound)
    digits = torch.tensor([[3, 4], [0, 0], [6, 7]])
    noisy = quantizer.digits_to_values(digits) + torch.tensor([[0.1, -0.1], [-0.9, -0.9], [0.9, 0.9]])
    assert torch.equal(quantizer.values_to_digits(noisy), digits)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    "quantization_levels", [(7, 7, 5), (9, 9, 9, 7, 7, 7), (2, 3, 4, 5), (8, 6, 16, 2), (255, 256)], ids=str
)
def test_positions_follow_the_published_formula(bound, quantization_levels):
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(5, 400, len(quantization_levels), generator=generator)
    quantizer = bare_quantizer(quantization_levels, bound)
    positions = quantizer.positions(z)
    expected = reference_positions(z, quantization_levels, bound)
    tolerance = 1e-6 * max(quantization_levels)
    torch.testing.assert_close(positions.double(), expected, rtol=0, atol=tolerance)
    is_clear = (expected - expected.floor() - 0.5).abs() > tolerance
    top = torch.tensor(quantization_levels) - 1
    expected_digits = expected.round().long().clamp(torch.zeros_like(top), top)
    assert torch.equal(quantizer.round(positions)[is_clear], expected_digits[is_clear])
    assert is_clear.float().mean() > 0.99
    for i, num_levels in enumerate(quantization_levels[:4]):
        assert len(expected_digits[..., i].unique()) == num_levels or num_levels > 16


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("num_levels", [2, 3, 7, 8, 1001, 5000])
def test_extreme_latents_become_the_outermost_digits(bound, num_levels):
    quantizer = bare_quantizer((num_levels,), bound)
    latents = torch.tensor([[-math.inf], [-1e6], [-30.0], [30.0], [1e6], [math.inf]])
    digits = quantizer.round(quantizer.positions(latents))[:, 0]
    assert digits.tolist() == [0] * 3 + [num_levels - 1] * 3


@pytest.mark.parametrize("num_levels", [2, 3, 4, 7, 8])
def test_the_fsq_bound_puts_zero_on_the_level_of_value_zero(num_levels):
    quantizer = bare_quantizer((num_levels,), "fsq")
    position = quantizer.positions(torch.zeros(1, 1))
    torch.testing.assert_close(position, torch.full((1, 1), float(num_levels // 2)))
    assert quantizer.digits_to_values(quantizer.round(position)).item() == 0


@pytest.mark.parametrize("quantization_levels", [(7, 7, 5), (3, 4, 5, 6), (8, 5, 5, 5), (2, 9)], ids=str)
def test_the_fsq_bound_gives_the_codes_of_vector_quantize_pytorch(quantization_levels):
    peer = pytest.importorskip("vector_quantize_pytorch").FSQ(list(quantization_levels))
    z = 1.5 * torch.randn(4, 500, len(quantization_levels), generator=torch.Generator().manual_seed(1))
    expected_values, expected_indices = peer(z)
    quantizer = bare_quantizer(quantization_levels, "fsq")
    with torch.no_grad():
        _, indices = quantizer(z)
    positions = reference_positions(z, quantization_levels, "fsq")
    is_clear = ((positions - positions.floor() - 0.5).abs() > 1e-4).all(dim=-1)
    assert is_clear.float().mean() > 0.99
    assert torch.equal(indices[is_clear], expected_indices[is_clear].long())
    values = quantizer.digits_to_values(quantizer.indices_to_digits(indices))
    torch.testing.assert_close(values[is_clear], expected_values[is_clear])
    torch.testing.assert_close(
        quantizer.digits_to_values(quantizer.indices_to_digits(expected_indices.long())),
        peer.indices_to_codes(expected_indices),
    )


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_forward_is_project_in_bound_round_and_project_out(name):
    quantizer = random_quantizer(name)
    levels = quantizer.quantization_levels
    latents = torch.randn(2, 500, quantizer.project_in.in_features, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features, indices = quantizer(latents)
    z = latents.double() @ quantizer.project_in.weight.double().T + quantizer.project_in.bias.double()
    positions = reference_positions(z, levels, quantizer.bound)
    is_clear = ((positions - positions.floor() - 0.5).abs() > 1e-4).all(dim=-1)
    assert is_clear.float().mean() > 0.95
    assert torch.equal(indices[is_clear], digits_to_indices(positions.round().long(), levels)[is_clear])
    assert all(len(digits.unique()) == n for digits, n in zip(positions.round().flatten(0, 1).T, levels, strict=True))
    values = quantizer.digits_to_values(quantizer.indices_to_digits(indices))
    torch.testing.assert_close(features, values @ quantizer.project_out.weight.T + quantizer.project_out.bias)
    assert torch.equal(quantizer.indices_to_features(indices), features)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("quantization_levels", [(7, 7, 5), (8, 4, 6)], ids=str)
def test_gradient_passes_the_rounding_unchanged(bound, quantization_levels):
    generator = torch.Generator().manual_seed(3)
    quantizer = FiniteScalarQuantizer(10, quantization_levels, bound)
    latents = torch.randn(2, 30, 10, generator=generator, requires_grad=True)
    weight = torch.randn(2, 30, 10, generator=generator)
    sources = [latents, quantizer.project_in.weight, quantizer.project_in.bias]
    hard, indices = quantizer(latents)
    soft = quantizer.latents_to_features(latents)
    assert (hard - soft).abs().max() > 0.01  # it does round
    torch.testing.assert_close(hard, quantizer.indices_to_features(indices))
    gradients = torch.autograd.grad((hard * weight).sum(), sources)
    expected = torch.autograd.grad((soft * weight).sum(), sources)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(gradient, wanted)


def test_features_are_the_same_with_and_without_gradients():
    quantizer = FiniteScalarQuantizer(10, (7, 8, 5), "fsq")
    latents = torch.randn(2, 30, 10, generator=torch.Generator().manual_seed(4))
    features, indices = quantizer(latents)
    with torch.no_grad():
        plain_features, plain_indices = quantizer(latents)
    assert features.requires_grad and not plain_features.requires_grad
    assert torch.equal(indices, plain_indices)
    torch.testing.assert_close(features, plain_features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.no_grad()
def test_half_precision_models_quantize_in_float32(name, dtype):
    quantizer = random_quantizer(name).to(dtype)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(4, 2000, quantizer.project_in.in_features, generator=generator).to(dtype)
    positions = quantizer.positions(latents)
    features, indices = quantizer(latents)
    assert positions.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert features.dtype == dtype

    in_float32 = FiniteScalarQuantizer(latents.shape[-1], quantizer.quantization_levels, quantizer.bound)
    in_float32.load_state_dict(quantizer.state_dict())
    assert in_float32.project_in.weight.dtype == torch.float32
    assert torch.equal(positions, in_float32.positions(latents.float()))
    assert torch.equal(indices, in_float32(latents.float())[1])

    in_half = F.linear(latents, quantizer.project_in.weight, quantizer.project_in.bias)
    digits_from_half = reference_positions(in_half, quantizer.quantization_levels, quantizer.bound).round().long()
    assert not torch.equal(quantizer.indices_to_digits(indices), digits_from_half)  # so the comparison above can fail


@torch.no_grad()
def test_model_in_bfloat16_quantizes_its_latents_in_float32():
    model = small_model("sqcodec-coarse").bfloat16()
    encoded = model.encode(speech_like_clip(3000)[None, None], output_latents=True)
    assert encoded.latents.dtype == torch.bfloat16
    latents = encoded.latents.transpose(1, 2).float()
    assert torch.equal(model.quantizer.float()(latents)[1], encoded.audio_codes[:, 0])


@torch.no_grad()
def test_model_with_a_huge_codebook_decodes_its_last_token():
    fields = {**SMALL_CONFIGS["l3ac-fine"], "quantization_levels": (11,) * 18, "latent_dim": 24, "head_dim": 6}
    model = CodecModel(CodecConfig(**fields)).eval()
    last = 11**18 - 1
    values = model.quantizer.digits_to_values(model.quantizer.indices_to_digits(torch.tensor([last])))
    assert torch.equal(values, torch.ones(1, 18))
    assert model.decode(audio_codes=torch.tensor([[[last, 0, last]]])).audio_values.isfinite().all()
    with pytest.raises(ValueError, match=f"0 to {last}$"):
        model.decode(audio_codes=torch.tensor([[[last + 1]]]))
