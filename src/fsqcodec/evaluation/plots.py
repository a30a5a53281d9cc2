"""Pictures of a report: quality over rate, and spectrograms, as PNG bytes."""

import io
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

DPI = 110
WINDOW_SECONDS = 0.032
RANGE_DB = 80.0


def rate_quality_plot(summary: dict, metrics: dict[str, str]) -> bytes:
    """Mean of each metric over the measured rate, one panel each, codecs labelled; bars are standard errors.

    Args:
        summary: of `fsqcodec evaluate`.
        metrics: titles by name.
    """
    figure = Figure(figsize=(4.6 * len(metrics), 3.6), layout="constrained")
    colours = matplotlib.colormaps["tab10"]
    families = list(dict.fromkeys(_family(codec) for codec in summary["codecs"]))
    for axes, (metric, title) in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics.items()):
        for number, family in enumerate(families):
            points = sorted(
                (
                    entry["measured_bitrate"] / 1000,
                    _mean(entry, metric),
                    entry["metrics"][metric]["standard_error"],
                    name,
                )
                for name, entry in summary["codecs"].items()
                if _family(name) == family and _mean(entry, metric) is not None
            )
            if not points:
                continue
            rates, means, errors, names = zip(*points)
            bars = [error or 0 for error in errors]
            axes.errorbar(
                rates, means, bars, marker="o", markersize=4, capsize=2, color=colours(number % 10), linewidth=1
            )
            for rate, mean, name in zip(rates, means, names):
                axes.annotate(_short(name), (rate, mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        ticks = [rate for rate in (0.5, 1, 2, 3, 4, 6, 8, 12, 24, 48) if _within(rate, axes.get_xlim())]
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.minorticks_off()
        axes.margins(x=0.18, y=0.12)
        axes.set(xlabel="kbit/s of payload", title=title)
        axes.grid(alpha=0.3)
    return _png(figure)


def spectrogram_plot(audio: list[tuple[str, np.ndarray]], sampling_rate: int) -> bytes:
    """Spectrograms above each other, one for each title and waveform `(num_samples,)`, at `sampling_rate` Hz.

    All have the scale of the first: dB relative to its loudest point.
    """
    figure = Figure(figsize=(9, 1.9 * len(audio)), layout="constrained")
    levels = [_levels_db(waveform, sampling_rate) for _, waveform in audio]
    loudest = levels[0].max()
    rows = np.atleast_1d(figure.subplots(len(audio), 1, sharex=True))
    for axes, (title, waveform), level in zip(rows, audio, levels):
        extent = (0, len(waveform) / sampling_rate, 0, sampling_rate / 2000)
        axes.imshow(level - loudest, origin="lower", aspect="auto", extent=extent, vmin=-RANGE_DB, vmax=0, cmap="magma")
        axes.set_ylabel("kHz")
        axes.set_title(title, fontsize=9, loc="left")
    rows[-1].set_xlabel("seconds")
    return _png(figure)


def _levels_db(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """`(num_bins, num_frames)`."""
    window_length = 2 ** round(math.log2(WINDOW_SECONDS * sampling_rate))
    padded = np.pad(audio, window_length // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[:: window_length // 4]
    return 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window_length))).T + 1e-8)


def _mean(entry: dict, metric: str) -> float | None:
    return entry["metrics"].get(metric, {}).get("mean")


def _family(codec: str) -> str:
    return codec.rpartition(":")[0] or codec


def _short(codec: str) -> str:
    return codec.rstrip("/").rpartition("/")[2]


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
