"""What the models of all families have in common, and the README's first example with each of them."""

import inspect
import os
import re
from pathlib import Path

import pytest
import soundfile
import torch

from clips import ENGLISH
from fsqcodec import CodecFeatureExtractor, LycodecFeatureExtractor
from fsqcodec.models.outputs import CodecDecoderOutput, CodecEncoderOutput, CodecOutput
from lycodec_models import small_lycodec, stereo_clip
from small_configs import small_model, speech_like_clip
from small_neucodecs import FEATURE_EXTRACTORS, small_neucodec

ROOT = Path(__file__).parent.parent
FAMILIES = {  # model and feature extractor by model_type
    "codec": (lambda: small_model("l3ac-coarse"), CodecFeatureExtractor()),
    "lycodec": (small_lycodec, LycodecFeatureExtractor()),
    "fsq_neucodec": (lambda: small_neucodec("neucodec"), FEATURE_EXTRACTORS["neucodec"]),
    "distill_neucodec": (lambda: small_neucodec("distill-neucodec"), FEATURE_EXTRACTORS["distill-neucodec"]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    make_model, extractor = FAMILIES[request.param]
    return make_model(), extractor


def test_decode_takes_codes_and_all_else_by_keyword_in_one_order(family):
    decode = type(family[0]).decode
    _, codes, *others = inspect.signature(decode).parameters.values()
    assert (codes.name, codes.kind) == ("audio_codes", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}
    names = [parameter.name for parameter in others]
    assert names[:3] == ["audio_codes_mask", "latents", "num_samples"]
    assert names[-1] == "return_dict"
    described = re.findall(r"^ {12}(\w+) \(`", decode.__doc__, flags=re.MULTILINE)
    assert described == ["audio_codes", *names[:-1]]


@torch.no_grad()
def test_outputs_are_of_one_kind_and_latents_are_what_is_quantized(family):
    model, extractor = family
    stereo = model.config.num_channels == 2
    clips = [stereo_clip(length).T if stereo else speech_like_clip(length) for length in (3000, 2000)]
    features = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    encoded = model.encode(**features, output_latents=True)
    assert type(encoded) is CodecEncoderOutput
    num_frames = [model.config.num_frames(len(clip)) for clip in clips]
    assert encoded.audio_codes_mask.sum(dim=1).tolist() == num_frames
    latents = encoded.latents
    assert latents.shape[::2] == encoded.audio_codes.shape[::2]
    quantized = model.quantizer(latents[:1].transpose(1, 2))[1].reshape(1, num_frames[0], -1).transpose(1, 2)
    assert torch.equal(quantized, encoded.audio_codes[:1])
    assert not latents[1, :, num_frames[1] :].any()

    mask = {"audio_codes_mask": encoded.audio_codes_mask}
    of_codes, of_latents = model.decode(encoded.audio_codes, **mask), model.decode(latents=latents, **mask)
    assert type(of_codes) is type(of_latents) is CodecDecoderOutput
    assert of_codes.audio_values.shape == of_latents.audio_values.shape
    assert not torch.equal(of_codes.audio_values, of_latents.audio_values)  # not rounded

    output = model(**features, output_latents=True)
    assert type(output) is CodecOutput
    assert torch.equal(output.audio_codes, encoded.audio_codes)
    assert torch.equal(output.latents, latents)
    with pytest.raises(TypeError):
        model.decode(encoded.audio_codes, encoded.audio_codes_mask)


def test_the_first_example_of_the_readme_runs_on_a_folder_of_every_family(family, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    code, num_folders = re.subn(r"^folder = .*$", 'folder = "model"', code, flags=re.MULTILINE)
    assert num_folders == 1
    model, extractor = family
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    os.mkdir(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    written, original = soundfile.info("demo/gutenberg.wav"), soundfile.info(ENGLISH)
    assert (written.samplerate, written.channels) == (model.config.output_sampling_rate, model.config.num_channels)
    assert written.duration == pytest.approx(original.duration, abs=1 / model.config.frame_rate)
