"""How long a codec makes wait, what it looks at and what it costs: what `fsqcodec latency` does.

`latency.json` in the output folder holds

fsqcodec_version, commit, command, machine (with threads and device), versions
model      as given; weights ("loaded", or "random" for a preset), revision, digest of all weights, token_digest,
           sampling_rate (Hz, in and out), frame_rate, codebook_sizes
algorithmic_latency_ms
encoder, decoder
           derived (from the configuration), gradients, changes (see `evaluation.dependence`), for the decoder also
           gradients_without_statistics; each with farthest, share_90 and share_99: samples and ms of look-back and
           look-ahead that hold all, 90 % and 99 % of the energy. `limited_by_clip`: it looks back to the start of the
           clip, so maybe further. `share_outside_derived`: of the energy
disagreements
           sentences: what was measured outside of what the configuration derives
cost       num_parameters, multiply_accumulates, real_time_factors, memory (bytes), see `evaluation.cost`; clip_seconds

and null what another codec than `CodecModel` does not tell. `latency.png` shows encoder and decoder.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from ..atomic import atomic_path
from ..counting import multiply_accumulates, num_parameters
from ..models.configuration_codec import CodecConfig
from ..packing import token_digest
from ..presets import PRESETS
from .cost import load_codec_or_preset, peak_memory, real_time_factors
from .dependence import Dependence, decoder_changes, decoder_gradients, encoder_changes, encoder_gradients
from .summary import commit, machine, versions

CLIP_SECONDS = 10.0  # of the clip that speed and multiply-accumulates are of
MEMORY_SECONDS = (10.0, 60.0)
SHARES = {"farthest": 1.0, "share_90": 0.9, "share_99": 0.99}
NUM_BINS = 240  # of the plot's wide panels
ZOOM_FRAMES = 3  # beside the look-ahead, in the plot's narrow panels
LOWEST_SHOWN = 1e-12  # of the highest


def measure_latency(model: str | os.PathLike, output_dir: str | os.PathLike, device: str | None = None) -> dict:
    """Measure a codec and write `latency.json` and `latency.png` to `output_dir`; takes minutes.

    Args:
        model: a preset, measured with random weights, or what `load_codec` takes: a folder or Hub id.
        output_dir: made if needed; files of an earlier run are replaced.
        device: such as "cuda:0"; the GPU where there is one.

    Returns:
        the report, described above.

    Raises:
        OSError: no such model.
        ValueError: a codec without tokens, a device that can't be used.
        RuntimeError: memory can't be measured.
    """
    name, output_dir = os.fspath(model), Path(output_dir)
    codec = load_codec_or_preset(name, device)
    if codec.model is None:
        raise ValueError(f"{name} has no tokens: latency is measured of codecs that are models")
    own_model = codec.model if codec.streams_frames else None
    measured = {
        "encoder": {"changes": lambda: encoder_changes(codec)},
        "decoder": {"changes": lambda: decoder_changes(codec)},
    }
    costs = {
        "num_parameters": lambda: num_parameters(codec.model),
        "multiply_accumulates": lambda: own_model and multiply_accumulates(own_model.config, CLIP_SECONDS),
        "real_time_factors": lambda: real_time_factors(codec, CLIP_SECONDS),
        "memory": lambda: {f"{seconds:g} s": peak_memory(name, seconds, device) for seconds in MEMORY_SECONDS},
    }
    if own_model is not None:
        measured["encoder"]["gradients"] = lambda: encoder_gradients(own_model)
        measured["decoder"]["gradients"] = lambda: decoder_gradients(own_model)
        measured["decoder"]["gradients_without_statistics"] = lambda: decoder_gradients(own_model, hold_statistics=True)
    with tqdm(total=sum(map(len, (*measured.values(), costs)))) as progress:
        dependences = {part: _run(part, functions, progress) for part, functions in measured.items()}
        cost = _run("cost", costs, progress)
    derived = _derived(own_model.config) if own_model is not None else {"encoder": None, "decoder": None}
    report = {
        "fsqcodec_version": version("fsqcodec"),
        "commit": commit(),
        "command": shlex.join(
            ["fsqcodec", "latency", name, "--output", os.fspath(output_dir)] + (["--device", device] if device else [])
        ),
        "machine": {**machine(), "threads": torch.get_num_threads(), "device": _device_name(codec.model.device)},
        "versions": versions(),
        "model": name,
        "weights": "random" if name in PRESETS else "loaded",
        "revision": codec.revision,
        "digest": codec.digest,
        "token_digest": own_model and token_digest(own_model),
        "input_sampling_rate": codec.input_sampling_rate,
        "output_sampling_rate": codec.output_sampling_rate,
        "frame_rate": codec.frame_rate,
        "codebook_sizes": codec.codebook_sizes,
        "algorithmic_latency_ms": own_model and 1000 * own_model.config.algorithmic_latency,
        **{part: _summarize(dependences[part], derived[part]) for part in dependences},
        "disagreements": list(_disagreements(dependences, derived)),
        "cost": {"clip_seconds": CLIP_SECONDS, **cost},
    }
    with atomic_path(output_dir / "latency.png") as path:
        _plot(report, dependences, derived).savefig(path, format="png", dpi=110)
    with atomic_path(output_dir / "latency.json") as path:
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def latency_table(report: dict) -> str:
    """A report of `measure_latency` as lines of text."""
    return "\n".join(f"{name:<28}{value}".rstrip() for name, value in _table_rows(report))


def _run(part: str, functions: dict, progress: tqdm) -> dict:
    results = {}
    for name, function in functions.items():
        progress.set_description(f"{part}: {name.replace('_', ' ')}")
        results[name] = function()
        progress.update()
    return results


def _derived(config: CodecConfig) -> dict[str, tuple[int, int]]:
    """Samples of look-back and look-ahead."""
    return {
        "encoder": (config.encoder_context_samples, config.encoder_lookahead_samples),
        "decoder": (config.decoder_context_samples, config.decoder_lookahead_samples),
    }


def _summarize(dependences: dict[str, Dependence], derived: tuple[int, int] | None) -> dict:
    sampling_rate = dependences["changes"].sampling_rate
    summary = {"derived": derived and _reach(derived, sampling_rate)}
    for name, dependence in dependences.items():
        summary[name] = {
            **{share: _reach(dependence.reach(SHARES[share]), sampling_rate) for share in SHARES},
            "limited_by_clip": dependence.reach()[0] == -dependence.first,
            "share_outside_derived": derived and dependence.share_outside(*derived),
        }
    return summary


def _reach(samples: tuple[int, int], sampling_rate: int) -> dict[str, float]:
    look_back, look_ahead = samples
    return {
        "look_back_samples": look_back,
        "look_back_ms": 1000 * look_back / sampling_rate,
        "look_ahead_samples": look_ahead,
        "look_ahead_ms": 1000 * look_ahead / sampling_rate,
    }


def _disagreements(dependences: dict, derived: dict) -> Iterator[str]:
    """The clip's statistics, through which the decoder hears the whole clip, are not derived, and so left out."""
    for part, kinds in {"encoder": ("gradients", "changes"), "decoder": ("gradients_without_statistics",)}.items():
        for kind in kinds:
            if derived[part] is None or dependences[part][kind].share_outside(*derived[part]) == 0:
                continue
            found, expected = dependences[part][kind].reach(), derived[part]
            yield (
                f"{part}, {kind.replace('_', ' ')}: {found[0]} samples back and {found[1]} ahead, the configuration "
                f"derives at most {expected[0]} and {expected[1]}"
            )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _table_rows(report: dict) -> Iterator[tuple[str, str]]:
    hardware, cost = report["machine"], report["cost"]
    yield "model", f"{report['model']}{', random weights' if report['weights'] == 'random' else ''}"
    yield "token digest" if report["token_digest"] else "digest", report["token_digest"] or report["digest"]
    yield "machine", f"{hardware['processor']}, {hardware['threads']} threads, device {hardware['device']}"
    if report["algorithmic_latency_ms"] is not None:
        yield "algorithmic latency", f"{report['algorithmic_latency_ms']:.1f} ms"
    yield "frame", f"{1000 / report['frame_rate']:.1f} ms"
    for part in ("encoder", "decoder"):
        yield "", ""
        yield part, f"{'look-back':>26}{'look-ahead':>24}"
        if report[part]["derived"]:
            yield "  derived, at most", _reach_columns(report[part]["derived"])
        for kind in ("gradients", "gradients_without_statistics", "changes"):
            if kind in report[part]:
                title = {"gradients_without_statistics": "without statistics"}.get(kind, kind)
                found = report[part][kind]
                marks = "  (the clip's start)" if found["limited_by_clip"] else ""
                yield f"  {title}, farthest", _reach_columns(found["farthest"]) + marks
                yield f"  {title}, 99 %", _reach_columns(found["share_99"])
    if report["algorithmic_latency_ms"] is not None:
        outside = report["decoder"]["gradients"]["share_outside_derived"]
        yield "  outside, by statistics", f"{100 * outside:.2g} % of the gradients' energy"
    yield "", ""
    yield "disagreements", "; ".join(report["disagreements"]) or "none"
    yield "parameters", ", ".join(f"{part} {number:,}" for part, number in cost["num_parameters"].items())
    if cost["multiply_accumulates"]:
        counts = ", ".join(f"{part} {number / 1e9:.2f} G" for part, number in cost["multiply_accumulates"].items())
        yield "multiply-accumulates", f"{counts} for {cost['clip_seconds']:g} s"
    factors = (
        f"{part} {factor['fastest']:.1f} ({factor['median']:.1f})" for part, factor in cost["real_time_factors"].items()
    )
    yield "times real time", f"{', '.join(factors)}: fastest turn (median), clips of {cost['clip_seconds']:g} s"
    for clip, memory in cost["memory"].items():
        parts = ", ".join(f"{part} {memory[part] / 2**20:.0f}" for part in ("load", "encode", "decode"))
        yield f"peak memory, {clip}", f"{parts} MiB, beside {memory['libraries'] / 2**20:.0f} MiB of libraries"


def _reach_columns(reach: dict) -> str:
    return "".join(
        f"{reach[f'look_{side}_samples']:>12} {reach[f'look_{side}_ms']:>10.1f} ms" for side in ("back", "ahead")
    )


def _plot(report: dict, dependences: dict, derived: dict) -> Figure:
    """Encoder above decoder; on the left all that was measured, on the right what is near the frame."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    weights = ", random weights" if report["weights"] == "random" else ""
    figure.suptitle(f"{report['model']}{weights}", fontsize=12)
    titles = {"encoder": "audio that a token depends on", "decoder": "tokens that a frame's audio depends on"}
    rows = figure.subplots(2, 2, width_ratios=(3, 2), sharey="row")
    for (wide, near), (part, title) in zip(rows, titles.items()):
        kinds = {kind: found for kind, found in dependences[part].items() if kind.startswith("gradients")}
        kinds = kinds or dependences[part]
        kind, shown = next(iter(kinds.items()))
        look_ahead = (derived[part] or shown.reach(SHARES["share_99"]))[1]
        beside = look_ahead + ZOOM_FRAMES * shown.frame_length
        stop = shown.first + len(shown.energy) * shown.step_length
        rate = shown.sampling_rate
        _draw(wide, kinds, derived[part], (shown.first, stop), samples_per_unit=rate)
        _draw(near, kinds, derived[part], (-beside, shown.frame_length + beside), samples_per_unit=rate / 1000)
        wide.set_title(f"{part.capitalize()}: {title} ({kind})", loc="left", fontsize=10)
        near.set_title("the same, near the frame", loc="left", fontsize=10)
        wide.set(xlabel="seconds after the frame's start", ylabel="share of the energy per ms")
        near.set(xlabel="milliseconds after the frame's start")
    handles, labels = rows[1, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw(
    axes: Axes,
    kinds: dict[str, Dependence],
    window: tuple[int, int] | None,
    limits: tuple[int, int],
    samples_per_unit: float,
):
    """Energy between two samples, `limits`, relative to the frame; `samples_per_unit` is of the axis. The first kind is
    what the 99 % are of."""
    main, *others = kinds.values()
    if window is not None:
        span = (-window[0], main.frame_length + window[1])
        axes.axvspan(*np.divide(span, samples_per_unit), color="#dfe9f5", label="window the configuration derives")
    axes.axvspan(0, main.frame_length / samples_per_unit, color="#f2a33a", label="the frame")
    edges, density = _density(main, limits)
    axes.stairs(density, edges / samples_per_unit, color="#16365c", linewidth=1.2, label="energy")
    for other in others:
        edges, other_density = _density(other, limits)
        label = "energy, statistics of the clip held"
        axes.stairs(other_density, edges / samples_per_unit, color="#c0392b", linewidth=0.8, label=label)
    look_back, look_ahead = main.reach(SHARES["share_99"])
    region = np.divide((-look_back, main.frame_length + look_ahead), samples_per_unit)
    axes.plot(
        region,
        (0.97, 0.97),
        transform=axes.get_xaxis_transform(),
        color="#2a9d57",
        linewidth=4,
        solid_capstyle="butt",
        label="99 % of the energy",
    )
    visible = density[density > 0]
    if len(visible):
        axes.set_yscale("log")
        axes.set_ylim(max(visible.min() / 3, visible.max() * LOWEST_SHOWN), 10 * visible.max())
    axes.set_xlim(*np.divide(limits, samples_per_unit))
    axes.grid(alpha=0.3)


def _density(dependence: Dependence, limits: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of bins in samples, whole steps, and the share of all energy per millisecond in each; NaN where none is."""
    step = dependence.step_length
    start, stop = limits
    width = step * math.ceil((stop - start) / (NUM_BINS * step))
    edges = np.arange(dependence.first + (start - dependence.first) // step * step, stop + width, width)
    positions = dependence.first + step * np.arange(len(dependence.energy))
    energy, _ = np.histogram(positions, edges, weights=dependence.energy)
    density = energy / (dependence.energy.sum() or 1) * dependence.sampling_rate / (1000 * width)
    return edges, np.where(density > 0, density, np.nan)
