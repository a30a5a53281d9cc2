"""A recipe: all that a training run is, as a YAML file. The same recipe and data give the same run.

Ready ones are in `training/recipes`; `recipe_path("speech-cpu")` is the path of one.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

import yaml

from ..presets import PRESETS, preset_config

LOSSES = {  # by model_type
    "codec": (
        "waveform",
        "stft",
        "convergence_stft",
        "complex_stft",
        "mel",
        "buzz",
        "perceptual",
        "features",
        "token_consistency",
        "adversarial",
        "feature_matching",
    ),
    "lycodec": ("consistency", "stft", "alignment"),
}
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Model:
    """What is trained: sizes of a `preset` with random weights, or the weights of a `folder` (or Hub id).

    `overrides` replace fields of its configuration; of a folder's, those that leave every weight in its place, like
    `enhance_normalization`. `parts` are trained, the others keep their weights bit for bit.
    """

    preset: str | None = None
    folder: str | None = None
    overrides: dict = field(default_factory=dict)
    parts: tuple[Literal["encoder", "quantizer", "decoder"], ...] = ("encoder", "quantizer", "decoder")


@dataclass(frozen=True)
class Source:
    """Clips with a weight. A crop is one of them with a probability of `weight` divided by the weights of all sources,
    however long these are. `speech: false` says that nobody speaks in them: no speakers are compared."""

    path: str
    weight: float = 1.0
    speech: bool = True


@dataclass(frozen=True)
class Data:
    """What it is trained on; see `fsqcodec.data` for sources and `Crops` for the rest.

    `train` lists paths and sources with weights. The paths together are one source of weight 1, in which clips are
    heard in proportion to their duration.

    Clips and speakers of `evaluation` never reach training. `hold_out_speakers` of the training speakers are what the
    run itself is validated on, `num_validation_clips` of theirs: speakers of the first source of speech, the paths
    before all others. Where no clip there tells its speaker, clips are held out, at most a tenth of all. With 0 nothing
    is.
    """

    train: tuple[str | Source, ...]
    evaluation: tuple[str, ...] = ()
    hold_out_speakers: int = 8
    num_validation_clips: int = 24
    crop_seconds: float = 1.0
    normalize_level: bool = False
    gain_db: tuple[float, float] = (0.0, 0.0)
    flip_polarity: bool = False
    speed: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Phase:
    """`steps` with these weights of losses, which the model's family has; `caps` are the largest values of weighted
    losses, see `losses.cap`. `quantizer_dropout` is the share of clips (Lycodec: of steps) whose latents reach the
    decoder without being rounded: 1 to begin without the quantizer."""

    steps: int
    losses: dict[str, float]
    caps: dict[str, float] = field(default_factory=dict)
    quantizer_dropout: float = 0.0


@dataclass(frozen=True)
class Optimizer:
    """See `training.optimizers`. `one_cycle`: up from `start_share` of the learning rate over `warmup_share` of the
    steps and down to `final_share`, along cosines (Smith and Topin 2017, arXiv:1708.07120); `cosine`: down only."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    warmup_share: float = 0.05
    start_share: float = 0.1
    final_share: float = 0.02
    clip_norm: float = 1.0


@dataclass(frozen=True)
class DigitNoise:
    """See `quantization.digit_noise_probability`."""

    probability: float = 0.0
    first_step: int = 0
    ramp_steps: int = 1


@dataclass(frozen=True)
class Features:
    """Of the loss "features": numbers of the layers of `perceptual_model` that are compared, from 1, and the `share` of
    each batch's clips, the others cost nothing; see `perceptual.FeatureLoss`."""

    layers: tuple[int, ...] = (1, 2, 3)
    share: float = 1.0


@dataclass(frozen=True)
class Consistency:
    """Of the loss "token_consistency": how clips are changed, and the `share` of each batch's clips that are; see
    `consistency.perturbed`."""

    share: float = 0.25
    noise_db: tuple[float, float] = (30.0, 40.0)
    gain_db: tuple[float, float] = (-1.0, 1.0)
    shift_samples: int = 1


@dataclass(frozen=True)
class Discriminators:
    """Their sizes, and every how many steps they are updated."""

    every: int = 1
    learning_rate: float = 2e-4
    clip_norm: float = 10.0
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    band_channels: int = 32


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Args:
        batch_size: crops of a step, of all processes and accumulation steps together.
        accumulation_steps: parts in which a process computes its share of the batch.
        phases: one after the other.
        ema_decay: of the average of the weights, which is what is validated and saved.
        scales_per_step: how many scales of the losses "mel" and "complex_stft" a step draws at random; all of them if
            not given.
        compile: run residual units compiled, see `training.compilation`; the first step takes half a minute longer.
        whiten: normalise the digits over each batch, which keeps them from collapsing; `false` for a trained
            model, see `quantization.prepare_quantizer`.
        precision: "bf16" runs most of the work in it where that is faster, see `training.precision`.
        gradient_checkpointing: compute layers once more instead of keeping what they computed; Lycodec.
        perceptual_model: folder or Hub id of an audio encoder, for the losses "perceptual", "features" and "alignment".
        recognizer: folder or Hub id of a speech recognition model, for word error rates in validation.
        recognize_every: how many validations there are to one with the recognizer; the last one has it too.
        validate_minutes, save_minutes: between validations, and between states to resume from.
        check_collapse_steps: window of tokens in which a collapse of the quantizer is looked for.
        trackers: of accelerate, like "tensorboard", that get what is logged.
    """

    model: Model
    data: Data
    phases: tuple[Phase, ...]
    batch_size: int = 12
    accumulation_steps: int = 1
    seed: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)
    ema_decay: float = 0.999
    scales_per_step: int | None = None
    compile: bool = False
    whiten: bool = True
    precision: Literal["float32", "bf16"] = "float32"
    gradient_checkpointing: bool = False
    digit_noise: DigitNoise = field(default_factory=DigitNoise)
    discriminators: Discriminators = field(default_factory=Discriminators)
    features: Features = field(default_factory=Features)
    consistency: Consistency = field(default_factory=Consistency)
    perceptual_model: str | None = None
    recognizer: str | None = None
    recognize_every: int = 1
    validate_minutes: float = 10.0
    save_minutes: float = 5.0
    check_collapse_steps: int = 50
    trackers: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> Phase:
        """The phase of a step, counted from 0; the last one beyond the end."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


def load_recipe(path: str | os.PathLike, **replaced) -> Recipe:
    """Read a recipe from YAML.

    `replaced` are fields that replace the file's, dots between: `{"data.train": ["recordings"]}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing field, a value of another type, a preset or loss that is not there.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no recipe: fields like `model:` and `data:` are wanted")
    for name, value in replaced.items():
        *sections, last = name.split(".")
        section = content
        for key in sections:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise ValueError(f"{path}, {key} is {section!r}: fields are wanted")
        section[last] = value
    recipe = recipe_of_dict(content, os.fspath(path))
    _check(recipe, os.fspath(path))
    return recipe


def check_losses(phase: Phase, known: Iterable[str], where: str):
    """Raise `ValueError` that calls the recipe `where` for a loss that is not among `known`."""
    unknown = [name for name in (*phase.losses, *phase.caps) if name not in known]
    if unknown:
        raise ValueError(f"{where}: there is no loss {unknown[0]!r}; the losses are: {', '.join(known)}")


def recipe_of_dict(content: dict, where: str) -> Recipe:
    """A recipe of what YAML or JSON holds; fields that are not there have their defaults. Raises `ValueError` that
    calls it `where` for unknown or missing fields and values of another type."""
    return _build(Recipe, content, where)


def recipe_path(name: str) -> Path:
    """The path of a ready recipe. Raises `ValueError` for a name that there is none of."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"there is no recipe {name!r}; there are: {', '.join(names)}")
    return RECIPES / f"{name}.yaml"


def as_dict(recipe: Recipe) -> dict:
    """What YAML and JSON hold of it."""
    return _plain(asdict(recipe))


SECTIONS = {
    "model": Model,
    "data": Data,
    "optimizer": Optimizer,
    "digit_noise": DigitNoise,
    "features": Features,
    "consistency": Consistency,
    "discriminators": Discriminators,
}


def _build(kind: type, content: dict, where: str):
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {content!r}: fields are wanted, {', '.join(each.name for each in fields(kind))}")
    known = {each.name: each for each in fields(kind)}
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}, which is no field; the fields are: {', '.join(known)}")
    values = {}
    for name, value in content.items():
        if name == "phases":
            if not isinstance(value, list):
                raise ValueError(f"{where}, phases is {value!r}: a list is wanted")
            values[name] = tuple(_build(Phase, phase, f"{where}, phases") for phase in value)
        elif name in SECTIONS and kind is Recipe:
            values[name] = _build(SECTIONS[name], value, f"{where}, {name}")
        else:
            values[name] = _value(known[name].type, value, f"{where}, {name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(kind, value, where: str):
    """A field's value of YAML or JSON, where it is of the field's type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _build(kind, value, where)
    if kind == str | Source:
        return _value(Source if isinstance(value, dict) else str, value, where)
    if origin is UnionType:
        return None if value is None else _value(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}: one of {', '.join(arguments)} is wanted")
        return value
    if origin is tuple:
        length = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
            raise ValueError(f"{where} is {value!r}: a list {f'of {length} ' if length else ''}is wanted")
        return tuple(_value(arguments[0], each, where) for each in value)
    if origin is dict:
        _check_is(dict, value, where)
        return {name: _value(arguments[1], each, f"{where}, {name}") for name, each in value.items()}
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{where} is {value!r}: a number is wanted (1.0e-3 and not 1e-3, in YAML)")
        return float(value)
    _check_is(kind, value, where)
    return value


def _check_is(kind: type, value, where: str):
    if not isinstance(value, kind) or kind is int and isinstance(value, bool):
        raise ValueError(f"{where} is {value!r}: {kind.__name__} is wanted")


def _check(recipe: Recipe, where: str):
    if (recipe.model.preset is None) == (recipe.model.folder is None):
        raise ValueError(f"{where}, model: either a preset or a folder is wanted")
    if recipe.model.preset is not None and recipe.model.preset not in PRESETS:
        raise ValueError(f"{where}: there is no preset {recipe.model.preset!r}; the presets are: {', '.join(PRESETS)}")
    known = dict.fromkeys(name for names in LOSSES.values() for name in names)
    if recipe.model.preset is not None:
        known = LOSSES[preset_config(recipe.model.preset).model_type]
    if not recipe.phases:
        raise ValueError(f"{where} has no phases: at least one is wanted")
    for phase in recipe.phases:
        check_losses(phase, known, where)
        for name in ("perceptual", "features", "alignment"):
            if name in phase.losses and recipe.perceptual_model is None:
                raise ValueError(f"{where}: the loss {name!r} wants a perceptual_model, like openai/whisper-tiny")


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    assert not is_dataclass(value)
    return value
