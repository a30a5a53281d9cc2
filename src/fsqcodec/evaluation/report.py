"""`report.md` and `report.html` from what `evaluate` wrote. The HTML is one file: pictures and audio are inside."""

import base64
import json
import os
from pathlib import Path

import jinja2

from ..atomic import atomic_path
from ..audio import read_audio_and_rate
from .metrics import LEARNED_METRICS, METRICS
from .plots import rate_quality_plot, spectrogram_plot
from .run import example_path

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
PLOTTED = ("pesq_wb", "stoi", "mel_distance")


def write_reports(output_dir: str | os.PathLike) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` beside the `summary.json` and `audio/` they are made of; returns their paths.

    Raises `FileNotFoundError` where there is no summary.
    """
    output_dir = Path(output_dir)
    summary = json.loads((output_dir / "summary.json").read_text())
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = {"summary": summary, "metrics": _metric_columns(summary), "kilobits": _kilobits}
    markdown = templates.get_template("report.md.jinja").render(shown)
    examples = [_example(output_dir, summary, clip) for clip in summary["examples"]]
    plot = _data_url(rate_quality_plot(summary, {name: TITLES[name] for name in PLOTTED}), "image/png")
    page = templates.get_template("report.html.jinja").render(shown, examples=examples, rate_quality_plot=plot)
    for name, text in (("report.md", markdown), ("report.html", page)):
        with atomic_path(output_dir / name) as path:
            path.write_text(text)
    return output_dir / "report.md", output_dir / "report.html"


def _metric_columns(summary: dict) -> list[dict]:
    columns = []
    for name in summary["settings"]["metrics"]:
        metric = (METRICS | LEARNED_METRICS)[name]
        arrow = {"higher": "↑", "lower": "↓"}[metric.better]
        columns.append(
            {"name": name, "title": f"{TITLES[name]}{f', {metric.unit}' if metric.unit == 'dB' else ''} {arrow}"}
        )
    return columns


def _example(output_dir: Path, summary: dict, clip: str) -> dict:
    """A clip's players and its spectrograms."""
    paths = {"original": example_path(output_dir, "original", clip)}
    paths |= {codec: example_path(output_dir, codec, clip) for codec in summary["codecs"]}
    paths = {title: path for title, path in paths.items() if path.exists()}  # a codec may have failed on the clip
    audio = {title: read_audio_and_rate(path) for title, path in paths.items()}
    waveforms = {title: waveform for title, (waveform, _) in audio.items()}
    return {
        "name": clip,
        "players": {title: _data_url(path.read_bytes(), "audio/flac") for title, path in paths.items()},
        "spectrograms": _data_url(spectrogram_plot(waveforms, audio["original"][1]), "image/png"),
    }


def _kilobits(bits_per_second: float | None) -> str:
    return "" if bits_per_second is None else f"{bits_per_second / 1000:.2f}"


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
