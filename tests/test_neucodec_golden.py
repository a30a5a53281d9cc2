"""Converted NeuCodecs do what the original package did with the same weights."""

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

import fsqcodec
from golden_neucodecs import GOLDEN_PARAMETERS, GoldenNeuCodec


@pytest.mark.parametrize("name", GOLDEN_PARAMETERS)
@torch.no_grad()
def test_golden_vectors_are_reproduced(name, tmp_path):
    golden = GoldenNeuCodec(name)
    folder = fsqcodec.convert_checkpoint(
        golden.origin, golden.save(tmp_path / "original"), tmp_path / "model", config=golden.config
    )
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    feature_extractor = AutoFeatureExtractor.from_pretrained(folder)
    seen = []
    model.quantizer.project_in.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    for clip in golden.clips:
        features = feature_extractor(clip["audio"][0, 0], sampling_rate=16000, return_tensors="pt")
        encoded = model.encode(**features)
        assert torch.equal(encoded.audio_codes, clip["codes"].long())
        assert encoded.audio_codes_mask.all()
        pre_quant, fsq_in = seen
        torch.testing.assert_close(pre_quant, clip["pre_quant"], rtol=0, atol=5e-5)
        torch.testing.assert_close(fsq_in, clip["fsq_in"], rtol=0, atol=5e-5)
        audio = model.decode(clip["codes"]).audio_values
        torch.testing.assert_close(audio, clip["recon"], rtol=0, atol=2e-6)
        seen.clear()
