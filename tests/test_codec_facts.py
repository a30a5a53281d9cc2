"""Every configuration answers the same questions, and nobody asks for its family instead."""

import ast
import re
from pathlib import Path

import pytest
import torch

import fsqcodec
from fsqcodec.presets import CONFIGURATIONS
from lycodec_models import small_lycodec
from small_configs import small_model, speech_like_clip
from small_neucodecs import FEATURE_EXTRACTORS, small_neucodec

FACTS = {
    "input_sampling_rate": int,
    "output_sampling_rate": int,
    "encoder_hop_length": int,
    "decoder_hop_length": int,
    "num_channels": int,
    "frame_rate": float,
    "num_codebooks": int,
    "codebook_size": int,
    "bits_per_frame": float,
    "bitrate": float,
    "crop_length": int,
    "frames_per_crop": int,
    "hears_whole_clip": bool,
    "normalizes_over_clip": bool,
    "streams_frames": bool,
}
STORED = {  # the answers that are fields, by model_type
    "codec": set(),
    "lycodec": {"num_channels", "crop_length", "frames_per_crop"},
    "fsq_neucodec": {"input_sampling_rate", "output_sampling_rate"},
    "distill_neucodec": {"input_sampling_rate", "output_sampling_rate"},
}
PACKAGE = Path(fsqcodec.__file__).parent
FAMILY_PLACES = ("models/", "conversion/")  # elsewhere tables by model_type tell families apart
FAMILY_CLASS = re.compile(r"(Codec(Config|Model)|Lycodec\w*|\w*NeuCodec\w*)")


@pytest.mark.parametrize("config_class", [config_class for config_class, _ in CONFIGURATIONS])
def test_every_configuration_answers_every_question_and_stores_nothing_new(config_class):
    config = config_class()
    assert {name: type(getattr(config, name)) for name in FACTS} == FACTS
    assert set(FACTS) & set(config.to_dict()) == STORED[config.model_type]
    seconds = config.encoder_hop_length / config.input_sampling_rate
    assert config.decoder_hop_length / config.output_sampling_rate == pytest.approx(seconds)
    assert config.frame_rate == pytest.approx(1 / seconds)


def test_only_crops_and_whole_clips_keep_a_codec_from_being_streamed_by_frames():
    answers = {
        config_class.model_type: (config_class().streams_frames, config_class().crop_length > 0)
        for config_class, _ in CONFIGURATIONS
    }
    assert answers == {
        "codec": (True, False),
        "lycodec": (False, True),
        "fsq_neucodec": (False, False),
        "distill_neucodec": (False, False),
    }


@pytest.mark.parametrize("name", ["l3ac-coarse", "sqcodec-fine", "frames-plain"])
@torch.no_grad()
def test_a_codec_makes_as_many_frames_as_it_says(name):
    model = small_model(name)
    for num_samples in (1, 17, 18, 19, 36, 401):
        codes = model.encode(torch.zeros(1, 1, num_samples)).audio_codes
        assert codes.shape[-1] == model.config.num_frames(num_samples)


@torch.no_grad()
def test_a_codec_of_crops_makes_as_many_frames_as_it_says():
    model = small_lycodec()
    for num_samples in (1, model.config.crop_length, model.config.crop_length + 1):
        codes = model.encode(torch.zeros(1, 1, num_samples)).audio_codes
        assert codes.shape[-1] == model.config.num_frames(num_samples)


@pytest.mark.parametrize("origin", FEATURE_EXTRACTORS)
@torch.no_grad()
def test_a_neucodec_makes_as_many_frames_as_it_says(origin):
    model, extractor = small_neucodec(origin), FEATURE_EXTRACTORS[origin]
    for num_samples in (640, 959, 960, 961):
        features = extractor(speech_like_clip(num_samples), sampling_rate=16000, return_tensors="pt")
        assert model.encode(**features).audio_codes.shape[-1] == model.config.num_frames(num_samples)


def test_no_caller_asks_for_a_family_or_guesses_a_fact():
    faults = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(FAMILY_PLACES):
            faults += [f"{place}:{line}" for line in _questions_for_a_family(ast.parse(path.read_text()))]
    for path in sorted(PACKAGE.rglob("*.jinja")):
        faults += [path.name] if "is_lycodec" in path.read_text() else []
    assert faults == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(model, CodecModel)",
        "isinstance(config, (dict, configuration_lycodec.LycodecConfig))",
        "issubclass(config_class, NeuCodecRates)",
        "hasattr(codec.config, 'encoder_hop_length')",
        "getattr(config, 'frames_per_crop', 1)",
    ],
)
def test_such_questions_are_found(code):
    assert list(_questions_for_a_family(ast.parse(code))) == [1]


def _questions_for_a_family(tree: ast.AST):
    """Lines with an `isinstance` of a family's class, or with a `hasattr` or `getattr` that guesses a fact. The class
    that derives facts of other packages' codecs may guess."""
    if isinstance(tree, ast.ClassDef) and tree.name == "_ForeignFacts":
        return
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and len(tree.args) > 1:
        if tree.func.id in ("isinstance", "issubclass"):
            names = (getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree.args[1]))
            if any(map(FAMILY_CLASS.fullmatch, names)):
                yield tree.lineno
        if tree.func.id in ("hasattr", "getattr") and getattr(tree.args[1], "value", None) in FACTS:
            yield tree.lineno
    for child in ast.iter_child_nodes(tree):
        yield from _questions_for_a_family(child)
