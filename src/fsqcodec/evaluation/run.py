"""Codecs on clips: what `fsqcodec evaluate` does.

Every batch of clips that is done is a line of `journal.jsonl` in the output folder, so a run that was killed goes on
where it stopped and ends with the same tables; the journal goes when `clips.parquet` and `summary.json` are written.

A codec of two channels gets clips with both of them, mono clips twice, and every metric is the mean over the channels.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from ..atomic import atomic_path
from ..audio import resample, write_audio
from ..batches import batches_by_length
from ..codecs import Codec, load_codec, model_digest
from ..data import Clip, find_clips
from .alignment import MAX_DELAY_SECONDS, align
from .journal import Journal
from .learned_metrics import LEARNED_METRICS
from .metrics import METRICS, compute_metrics
from .recognition import ERROR_RATES, ErrorCounts, clip_errors, load_recognizer, recognize
from .robustness import robustness
from .summary import RESEMBLANCE_METRIC, commit, machine, summarize_codec, summarize_recognition, versions
from .token_statistics import token_statistics

DEFAULT_METRICS = (
    "pesq_wb",
    "pesq_nb",
    "stoi",
    "estoi",
    "si_sdr_db",
    "stft_distance",
    "mel_distance",
    "mel_distance_multiscale",
    "f0_correlation",
    "voicing_error",
)
NUM_EXAMPLES = 5  # clips whose audio is kept for the report, and on which robustness is measured
EXAMPLE_SECONDS = 15.0  # of each, at most


@dataclass(frozen=True)
class Settings:
    """What a run is asked for; a journal of other settings can't be gone on with.

    Args:
        sources: where the clips are, see `fsqcodec.data`.
        codecs: names for `fsqcodec.codecs.load_codec`.
        metrics: names of `METRICS` and `LEARNED_METRICS`.
        channels: of clips with more channels than one of the codecs has, `"mix"` gives it the channels' mean,
            `"refuse"` reports the clip as bad.
        recognizer: folder or id of a speech recognition model, for WER and CER of clips that have a transcript, and
            dWER and dCER of all clips.
    """

    sources: tuple[str, ...]
    codecs: tuple[str, ...]
    metrics: tuple[str, ...] = DEFAULT_METRICS
    channels: Literal["mix", "refuse"] = "refuse"
    recognizer: str | None = None

    def __post_init__(self):
        for name in ("sources", "codecs", "metrics"):  # each once
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))


def evaluate(
    settings: Settings, output_dir: str | os.PathLike, *, device: str | None = None, command: str | None = None
) -> dict:
    """Encode and decode every clip with every codec, measure, and write `clips.parquet`, `summary.json` and `audio/`.

    A clip is compared at its own sampling rate: what goes into a codec and comes out of it is resampled. Clips that
    can't be read are reported and left out for all codecs. A metric that fails on a clip is null there, with its
    reason, counted, and left out of the mean; so is a clip on which the recognizer fails.

    Args:
        output_dir: an unfinished run of the same settings in it is finished; a finished one is replaced.
        device: of the models, such as "cuda:0"; by default the GPU where there is one.
        command: how the run can be made again, for the summary.

    Returns:
        the summary, described in `fsqcodec.evaluation.summary`.

    Raises:
        FileNotFoundError: a source, codec or program that is not there.
        ValueError: an unknown metric or codec, no clip that can be read, a folder with an unfinished run of others.
    """
    unknown = [name for name in settings.metrics if name not in METRICS | LEARNED_METRICS]
    if unknown:
        raise ValueError(f"there is no metric {unknown[0]!r}: there are {', '.join(METRICS | LEARNED_METRICS)}")
    run = _Run(settings, Path(output_dir), device)
    num_passes = len(settings.codecs) + (run.recognizer is not None)
    with tqdm(total=math.ceil(num_passes * run.seconds), unit="s of audio") as progress:
        if run.recognizer is not None:
            progress.set_description("recordings")
            for seconds in run.recognize_originals():
                progress.update(seconds)
        for name in settings.codecs:
            progress.set_description(name)
            for seconds in run.evaluate_codec(name):
                progress.update(seconds)
    summary = {
        "fsqcodec_version": version("fsqcodec"),
        "commit": commit(),
        "command": command,
        "machine": machine(),
        "versions": run.header["versions"],
        "settings": run.header["settings"],
        "data": run.header["data"],
        "examples": [run.example(number) for number in range(len(run.examples))],
        "recognition": run.summarize_originals(),
        "codecs": {name: run.summarize(name) for name in settings.codecs},
    }
    rows = [row for name in settings.codecs for row in run.rows_with_errors(name)]
    table = _table(rows, settings.metrics, with_recognition=run.recognizer is not None)
    with atomic_path(run.output_dir / "clips.parquet") as path:
        pa.parquet.write_table(table, path, compression="zstd")
    with atomic_path(run.output_dir / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    run.journal.remove()
    return summary


class _Run:
    """The clips, the codecs' results so far, and how to get the next one."""

    def __init__(self, settings: Settings, output_dir: Path, device: str | None):
        self.settings, self.output_dir, self.device = settings, output_dir, device
        self.recognizer = None if settings.recognizer is None else load_recognizer(settings.recognizer, device)
        described = {name: _facts_and_channels(name) for name in settings.codecs}
        all_channels = [channels for _, channels in described.values()]
        self.num_channels = max(all_channels)
        self.clips = _readable_clips(settings, min(all_channels))
        self.durations = {each.clip: each.seconds for each in self.clips.readable}
        self.seconds = sum(self.durations.values())
        self.batches = list(batches_by_length(self.durations))
        self.examples = [self.clips.readable[i].clip for i in _spread(len(self.clips.readable), NUM_EXAMPLES)]
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
        self.header = {
            "settings": asked,
            "data": self.clips.facts(settings),
            "codecs": {name: facts for name, (facts, _) in described.items()},
            "versions": versions(),
        }
        if self.recognizer is not None:
            self.header["recognizer"] = self._recognizer_facts()
        self.journal = Journal(output_dir / "journal.jsonl", self.header)
        if not self.journal.has_pieces:
            self._begin()

    def evaluate_codec(self, name: str) -> Iterator[float]:
        """Do what is not in the journal yet; yields the seconds of audio of each batch that is done."""
        keys = [f"{name} batch {number}" for number in range(len(self.batches))]
        if all(key in self.journal for key in [*keys, f"{name} tokens"]):
            yield sum(row["seconds"] for row in self.rows(name))
            return
        codec = load_codec(name, self.device)
        for key, batch in zip(keys, self.batches):
            if key not in self.journal:
                self.journal.add(key, list(self._evaluate_batch(codec, batch)))
            yield sum(row["seconds"] for row in self.journal[key])
        if f"{name} tokens" not in self.journal:
            self.journal.add(f"{name} tokens", self._token_facts(codec))

    def example(self, number: int) -> dict:
        """An example clip, and where its audio lies below the output folder: the original's, each codec's."""
        clip = self.examples[number]
        failed = {
            name
            for name in self.settings.codecs
            for row in self.rows(name)
            if row["clip"] == clip.name and row["error"]
        }
        decoded = {name: self._decoded_path(number, name) for name in self.settings.codecs if name not in failed}
        return {"clip": clip.name, "original": self._original_path(number), "decoded": decoded}

    def recognize_originals(self) -> Iterator[float]:
        """Recognise the clips themselves, those that are not in the journal yet; yields as `evaluate_codec`."""
        for number, batch in enumerate(self.batches):
            if f"originals batch {number}" not in self.journal:
                found = [self._recognize(clip, *self._read(clip, self.num_channels)) for clip in batch]
                self.journal.add(f"originals batch {number}", found)
            yield sum(self.durations[clip] for clip in batch)

    def rows(self, name: str) -> list[dict]:
        """The rows of `clips.parquet` of one codec, as they are in the journal."""
        rows = (row for number in range(len(self.batches)) for row in self.journal[f"{name} batch {number}"])
        return sorted(rows, key=lambda row: row["clip"])

    def rows_with_errors(self, name: str) -> list[dict]:
        """These rows with what was recognised wrongly, where a recognizer was named."""
        rows = self.rows(name)
        return rows if self.recognizer is None else [row | self._errors(row) for row in rows]

    def summarize(self, name: str) -> dict:
        """The codec's entry in `summary.json`."""
        rows = self.rows_with_errors(name)
        means = summarize_codec(self.header["codecs"][name], rows, self.settings.metrics)
        recognition = None if self.recognizer is None else summarize_recognition(rows)
        return {**means, **self.journal[f"{name} tokens"], "recognition": recognition}

    def summarize_originals(self) -> dict | None:
        """Who recognises speech, and its errors on the clips themselves."""
        if self.recognizer is None:
            return None
        rows = [{"clip": name, "error": None, **found} for name, found in self._originals.items()]
        original = summarize_recognition([row | self._errors(row) for row in rows])
        facts = {key: self.header["recognizer"][key] for key in ("model", "revision", "digest")}
        return {**facts, "original": original}

    def _begin(self):
        """Remove what an earlier run wrote, and nothing else; write the examples' originals."""
        summary = self.output_dir / "summary.json"
        if summary.exists():
            earlier = json.loads(summary.read_text(encoding="utf-8"))["examples"]
            audio = [path for example in earlier for path in (example["original"], *example["decoded"].values())]
            for name in (*audio, "clips.parquet", "report.md", "report.html", "summary.json"):
                (self.output_dir / name).unlink(missing_ok=True)
        for number, clip in enumerate(self.examples):
            self._write_example(self._original_path(number), *self._read(clip, self.num_channels))

    def _evaluate_batch(self, codec: Codec, batch: list[Clip]) -> Iterator[dict]:
        originals = [self._read(clip, codec.num_channels) for clip in batch]
        for clip, (audio, sampling_rate), result in zip(batch, originals, _round_trips(codec, originals)):
            row = {"codec": codec.name, "clip": clip.name, "seconds": audio.shape[-1] / sampling_rate}
            row |= {"sampling_rate": sampling_rate, "error": None, "failures": {}}
            if isinstance(result, Exception):
                yield {**row, "error": str(result) or type(result).__name__}
                continue
            codes, decoded = result
            decoded = resample(decoded, codec.output_sampling_rate, sampling_rate)
            if clip in self.examples:
                path = self._decoded_path(self.examples.index(clip), codec.name)
                self._write_example(path, decoded[..., : audio.shape[-1]], sampling_rate)
            aligned = align(audio, decoded, sampling_rate, MAX_DELAY_SECONDS if codec.keeps_waveform else 0.0)
            names = dict.fromkeys((*self.settings.metrics, RESEMBLANCE_METRIC))
            values, reasons = compute_metrics(aligned.reference, aligned.estimate, sampling_rate, names)
            reasons |= {metric: "infinite" for metric, value in values.items() if math.isinf(value)}
            values = {metric: None if metric in reasons else value for metric, value in values.items()}
            if self.recognizer is not None:
                row |= self._recognize(clip, decoded, sampling_rate)
            yield {
                **row,
                "payload_bits": codec.num_bits(codes, row["seconds"]),
                "delay_seconds": aligned.delay_samples / sampling_rate,
                "length_difference": aligned.length_difference,
                "peak": float(np.abs(decoded).max()),
                "failures": {metric: reasons[metric] for metric in self.settings.metrics if metric in reasons},
                "audio_codes": codes.tolist() if codec.codebook_sizes else None,
                "resemblance": values[RESEMBLANCE_METRIC],
                **{metric: values[metric] for metric in self.settings.metrics},
            }

    def _token_facts(self, codec: Codec) -> dict:
        """What the codes of all clips and the tokens of the examples say, of a codec that has tokens."""
        codes = [np.array(row["audio_codes"]) for row in self.rows(codec.name) if row["error"] is None]
        if not codec.codebook_sizes or not codes:
            return {"tokens": None, "robustness": None}
        examples = [
            resample(*self._read(clip, codec.num_channels), codec.input_sampling_rate)[
                ..., : round(EXAMPLE_SECONDS * codec.input_sampling_rate)
            ]
            for clip in self.examples
        ]
        tokens = token_statistics(codes, codec.codebook_sizes, codec.frame_rate, codec.quantization_levels)
        try:
            return {"tokens": tokens, "robustness": robustness(codec, examples)}
        except ValueError as error:  # examples that are too short for it, or that the codec can't take
            return {"tokens": tokens, "robustness": None, "no_robustness": str(error)}

    def _recognize(self, clip: Clip, audio: np.ndarray, sampling_rate: int) -> dict[str, str | None]:
        """Columns of a row: what is recognised in the mean of the channels, or why nothing could be."""
        audio = np.atleast_2d(audio).mean(axis=0)
        try:
            text = recognize(audio, sampling_rate, self.recognizer, clip.language)
        except Exception as error:  # such as clips that are too short for a model, which must not end a long run
            return {"recognized": None, "recognition_failure": str(error) or type(error).__name__}
        return {"recognized": text, "recognition_failure": None}

    def _recognizer_facts(self) -> dict:
        """What the texts depend on, beside the audio."""
        model = self.recognizer.model
        languages = [(each.clip.name, each.clip.language) for each in self.clips.readable]
        return {
            "model": model.name_or_path,
            "revision": getattr(model.config, "_commit_hash", None),
            "digest": model_digest(model),
            "languages": _digest(languages),
        }

    def _errors(self, row: dict) -> dict:
        """Columns of a row: what was said, in which language, recognised in the clip itself, and recognised wrongly."""
        clip, original = self._clips_by_name[row["clip"]], self._originals[row["clip"]]["recognized"]
        known = {"transcript": clip.transcript, "language": clip.language, "recognized_original": original}
        return known if row["error"] else known | clip_errors(clip.transcript, original, row["recognized"])

    @cached_property
    def _clips_by_name(self) -> dict[str, Clip]:
        return {each.clip.name: each.clip for each in self.clips.readable}

    @cached_property
    def _originals(self) -> dict[str, dict]:
        """What was recognised in each clip itself, once all of them are in the journal."""
        return {
            clip.name: found
            for number, batch in enumerate(self.batches)
            for clip, found in zip(batch, self.journal[f"originals batch {number}"])
        }

    def _read(self, clip: Clip, num_channels: int) -> tuple[np.ndarray, int]:
        return clip.read(self.settings.channels, num_channels)

    def _write_example(self, path: str, audio: np.ndarray, sampling_rate: int):
        write_audio(self.output_dir / path, audio[..., : round(EXAMPLE_SECONDS * sampling_rate)], sampling_rate)

    def _original_path(self, number: int) -> str:
        return f"audio/{number}/original.flac"

    def _decoded_path(self, number: int, codec: str) -> str:
        return f"audio/{number}/codec{self.settings.codecs.index(codec)}.flac"


@dataclass(frozen=True)
class _ReadableClip:
    clip: Clip
    seconds: float
    sampling_rate: int
    digest: str  # of its samples


@dataclass(frozen=True)
class _Clips:
    """Clips that can be read, and the reason by name for the others."""

    readable: list[_ReadableClip]
    bad: dict[str, str]

    def facts(self, settings: Settings) -> dict:
        texts = [(each.clip.name, each.digest, each.clip.transcript) for each in self.readable]
        return {
            "sources": list(settings.sources),
            "num_clips": len(self.readable),
            "seconds": sum(each.seconds for each in self.readable),
            "sampling_rates": sorted({each.sampling_rate for each in self.readable}),
            "digest": _digest(texts),
            "bad_clips": self.bad,
        }


def _readable_clips(settings: Settings, num_channels: int) -> _Clips:
    """The clips that a codec of so few channels can be given."""
    readable, bad = [], {}
    for clip in tqdm(find_clips(settings.sources), desc="reading", unit="clip", leave=False):
        try:
            audio, sampling_rate = clip.read(settings.channels, num_channels)
        except (ValueError, OSError) as error:
            bad[clip.name] = str(error)
        else:
            digest = hashlib.sha256(audio.tobytes()).hexdigest()
            readable.append(_ReadableClip(clip, audio.shape[-1] / sampling_rate, sampling_rate, digest))
    if not readable:
        reasons = "; ".join(list(bad.values())[:3])
        raise ValueError(f"there are no clips, or none that can be read: {reasons}")
    return _Clips(readable, bad)


def _facts_and_channels(name: str) -> tuple[dict, int]:
    """Of a codec that is in memory no longer than that."""
    codec = load_codec(name, "cpu")
    return _facts(codec), codec.num_channels


def _facts(codec: Codec) -> dict:
    return {
        "model": codec.name,
        "revision": codec.revision,
        "digest": codec.digest,
        "sampling_rate": codec.input_sampling_rate,
        "output_sampling_rate": codec.output_sampling_rate,
        "frame_rate": codec.frame_rate,
        "codebook_sizes": codec.codebook_sizes,
        "nominal_bitrate": codec.bitrate,
    }


def _round_trips(
    codec: Codec, originals: list[tuple[np.ndarray, int]]
) -> list[tuple[np.ndarray, np.ndarray] | Exception]:
    """Codes and decoded audio of each clip of a batch; if the batch fails, of each alone, or its error."""
    inputs = [resample(audio, sampling_rate, codec.input_sampling_rate) for audio, sampling_rate in originals]
    try:
        codes = codec.encode(inputs)
        decoded = codec.decode(codes)
        for original, audio in zip(inputs, decoded):
            if audio.shape[:-1] != original.shape[:-1] or not audio.size or not np.isfinite(audio).all():
                raise ValueError(f"{codec.name} decoded {audio.shape} with NaN, infinite or no samples")
        return list(zip(codes, decoded))
    except Exception as error:  # whatever a codec raises on one clip must not end a run over thousands
        if len(originals) == 1:
            return [error]
        return [_round_trips(codec, [original])[0] for original in originals]


def _digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _table(rows: list[dict], metrics: tuple[str, ...], with_recognition: bool) -> pa.Table:
    counts = {name: [f"{name}_{field.name}" for field in fields(ErrorCounts)] for name in ERROR_RATES}
    recognition = {name: pa.string() for name in ("language", "recognized_original", "recognition_failure")}
    recognition |= {column: pa.int32() for columns in counts.values() for column in columns}
    schema = pa.schema(
        {
            "codec": pa.string(),
            "clip": pa.string(),
            "seconds": pa.float64(),
            "sampling_rate": pa.int32(),
            "error": pa.string(),
            "payload_bits": pa.float64(),
            "delay_seconds": pa.float64(),
            "length_difference": pa.int32(),
            "peak": pa.float64(),
            **{metric: pa.float64() for metric in metrics},
            "failures": pa.string(),
            "transcript": pa.string(),
            "recognized": pa.string(),
            **(recognition if with_recognition else {}),
            "resemblance": pa.float64(),
            "audio_codes": pa.list_(pa.list_(pa.int32())),
        }
    )
    for name, columns in counts.items():
        rows = [row | dict(zip(columns, astuple(row[name]))) if row.get(name) else row for row in rows]
    rows = [{column: row.get(column) for column in schema.names} for row in rows]
    rows = [{**row, "failures": json.dumps(row["failures"])} for row in rows]
    return pa.Table.from_pylist(rows, schema=schema)


def _spread(num_items: int, num_wanted: int) -> list[int]:
    """Positions of at most `num_wanted` items spread evenly over all."""
    return sorted({round(i) for i in np.linspace(0, num_items - 1, min(num_wanted, num_items))})
