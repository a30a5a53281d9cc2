"""`summary.json`: what was evaluated, on what, by what, and the means.

fsqcodec_version, commit, command, machine, versions
settings   sources, codecs, metrics, channels, recognizer, as asked for
data       sources, num_clips, seconds, sampling_rates (Hz), digest (of names, samples and transcripts), bad_clips
           (reason by clip)
examples   clip, original and decoded (by codec): files below the output folder
recognition
           model, revision and digest of the recognizer, and original: its errors on the clips themselves, as below;
           null where none was named
codecs     by name: model, revision, digest, sampling_rate and output_sampling_rate (Hz), frame_rate, codebook_sizes,
           nominal_bitrate and measured_bitrate (bits per second of payload), warnings, num_clips, failed_clips (reason
           by clip), delay_seconds (median), length_difference (largest, samples), num_above_full_scale,
           resembles_original (false: as with random weights), metrics (by name: mean, standard_error, num_clips,
           num_failed, reasons with their counts), tokens (see `evaluation.token_statistics`), robustness (see
           `evaluation.robustness`; why not, in no_robustness), recognition, where they apply
           recognition: wer and cer (against transcripts), dwer and dcer (against what is recognised in the originals),
           each with rate, interval (95 %, bootstrap over clips), num_clips, hits, substitutions, deletions and
           insertions, or null without such clips; num_failed: clips that the recognizer failed on; by_language: the
           rates of the clips of each language that the data names
"""

import math
import os
import platform
import subprocess
from collections import Counter
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .recognition import ERROR_RATES, ErrorCounts, bootstrap_interval

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
    "pesq",
    "pystoi",
    "pyworld",
    "jiwer",
    "speechmos",
    "visqol-python",
    "resemblyzer",
)
RESEMBLANCE_METRIC = "estoi"  # of every clip, to tell whether decoded audio is of the original at all
LEAST_RESEMBLANCE = 0.3  # its mean; speech at 0.7 kbit/s has 0.6, random weights of four families 0.00 to 0.11


def summarize_codec(facts: dict, rows: list[dict], metrics: list[str]) -> dict:
    """The entry of one codec: its facts and the means over its clips, rows of `clips.parquet`."""
    done = [row for row in rows if row["error"] is None]
    entry = {
        **facts,
        "measured_bitrate": _ratio(sum(row["payload_bits"] for row in done), sum(row["seconds"] for row in done)),
        "num_clips": len(done),
        "failed_clips": {row["clip"]: row["error"] for row in rows if row["error"] is not None},
        "delay_seconds": float(np.median([row["delay_seconds"] for row in done])) if done else None,
        "length_difference": max((abs(row["length_difference"]) for row in done), default=None),
        "num_above_full_scale": sum(row["peak"] > 1 for row in done),
        "resembles_original": _resembles(done),
        "metrics": {name: _mean(name, done) for name in metrics},
    }
    return {**entry, "warnings": list(_warnings(entry))}


def summarize_recognition(rows: list[dict]) -> dict:
    """What was recognised wrongly, in all clips and by language.

    Args:
        rows: of clips, with `error` and, where the codec did not fail, `language`, `recognized` and the counts of
            `clip_errors`.
    """
    done = [row for row in rows if row["error"] is None]
    languages = sorted({row["language"] for row in done if row["language"]})
    return {
        **_error_rates(done),
        "num_failed": sum(row["recognized"] is None for row in done),
        "by_language": {name: _error_rates([row for row in done if row["language"] == name]) for name in languages},
    }


def machine() -> dict:
    """Processor, cores, operating system and Python of this machine."""
    return {
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that compute something, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the source tree the package runs from, with "-dirty" where it was changed; `None` if installed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _mean(name: str, rows: list[dict]) -> dict:
    values = [row[name] for row in rows if row[name] is not None]
    reasons = Counter(row["failures"][name] for row in rows if row[name] is None)
    return {
        "mean": float(np.mean(values)) if values else None,
        "standard_error": float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
        "num_clips": len(values),
        "num_failed": len(rows) - len(values),
        "reasons": dict(reasons),
    }


def _error_rates(rows: list[dict]) -> dict[str, dict | None]:
    rates = {}
    for name in ERROR_RATES:
        counts = [row[name] for row in rows if row[name] is not None]
        total = sum(counts, ErrorCounts())
        facts = {"rate": total.rate, "interval": bootstrap_interval(counts), "num_clips": len(counts)}
        rates[name] = {**facts, **asdict(total)} if counts else None
    return rates


def _resembles(rows: list[dict]) -> bool | None:
    """Whether decoded audio is of the originals at all; `None` where no clip can tell."""
    values = [row["resemblance"] for row in rows if row["resemblance"] is not None]
    return bool(np.mean(values) >= LEAST_RESEMBLANCE) if values else None


def _warnings(entry: dict):
    if entry["resembles_original"] is False:
        yield (
            "What is decoded is not the speech that was encoded, as with random or foreign weights: these figures say "
            "nothing about the quality of the architecture."
        )
    if entry["failed_clips"]:
        yield f"Clips that failed and are left out of the means: {len(entry['failed_clips'])}."
    incomplete = [name for name, metric in entry["metrics"].items() if metric["num_failed"]]
    if incomplete:
        yield f"The means of {', '.join(incomplete)} leave out clips on which the metric failed."
    if entry["num_above_full_scale"]:
        yield f"Clips whose decoded audio exceeds full scale, measured unclipped: {entry['num_above_full_scale']}."


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
