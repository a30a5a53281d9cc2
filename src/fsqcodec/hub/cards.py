"""Model cards: of a preset, of a family, and of a model's folder. The text is in card.md.jinja.

Figures are computed from the configuration or taken from an evaluation's summary.json; the few that the originals'
authors give are labelled as theirs.
"""

import functools
import json
import math
import os
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import MODEL_MAPPING, PreTrainedConfig

from ..checkpoints import bundled_checkpoint, list_checkpoints
from ..counting import multiply_accumulates, num_parameters
from ..description import samples_and_milliseconds
from ..models.configuration_codec import CodecConfig
from ..models.configuration_neucodec import NeuCodecRates
from ..presets import CONFIGURATIONS, PRESETS, list_presets

CARD_NAME = "README.md"
TRAINING_RECORD = "training.json"  # which the trainer puts into the folders that it saves
TEMPLATE = Path(__file__).parent / "card.md.jinja"
NEUCODEC_TEMPLATE = Path(__file__).parent / "neucodec_card.md.jinja"
PAPER = "https://arxiv.org/abs/2504.04949"
COUNTED_SECONDS = 10.0  # the clip that multiply-accumulates are counted for, as the paper does


@dataclass(frozen=True)
class Origin:
    """An original: name, repository of the code, id of the weights on the Hub, package and version on PyPI, or commit
    where there is none."""

    name: str
    code: str
    weights: str | None
    package: str


ORIGINS = {  # whose weights are published
    "l3ac": Origin("L3AC", "https://github.com/zhai-lw/L3AC", "zhai-lw/L3AC", "l3ac 1.0"),
    "sqcodec": Origin("SQCodec", "https://github.com/zhai-lw/SQCodec", "zhai-lw/SQCodec", "sq_codec 0.0.1"),
}
UNPUBLISHED_ORIGINS = {
    "lycodec": Origin("Lycodec", "https://github.com/mini-kio/Lycodec", None, "commit 8040de3"),
}
NEUCODEC_ORIGINS = {
    "neucodec": Origin("NeuCodec", "https://github.com/neuphonic/neucodec", "neuphonic/neucodec", "neucodec"),
    "distill-neucodec": Origin(
        "distill-NeuCodec", "https://github.com/neuphonic/neucodec", "neuphonic/distill-neucodec", "neucodec"
    ),
}
AUTHORS_FIGURES_SOURCE = (
    "https://github.com/zhai-lw/L3AC/blob/a8b379bdfa4ea0f8afb00cbec8fecaa32228a6a3/src/scripts/plot/bubble_chart.py"
)
AUTHORS_FIGURES = {  # PESQ, STOI, 1e9 multiply-accumulates for 10 s
    "l3ac-0k75bps": (1.68, 0.82, 1.55),
    "l3ac-1kbps": (1.77, 0.84, 2.03),
    "l3ac-1k5bps": (1.91, 0.86, 2.37),
    "l3ac-3kbps": (2.31, 0.90, 1.64),
}


def model_card(target: str | os.PathLike, summary: dict | None = None, codec: str | None = None) -> str:
    """The card of a preset, a family or a model's folder: Markdown with its front matter.

    Args:
        target: a preset, a family ("l3ac", "sqcodec"), or a folder. What the folder's README.md says about where the
            weights come from is passed on: title, licence, base model, data sets, and what a conversion verified.
        summary: the summary.json of `fsqcodec evaluate`, whose figures fill card and model-index. The codec in it is
            the one with the folder's digest, and for a preset the one with its name.
        codec: the codec's name in `summary`, where several fit.

    Raises:
        FileNotFoundError: a target that is none of these.
        ValueError: a folder with another kind of model; a summary of something else, in which no codec or more than one
            fits, or whose codec has other sizes or other weights.
    """
    target, evaluation = os.fspath(target), None
    if target in ORIGINS:
        if summary is not None:
            raise ValueError(f"{target} is a family, an evaluation is of one model: name a preset or a folder")
        configs = {preset: CodecConfig.from_preset(preset) for preset in list_presets(target)}
        return _render(configs, Provenance(ORIGINS[target].name, target, published=True), presets=list(configs))
    if target in PRESETS:
        if target.split("-")[0] not in ORIGINS:
            raise ValueError(f"{target} has no published weights: name the folder of a model that was trained")
        config = CodecConfig.from_preset(target)
        provenance = Provenance(target, target.split("-")[0], published=True)
        if summary is not None:
            evaluation = _evaluation(summary, _codec_of_name(summary, target, codec), config)
        return _render({target: config}, provenance, evaluation, presets=[target])
    folder = Path(target)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{target} is no preset (`fsqcodec info` lists them), no family ({', '.join(ORIGINS)}) and no folder that "
            "has a config.json"
        )
    config = _folder_config(folder)
    provenance = Provenance.of_folder(folder)
    if summary is not None:
        evaluation = _evaluation(summary, _codec_of_folder(summary, folder, codec), config)
    if config.hears_whole_clip:
        return _render_neucodec(config, provenance, evaluation)
    return _render({provenance.title: config}, provenance, evaluation)


def converted_model_card(family: str, preset: str | None, config: PreTrainedConfig, verification: str) -> str:
    """The card of a just converted checkpoint of "l3ac", "sqcodec" or "lycodec"; `model_card` of its folder is equal.

    `preset` is `None` where the checkpoint is not a published one, `verification` says how the model compares with the
    original package.
    """
    title = preset or f"{_origin(family).name}, own sizes"
    paragraph = f"Converted by fsqcodec {version('fsqcodec')}. {VERIFICATION}{verification}."
    published = preset is not None and family in ORIGINS
    return _render({title: config}, Provenance(title, family, published=published, verification=paragraph))


def converted_neucodec_card(origin: str, config: NeuCodecRates, published: bool, ignored: list[str]) -> str:
    """The card of a just converted checkpoint of "neucodec" or "distill-neucodec"; `model_card` of its folder is equal.

    `published` says whether it has the published model's sizes, `ignored` which of its tensors only training needs.
    """
    title = origin if published else f"{NEUCODEC_ORIGINS[origin].name}, own sizes"
    left_out = f" Left out, as only training needs them: {', '.join(ignored)}." if ignored else ""
    paragraph = f"{CONVERSION}{version('fsqcodec')}, every tensor matched.{left_out}"
    return _render_neucodec(config, Provenance(title, origin, published, paragraph))


def write_all_cards(folder: str | os.PathLike) -> list[Path]:
    """Write the cards of all originals, of their presets and of the models that come with the package to `<name>.md` in
    `folder`, with the figures of its `evaluation/<name>.json` where there is one, and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: name for name in (*ORIGINS, *(preset for family in ORIGINS for preset in list_presets(family)))}
    targets |= {name: bundled_checkpoint(name) for name in list_checkpoints()}
    for name, target in targets.items():
        evaluation = folder / "evaluation" / f"{name}.json"
        summary = json.loads(evaluation.read_text()) if evaluation.is_file() else None
        (folder / f"{name}.md").write_text(model_card(target, summary), encoding="utf-8")
    return [folder / f"{name}.md" for name in targets]


VERIFICATION = "Verification against the original package: "
CONVERSION = "Converted from the original's checkpoint by fsqcodec "
CARRIED_FIELDS = ("license", "license_name", "license_link", "base_model", "datasets", "language")


@dataclass(frozen=True)
class Provenance:
    """Where weights come from, as far as it is known.

    Attributes:
        title: of the card; also the model's name in its model-index.
        family: "l3ac", "sqcodec" or "lycodec" for weights of the originals, `None` for others.
        published: whether they are the authors' published weights.
        verification: the paragraph that the conversion wrote.
        front_matter: what the folder's card states and a new one keeps, those of `CARRIED_FIELDS`.
        training: what the trainer recorded.
    """

    title: str
    family: str | None = None
    published: bool = False
    verification: str | None = None
    front_matter: dict = field(default_factory=dict)
    training: dict | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> "Provenance":
        """What the folder's README.md and training.json say; nothing but the folder's name where there is neither."""
        name, record = folder.resolve().name, folder / TRAINING_RECORD
        training = json.loads(record.read_text()) if record.is_file() else None
        if not (folder / CARD_NAME).is_file():
            return cls(name, training=training)
        card = ModelCard.load(folder / CARD_NAME)
        title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
        verification = re.search(rf"^.*({VERIFICATION}|{CONVERSION}).*$", card.text, re.MULTILINE)
        known = (*ORIGINS, *UNPUBLISHED_ORIGINS, *NEUCODEC_ORIGINS)
        family = next((family for family in known if verification and family in (card.data.tags or [])), None)
        return cls(
            title[1] if title else name,
            family,
            published=title is not None
            and (title[1] == family or (family in ORIGINS and title[1] in list_presets(family))),
            verification=verification[0] if verification else None,
            front_matter={key: value for key, value in card.data.to_dict().items() if key in CARRIED_FIELDS},
            training=training,
        )


@dataclass(frozen=True)
class Evaluation:
    """What a card shows of one codec of a summary.json. `rows`: metric, mean, standard error, clips, failed clips;
    `words`: a sentence on what speech recognition gets wrong, where it was asked."""

    version: str
    data: str
    rows: list[tuple[str, str, str, int, int]]
    words: str | None
    bitrate: str | None
    command: str
    warnings: list[str]
    results: list[EvalResult]


def _folder_config(folder: Path) -> PreTrainedConfig:
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    for config_class, _ in CONFIGURATIONS:
        if model_type == config_class.model_type:
            return config_class.from_pretrained(folder)
    raise ValueError(f"{folder} holds a model of type {model_type!r}: a folder of fsqcodec is wanted")


def _origin(family: str | None) -> Origin | None:
    return {**ORIGINS, **UNPUBLISHED_ORIGINS}.get(family)


def _codec_of_name(summary: dict, preset: str, codec: str | None) -> str:
    codecs = _codecs(summary, codec)
    fitting = [name for name, entry in codecs.items() if preset in (name, Path(entry["model"]).name)]
    return codec or _only(fitting, codecs, f"the name {preset}")


def _codec_of_folder(summary: dict, folder: Path, codec: str | None) -> str:
    from ..codecs import load_model, model_digest

    codecs = _codecs(summary, codec)
    digest = model_digest(load_model(folder, device="cpu"))
    fitting = [name for name, entry in codecs.items() if entry["digest"] == digest and name == (codec or name)]
    return _only(fitting, codecs, f"the digest of {folder}, {digest}")


def _codecs(summary: dict, codec: str | None) -> dict[str, dict]:
    if not {"codecs", "data", "command"} <= set(summary):
        raise ValueError(
            "the evaluation lacks codecs, data or command: a summary.json of `fsqcodec evaluate` is wanted"
        )
    if codec is not None and codec not in summary["codecs"]:
        raise ValueError(f"the evaluation has no codec {codec!r}; it has: {', '.join(summary['codecs'])}")
    return summary["codecs"]


def _only(fitting: list[str], codecs: dict[str, dict], wanted: str) -> str:
    if not fitting:
        known = ", ".join(f"{name} ({entry['model']}, digest {entry['digest']})" for name, entry in codecs.items())
        raise ValueError(f"no codec of the evaluation has {wanted}; it has: {known}. Evaluate this model")
    if len(fitting) > 1:
        raise ValueError(f"several codecs of the evaluation have {wanted}: {', '.join(fitting)}. Name one, as codec")
    return fitting[0]


def _evaluation(summary: dict, name: str, config: PreTrainedConfig) -> Evaluation:
    entry, data = summary["codecs"][name], summary["data"]
    found = (entry["sampling_rate"], entry["codebook_sizes"], entry["frame_rate"])
    wanted = (config.input_sampling_rate, [config.codebook_size] * config.num_codebooks, config.frame_rate)
    if found[:2] != wanted[:2] or not math.isclose(found[2], wanted[2]):
        raise ValueError(
            f"{name} was evaluated at {found[0]} Hz with codebooks {found[1]} and {found[2]} frames per second, this "
            f"model has {wanted[0]} Hz, {wanted[1]} and {wanted[2]}: it is another codec"
        )
    sources = ", ".join(Path(source).name if os.path.isabs(source) else source for source in data["sources"])
    recognition = entry.get("recognition") or {}
    measured = {metric: facts["mean"] for metric, facts in entry["metrics"].items() if facts["mean"] is not None}
    if recognition.get("wer"):
        measured["wer"] = round(100 * recognition["wer"]["rate"], 2)  # in percent, as a model-index has it
    if entry.get("resembles_original") is False:
        measured = {}  # a model-index has no place for the warning
    return Evaluation(
        version=summary["fsqcodec_version"],
        data=f"{data['num_clips']} clips, {data['seconds'] / 60:.1f} minutes, of {sources} ({data['digest']})",
        rows=[
            (
                metric,
                "not measured" if facts["mean"] is None else f"{facts['mean']:.3f}",
                "-" if facts["standard_error"] is None else f"{facts['standard_error']:.3f}",
                facts["num_clips"],
                facts["num_failed"],
            )
            for metric, facts in entry["metrics"].items()
        ],
        words=_words(recognition, summary["recognition"]) if recognition else None,
        bitrate=entry["measured_bitrate"] and f"{entry['measured_bitrate']:.1f}",
        command=summary["command"],
        warnings=entry["warnings"],
        results=[
            EvalResult(
                task_type="audio-to-audio",
                dataset_type=sources,
                dataset_name=sources,
                dataset_args={"num_clips": data["num_clips"], "digest": data["digest"]},
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in measured.items()
        ],
    )


def _words(recognition: dict, recognizer: dict) -> str | None:
    """What the recognizer gets wrong, against transcripts if there are any, else against what it makes of the
    recordings; `None` where there are no words."""
    errors, original = recognition["wer"] or recognition["dwer"], recognizer["original"]["wer"]
    if errors is None or errors["rate"] is None:
        return None
    low, high = errors["interval"]
    share = f"{100 * errors['rate']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    if recognition["wer"]:
        reference = (
            f"of the words of {errors['num_clips']} transcripts, and {100 * original['rate']:.1f} % in the recordings"
        )
    else:
        reference = f"of what it recognises in {errors['num_clips']} recordings"
    name = Path(recognizer["model"]).name if os.path.isabs(recognizer["model"]) else recognizer["model"]
    return f"{name} recognises {share} {reference} wrongly."


def _render(
    configs: dict[str, PreTrainedConfig],
    provenance: Provenance,
    evaluation: Evaluation | None = None,
    presets: list[str] | None = None,
) -> str:
    """The card of one model, or of a family's; `presets` are those it tells how to convert."""
    family, origin = provenance.family, _origin(provenance.family)
    front_matter = dict(provenance.front_matter)
    if provenance.published:
        front_matter = {"license": "mit", "base_model": origin.weights, **front_matter}
    results = evaluation.results if evaluation else []
    config = next(iter(configs.values()))
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=["audio-codec", *(["speech-tokenizer"] if config.num_codebooks == 1 else []), "fsqcodec"]
        + ([family] if family else []),
        **({"model_name": provenance.title, "eval_results": results} if results else {}),
        **front_matter,
    )
    published = list(configs) if provenance.published else []
    columns = [_facts(type(config), _fields(config)) for config in configs.values()]
    card = ModelCard.from_template(
        card_data,
        template_path=TEMPLATE,
        title=provenance.title,
        published=provenance.published,
        family=family,
        origin=origin,
        paper=PAPER,
        verification=provenance.verification,
        columns=list(configs),
        rows=[(label, [facts[label] for facts in columns]) for label in columns[0]],
        config=config,
        path=presets[0] if presets else "path/of/this/folder",
        presets=presets,
        evaluation=evaluation,
        training=provenance.training,
        license=front_matter.get("license"),
        datasets=front_matter.get("datasets"),
        authors_figures={name: AUTHORS_FIGURES[name] for name in published if name in AUTHORS_FIGURES},
        authors_figures_source=AUTHORS_FIGURES_SOURCE,
    )
    return f"{card.content.rstrip()}\n"


def _render_neucodec(config: NeuCodecRates, provenance: Provenance, evaluation: Evaluation | None = None) -> str:
    """The card of one NeuCodec or distill-NeuCodec."""
    origin = NEUCODEC_ORIGINS.get(provenance.family)
    front_matter = dict(provenance.front_matter)
    if provenance.published:
        front_matter = {"license": "apache-2.0", "base_model": origin.weights, **front_matter}
    results = evaluation.results if evaluation else []
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=["audio-codec", "speech-tokenizer", "fsqcodec", *([provenance.family] if provenance.family else [])],
        **({"model_name": provenance.title, "eval_results": results} if results else {}),
        **front_matter,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=NEUCODEC_TEMPLATE,
        title=provenance.title,
        published=provenance.published,
        origin=origin,
        provenance=provenance,
        config=config,
        evaluation=evaluation,
        license=front_matter.get("license"),
    )
    return f"{card.content.rstrip()}\n"


def _fields(config: PreTrainedConfig) -> str:
    return json.dumps({name: getattr(config, name) for name in type(config).__annotations__})


@functools.cache
def _facts(config_class: type[PreTrainedConfig], fields: str) -> dict[str, str]:
    """Label and value of what follows from a configuration, given as JSON of its fields."""
    config = config_class(**json.loads(fields))
    with torch.device("meta"):
        model = MODEL_MAPPING[config_class](config).eval()
    counts = multiply_accumulates(config, COUNTED_SECONDS)
    parameters = num_parameters(model)
    return {
        "sampling rate": f"{config.sampling_rate} Hz",
        "samples per token": f"{config.hop_length}",
        "tokens per second": f"{config.frame_rate:.2f}",
        "codebook": f"{config.codebook_size} ({' x '.join(map(str, config.quantization_levels))})",
        **({"codebooks": f"{config.num_codebooks}"} if config.num_codebooks > 1 else {}),
        "bits per token": f"{config.bits_per_frame:.2f}",
        "bits per second": f"{config.bitrate:.1f}",
        "encoder look-ahead": samples_and_milliseconds(config.encoder_lookahead_samples, config),
        "decoder look-ahead": samples_and_milliseconds(config.decoder_lookahead_samples, config),
        **_attention_fact(config),
        "parameters": f"{parameters['total']:,}",
        "of these in encoder, decoder": f"{parameters['encoder']:,}, {parameters['decoder']:,}",
        f"multiply-accumulates to encode {COUNTED_SECONDS:g} s": f"{counts['encode'] / 1e9:.2f} G",
        f"multiply-accumulates to decode {COUNTED_SECONDS:g} s": f"{counts['decode'] / 1e9:.2f} G",
    }


def _attention_fact(config: PreTrainedConfig) -> dict[str, str]:
    if not (config.streams_frames and config.has_attention):
        return {}
    window = config.attention_window_size
    return {"attention window": f"{window} tokens ({window / config.frame_rate:.2f} s)"}
