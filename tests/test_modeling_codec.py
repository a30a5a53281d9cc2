"""CodecModel's own methods: what they refuse, and latents."""

import logging

import numpy as np
import pytest
import torch

from small_configs import small_model, speech_like_clip

WRONG_INPUT = {
    "numpy": (lambda model: model.encode(np.zeros((1, 1, 99), dtype=np.float32)), "input_values is a ndarray"),
    "list": (lambda model: model.decode([[[1, 2]]]), "audio_codes is a list: a tensor"),
    "int16": (lambda model: model.encode(torch.zeros(1, 1, 99, dtype=torch.int16)), "holds torch.int16: floats"),
    "stereo": (lambda model: model.encode(torch.zeros(1, 2, 99)), r"shape \(1, 2, 99\): it must be \(batch, 1"),
    "no-batch": (lambda model: model.encode(torch.zeros(1, 99)), r"shape \(1, 99\)"),
    "empty": (lambda model: model.encode(torch.zeros(1, 1, 0)), r"shape \(1, 1, 0\)"),
    "mask-shape": (lambda model: model.encode(torch.zeros(1, 1, 99), torch.ones(1, 98)), r"must be a tensor \(1, 99\)"),
    "mask-list": (lambda model: model.encode(torch.zeros(1, 1, 9), [[1] * 9]), "padding_mask has type list"),
    "mask-left": (
        lambda model: model.encode(torch.zeros(1, 1, 4), torch.tensor([[0, 0, 1, 1]])),
        "ones followed by zeros",
    ),
    "nan": (lambda model: model.encode(torch.full((1, 1, 99), torch.nan)), "input_values hold NaN or infinity"),
    "infinite": (lambda model: model(torch.full((1, 1, 99), torch.inf)), "input_values hold NaN or infinity"),
    "mask-none": (lambda model: model.encode(torch.zeros(1, 1, 4), torch.zeros(1, 4)), "ones followed by zeros"),
    "codes-float": (lambda model: model.decode(torch.zeros(1, 1, 4)), "holds torch.float32: integers"),
    "codes-high": (lambda model: model.decode(torch.tensor([[[0, 245]]])), "range from 0 to 245: .* 0 to 244"),
    "codes-low": (lambda model: model.decode(torch.tensor([[[-1, 3]]])), "range from -1 to 3"),
    "codes-none": (lambda model: model.decode(), "either audio_codes or latents"),
    "too-long": (
        lambda model: model.decode(torch.tensor([[[1]]]), num_samples=19),
        "num_samples is 19: 1 frames hold .* 18",
    ),
    "half-sample": (lambda model: model.decode(torch.tensor([[[1]]]), num_samples=1.5), "num_samples is 1.5: .* whole"),
    "latents": (lambda model: model.decode(latents=torch.zeros(1, 3, 4)), r"must be \(batch, 16, num_frames\)"),
}


@pytest.mark.parametrize("call, message", WRONG_INPUT.values(), ids=WRONG_INPUT)
def test_wrong_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model("l3ac-coarse"))


@torch.no_grad()
def test_latents_decode_to_what_their_codes_decode_to_but_unrounded():
    model = small_model("l3ac-coarse")
    encoded = model.encode(speech_like_clip(40 * model.config.hop_length)[None, None], output_latents=True)
    from_codes = model.decode(encoded.audio_codes).audio_values
    from_latents = model.decode(latents=encoded.latents).audio_values
    assert from_latents.shape == from_codes.shape
    assert 0 < (from_latents - from_codes).square().mean() < from_codes.square().mean()
    model.quantizer.quantization_levels = (2**20,) * 3  # so fine that rounding changes nothing
    unrounded = model.quantizer(encoded.latents.transpose(1, 2))[0]
    assert torch.allclose(unrounded, model.quantizer.latents_to_features(encoded.latents.transpose(1, 2)), atol=1e-5)


@torch.no_grad()
def test_encoding_in_half_precision_says_once_that_tokens_change(caplog):
    logging.Logger.warning_once.cache_clear()  # of Transformers: others may have been told
    model = small_model("frames-plain")
    clip = speech_like_clip(40 * model.config.hop_length)[None, None]
    model.encode(clip)
    assert "other tokens" not in caplog.text
    model.bfloat16()
    for _ in range(2):
        model.encode(clip)
    assert caplog.text.count("other tokens than float32") == 1
