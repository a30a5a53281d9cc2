"""A whole corpus to shards of tokens: what `fsqcodec tokenize` does.

    OUTPUT/data/train-00000-of-00042.parquet ...    rows, see `fsqcodec.tokenization.shards`
    OUTPUT/errors.parquet                           shard, row (within its part of the source), name, reason
    OUTPUT/README.md                                data-set card
    OUTPUT/run.json                                 what was asked for; a run of something else is refused

Which rows are in which shard depends on the source and `shard_size` alone, and a shard is written whole or not at all.
So a run that was killed goes on with the shards that are missing, and any number of processes, machines and engines
write the same ones. Processes don't talk to each other: each takes every n-th part, and the one that finds all shards
there writes the rest.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ..atomic import atomic_path
from ..batches import MAX_BATCH_SIZE
from ..codecs import load_codec
from ..evaluation.journal import check_same_run
from .encoding import EncodedRow, encode_rows
from .shards import ERRORS_SCHEMA, codec_facts, read_errors, shard_schema, write_shard
from .sources import open_source

CARD_TEMPLATE = Path(__file__).parent / "card.md.jinja"


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Args:
        source: see `fsqcodec.tokenization.sources`.
        model: folder or Hub id of a codec, as `fsqcodec.codecs.load_codec` takes it.
        channels: of clips with more channels than the codec has, `"mix"` takes the mean, `"refuse"` lists the clip as
            an error.
        shard_size: rows of a shard, at most, where the source is not in tars or streamed.
        batch_size: clips that are encoded at once, at most. It does not change tokens.
        fail_fast: raise at the first clip that fails.
    """

    source: str
    model: str
    channels: Literal["mix", "refuse"] = "refuse"
    shard_size: int = 1000
    batch_size: int = MAX_BATCH_SIZE
    fail_fast: bool = False

    def __post_init__(self):
        for name in ("shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is wanted")
        if self.channels not in ("mix", "refuse"):
            raise ValueError(f"channels is {self.channels!r}: 'mix' or 'refuse' is wanted")


@dataclass(frozen=True)
class Result:
    """What is in the output folder when a process is done; what others still write is not.

    Args:
        num_shards, num_missing_shards: all of them, and those that are not there yet.
        num_rows, num_errors: clips with tokens, clips that failed.
        seconds: of audio in the rows.
        num_bytes: of the shards.
    """

    num_shards: int
    num_missing_shards: int
    num_rows: int
    num_errors: int
    seconds: float
    num_bytes: int


def tokenize(
    settings: Settings,
    output_dir: str | os.PathLike,
    *,
    engine: Literal["process", "ray"] = "process",
    address: str | None = None,
    device: str | None = None,
) -> Result:
    """Write the shards that are missing in `output_dir`, and when all are there the card and the errors.

    Args:
        engine: `"process"` works in this process, as one of those that `torchrun` or `accelerate launch` started if it
            was one of them; `"ray"` with an actor for each GPU, or else CPU, of a Ray cluster.
        address: of the Ray cluster; by default one is started on this machine.
        device: of the model, such as "cuda:0"; by default each process takes a GPU of its own where there are some.
            Ray's workers do.

    Raises:
        FileNotFoundError: no such source or model.
        ConnectionError: no Ray cluster at `address`.
        ValueError: a damaged source, a codec without tokens, a folder with another run, no clip that can be read, and
            with `fail_fast` the first clip that fails.
    """
    if engine not in ("process", "ray"):
        raise ValueError(f"engine is {engine!r}: 'process' or 'ray' is wanted")
    if engine == "process" and address is not None:
        raise ValueError(f"address {address!r} is of a Ray cluster: engine='ray' is wanted with it")
    if engine == "ray" and device is not None:
        raise ValueError(f"device {device!r} can't be given to Ray: each of its workers takes a GPU, or else a CPU")
    number, num_processes = _process() if engine == "process" else (0, 1)
    run = Run(settings, Path(output_dir), device or _own_device() if engine == "process" else "cpu")
    parts = [part for part in run.missing_parts() if part % num_processes == number]
    with _Progress(run, parts) as progress:
        if engine == "ray":
            from .ray_engine import tokenize_parts

            for done in tokenize_parts(run, parts, address):
                progress.add(**done)
                progress.end_part()
        else:
            for part in parts:
                for encoded in run.tokenize_part(part):
                    progress.add(1, encoded.num_samples / run.codec.input_sampling_rate, encoded.error is not None)
                progress.end_part()
    return run.finish()


class Run:
    """The parts of a source, a codec, and the folder for their shards. Raises as `tokenize`."""

    def __init__(self, settings: Settings, output_dir: Path, device: str | None):
        self.settings, self.output_dir = settings, output_dir
        self.source = open_source(settings.source, settings.shard_size)
        self.codec = load_codec(settings.model, device)
        self.facts = codec_facts(self.codec)
        self.schema = shard_schema(self.source.schema, self.facts)
        self._check_folder()

    def shard_path(self, part: int) -> Path:
        return self.output_dir / "data" / f"train-{part:05}-of-{len(self.source.parts):05}.parquet"

    def missing_parts(self) -> list[int]:
        """Numbers of the parts whose shard is not there."""
        return [part for part in range(len(self.source.parts)) if not self.shard_path(part).exists()]

    def tokenize_part(self, part: int) -> Iterator[EncodedRow]:
        """Encode a part's rows, and write its shard when all are done; yields each row as it is done."""
        settings, done = self.settings, []
        rows = self.source.parts[part].read()
        for encoded in encode_rows(self.codec, rows, settings.channels, settings.batch_size):
            if encoded.error is not None and settings.fail_fast:
                name, reason = encoded.row.name, encoded.error
                raise ValueError(reason if name in reason else f"{name}: {reason}")
            done.append(encoded)
            yield encoded
        write_shard(self.shard_path(part), self.schema, done)

    def finish(self) -> Result:
        """Write the errors and the card if all shards are there; what is there now."""
        errors, num_rows, num_samples, num_bytes = [], 0, 0, 0
        missing = self.missing_parts()
        for part in sorted(set(range(len(self.source.parts))) - set(missing)):
            path = self.shard_path(part)
            errors += [(part, *error) for error in read_errors(path)]
            lengths = pq.read_table(path, columns=["num_samples"])["num_samples"].to_pylist()
            num_rows += len(lengths)
            num_samples += sum(lengths)
            num_bytes += path.stat().st_size
        seconds = num_samples / self.codec.input_sampling_rate
        result = Result(len(self.source.parts), len(missing), num_rows, len(errors), seconds, num_bytes)
        if not missing:
            self._write_errors(errors)
            if not num_rows:
                reasons = "; ".join(reason for *_, reason in errors[:3])
                raise ValueError(f"{self.settings.source}: not one of {len(errors)} clips could be encoded: {reasons}")
            self._write_card(result)
            for path in (self.output_dir / "data").glob(".unfinished-*"):  # of processes that were killed
                path.unlink(missing_ok=True)
        return result

    def _check_folder(self):
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"{self.output_dir} is a file: a folder for the shards is wanted")
        path = self.output_dir / "run.json"
        asked = {name: getattr(self.settings, name) for name in ("source", "channels", "shard_size")}
        header = json.loads(json.dumps({**asked, "source_digest": self.source.digest, **self.facts}))
        if path.exists():
            check_same_run(path, json.loads(path.read_text(encoding="utf-8")), header)
            return
        if any((self.output_dir / "data").glob("*")):
            raise ValueError(f"{self.output_dir / 'data'} holds files that are not of this run: give another folder")
        with atomic_path(path) as unfinished:
            unfinished.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")

    def _write_errors(self, errors: list[tuple[int, int, str, str]]):
        rows = [dict(zip(ERRORS_SCHEMA.names, error)) for error in errors]
        with atomic_path(self.output_dir / "errors.parquet") as path:
            pq.write_table(pa.Table.from_pylist(rows, schema=ERRORS_SCHEMA), path, compression="zstd")

    def _write_card(self, result: Result):
        template = jinja2.Template(CARD_TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
        text = template.render(
            settings=self.settings, facts=self.facts, result=result, columns=self.source.schema.names
        )
        with atomic_path(self.output_dir / "README.md") as path:
            path.write_text(text, encoding="utf-8")


class _Progress:
    """A bar over the rows of some parts, or over the parts where it takes reading them to know how many rows there are,
    with hours of audio and the ratio to real time."""

    def __init__(self, run: Run, parts: list[int]):
        counts = [run.source.parts[part].num_rows for part in parts]
        self._counts_rows = None not in counts
        total = sum(counts) if self._counts_rows else len(parts)
        self._bar = tqdm(total=total, unit="clip" if self._counts_rows else "shard", desc="tokenize")
        self._seconds, self._num_errors, self._start = 0.0, 0, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def add(self, num_rows: int, seconds: float, num_errors: int):
        self._seconds += seconds
        self._num_errors += num_errors
        speed = self._seconds / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"{self._seconds / 3600:.2f} h of audio, {speed:.0f} x real time, {self._num_errors} errors", refresh=False
        )
        self._bar.update(num_rows if self._counts_rows else 0)

    def end_part(self):
        self._bar.update(0 if self._counts_rows else 1)


def _process() -> tuple[int, int]:
    """Which process this is and of how many, by what `torchrun` and `accelerate launch` set."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _own_device() -> str | None:
    if "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
