"""Saved folders carry the code that loads them where the package is not installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from fsqcodec import CodecFeatureExtractor, CodecModel
from small_configs import small_model, speech_like_clip
from small_neucodecs import CONFIGS as NEUCODECS
from small_neucodecs import FEATURE_EXTRACTORS, small_neucodec

REMOTE_SCRIPT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fsqcodec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
folder, resaved_folder, output_file = sys.argv[1:]

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
feature_extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
outputs = {"hop_length": config.hop_length, "sampling_rate": feature_extractor.sampling_rate}
clip = torch.load(f"{folder}/../clip.pt").numpy()
for auto_class in (AutoModel, AutoModelForAudioTokenization):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    features = feature_extractor(clip, sampling_rate=feature_extractor.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        codes = model.encode(**features).audio_codes
        outputs[auto_class.__name__] = {"codes": codes, "audio": model.decode(audio_codes=codes).audio_values}
model.save_pretrained(resaved_folder)
feature_extractor.save_pretrained(resaved_folder)
assert "fsqcodec" not in sys.modules
torch.save(outputs, output_file)
"""


def run_without_the_package(folder, resaved_folder, output_file, modules_cache) -> dict:
    environment = {**os.environ, "HF_MODULES_CACHE": str(modules_cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", REMOTE_SCRIPT, folder, resaved_folder, output_file]
    run = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return torch.load(output_file)


@pytest.mark.parametrize("name, num_generations", [("l3ac-coarse", 2), ("sqcodec-fine", 1), ("frames-plain", 1)])
@torch.no_grad()
def test_folder_works_where_the_package_is_not_installed_and_so_does_a_copy_made_there(tmp_path, name, num_generations):
    model = small_model(name)
    model.save_pretrained(tmp_path / "saved")
    CodecFeatureExtractor().save_pretrained(tmp_path / "saved")
    clip = speech_like_clip(700)
    torch.save(clip, tmp_path / "clip.pt")
    codes = model.encode(clip[None, None]).audio_codes
    audio = model.decode(codes).audio_values
    for i in range(num_generations):
        folder, copy = ("saved", "copy", "copy-of-the-copy")[i : i + 2]
        outputs = run_without_the_package(
            tmp_path / folder, tmp_path / copy, tmp_path / f"{i}.pt", tmp_path / f"modules-{i}"
        )
        assert outputs["hop_length"] == model.config.hop_length
        assert outputs["sampling_rate"] == 16000
        for auto_class in ("AutoModel", "AutoModelForAudioTokenization"):
            assert torch.equal(outputs[auto_class]["codes"], codes)
            assert torch.equal(outputs[auto_class]["audio"], audio)
    reloaded = CodecModel.from_pretrained(tmp_path / copy)
    assert torch.equal(reloaded(clip[None, None]).audio_values, model(clip[None, None]).audio_values)


@pytest.mark.parametrize("origin", NEUCODECS)
@torch.no_grad()
def test_a_neucodec_works_where_the_package_is_not_installed(tmp_path, origin):
    model, feature_extractor, clip = small_neucodec(origin), FEATURE_EXTRACTORS[origin], speech_like_clip(2000)
    model.save_pretrained(tmp_path / "saved")
    feature_extractor.save_pretrained(tmp_path / "saved")
    torch.save(clip, tmp_path / "clip.pt")
    codes = model.encode(**feature_extractor(clip, sampling_rate=16000, return_tensors="pt")).audio_codes
    outputs = run_without_the_package(
        tmp_path / "saved", tmp_path / "copy", tmp_path / "outputs.pt", tmp_path / "modules"
    )
    for auto_class in ("AutoModel", "AutoModelForAudioTokenization"):
        assert torch.equal(outputs[auto_class]["codes"], codes)
        torch.testing.assert_close(outputs[auto_class]["audio"], model.decode(codes).audio_values)


def test_folder_names_its_code_for_every_auto_class(tmp_path):
    small_model("l3ac-fine").save_pretrained(tmp_path)
    CodecFeatureExtractor().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_codec.CodecConfig",
        "AutoModel": "modeling_codec.CodecModel",
        "AutoModelForAudioTokenization": "modeling_codec.CodecModel",
    }
    files = {reference.split(".")[0] + ".py" for reference in auto_map.values()} | {"feature_extraction_codec.py"}
    assert files <= {path.name for path in tmp_path.iterdir()}


def test_the_packages_classes_are_used_where_it_is_imported(tmp_path):
    small_model("l3ac-fine").save_pretrained(tmp_path)
    CodecFeatureExtractor().save_pretrained(tmp_path)
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        assert type(auto_class.from_pretrained(tmp_path, trust_remote_code=True)) is CodecModel
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=True)) is CodecFeatureExtractor
