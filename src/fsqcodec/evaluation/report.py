"""`report.md` and `report.html` from what `evaluate` wrote. The HTML is one file: pictures and audio are inside."""

import base64
import json
import os
import re
from pathlib import Path

import jinja2

from ..atomic import atomic_path
from ..audio import read_audio_and_rate
from .metrics import LEARNED_METRICS, METRICS
from .plots import rate_quality_plot, spectrogram_plot

TITLES = {
    "pesq_wb": "PESQ-WB",
    "pesq_nb": "PESQ-NB",
    "stoi": "STOI",
    "estoi": "ESTOI",
    "si_sdr_db": "SI-SDR",
    "sdr_db": "SDR",
    "stft_distance": "STFT distance",
    "mel_distance": "mel distance",
    "mel_distance_multiscale": "mel distance, 7 scales",
    "codec_superb_mel": "Codec-SUPERB mel",
    "codec_superb_stft": "Codec-SUPERB STFT",
    "log_spectral_distance": "log spectral distance",
    "f0_correlation": "F0 correlation",
    "voicing_error": "voicing error",
    "dnsmos_overall": "DNSMOS overall",
    "dnsmos_signal": "DNSMOS signal",
    "dnsmos_background": "DNSMOS background",
    "visqol": "ViSQOL",
    "speaker_similarity": "speaker similarity",
}
PLOTTED = ("pesq_wb", "stoi", "mel_distance")  # or, where none of these was chosen, the first three


def write_reports(output_dir: str | os.PathLike) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` beside the `summary.json` and `audio/` they are made of; returns their paths.

    Raises `FileNotFoundError` where there is no summary.
    """
    output_dir = Path(output_dir)
    summary = json.loads((output_dir / "summary.json").read_text(encoding="utf-8"))
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["cell"] = _markdown_cell
    shown = {
        "summary": summary,
        "metrics": _metric_columns(summary),
        "kilobits": _kilobits,
        "conditional": _conditional_bits,
        "rate": _rate,
        "interval": _interval,
        "num_words": _num_words,
        **_recognition(summary),
    }
    markdown = templates.get_template("report.md.jinja").render(shown)
    examples = [_example(output_dir, example) for example in summary["examples"]]
    plot = summary_plot(summary)
    plot = plot and _data_url(plot, "image/png")
    page = templates.get_template("report.html.jinja").render(shown, examples=examples, rate_quality_plot=plot)
    for name, text in (("report.md", markdown), ("report.html", page)):
        with atomic_path(output_dir / name) as path:
            path.write_text(text, encoding="utf-8")
    return output_dir / "report.md", output_dir / "report.html"


def summary_plot(summary: dict) -> bytes | None:
    """The rate-quality plot of a summary as PNG; `None` where no metric has a mean."""
    chosen = summary["settings"]["metrics"]
    measured = [
        name
        for name in chosen
        if any(codec["metrics"][name]["mean"] is not None for codec in summary["codecs"].values())
    ]
    plotted = [name for name in PLOTTED if name in measured] or measured[:3]
    return rate_quality_plot(summary, {name: TITLES[name] for name in plotted}) if plotted else None


def _metric_columns(summary: dict) -> list[dict]:
    columns = []
    for name in summary["settings"]["metrics"]:
        metric = (METRICS | LEARNED_METRICS)[name]
        arrow = {"higher": "↑", "lower": "↓"}[metric.better]
        columns.append(
            {"name": name, "title": f"{TITLES[name]}{f', {metric.unit}' if metric.unit == 'dB' else ''} {arrow}"}
        )
    return columns


def _example(output_dir: Path, example: dict) -> dict:
    """A clip's players and its spectrograms."""
    paths = [("original", output_dir / example["original"])]
    paths += [(codec, output_dir / path) for codec, path in example["decoded"].items()]
    audio = [(title, *read_audio_and_rate(path, "mix")) for title, path in paths]
    return {
        "name": example["clip"],
        "players": [(title, _data_url(path.read_bytes(), "audio/flac")) for title, path in paths],
        "spectrograms": _data_url(spectrogram_plot([each[:2] for each in audio], audio[0][2]), "image/png"),
    }


def _markdown_cell(text: str) -> str:
    """Text that stays in its cell, as it is."""
    return re.sub(r"([\\|`<>*_\[\]])", r"\\\1", text.replace("\n", " "))


def _kilobits(bits_per_second: float | None) -> str:
    return "" if bits_per_second is None else f"{bits_per_second / 1000:.2f}"


def _conditional_bits(codebooks: list[dict]) -> str:
    """Mean bits of a token when the one before is known."""
    bits = [codebook["sequence"][0]["conditional_entropy"] for codebook in codebooks]
    return "-" if None in bits else f"{sum(bits) / len(bits):.2f}"


def _rate(errors: dict | None) -> str:
    """An error rate in percent."""
    return f"{100 * errors['rate']:.1f} %" if errors and errors["rate"] is not None else "-"


def _interval(errors: dict | None) -> str:
    """Its interval in percent."""
    if not errors or errors["interval"] is None:
        return "-"
    low, high = errors["interval"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _num_words(errors: dict | None) -> int:
    """Words of the references."""
    return errors["hits"] + errors["substitutions"] + errors["deletions"] if errors else 0


def _recognition(summary: dict) -> dict:
    """Rows of the table of words, for the recordings and each codec, languages to tell apart, and the recognizer."""
    if summary["recognition"] is None:
        return {"spoken": [], "languages": [], "recognizer": None}
    original = summary["recognition"]["original"]
    words = {name: _num_words(errors["wer"]) for name, errors in original["by_language"].items()}
    languages = sorted(filter(words.get, words), key=words.get, reverse=True)
    if len(languages) == 1 and words[languages[0]] == _num_words(original["wer"]):
        languages = []  # they are all the words there are
    spoken = [{"name": "recordings", **original}]
    spoken += [{"name": name, **codec["recognition"]} for name, codec in summary["codecs"].items()]
    model = summary["recognition"]["model"]
    model = Path(model).name if os.path.isabs(model) else model  # its digest says which it is
    return {"spoken": spoken, "languages": languages, "recognizer": model}


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
