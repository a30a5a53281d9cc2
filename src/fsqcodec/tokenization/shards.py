"""The output: one parquet file for each part of the source, and what its schema says of the codec.

A shard's metadata has, as JSON, the facts of the codec under `fsqcodec` and the rows that failed under
`fsqcodec_errors`, so that a shard appears with its errors or not at all.
"""

import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import atomic_path
from ..codecs import Codec
from ..models.pretrained import PreTrainedCodec
from ..packing import token_digest
from .encoding import EncodedRow

FACTS_KEY, ERRORS_KEY = b"fsqcodec", b"fsqcodec_errors"
PACKAGES = ("fsqcodec", "torch", "transformers", "numpy", "soundfile", "soxr")  # those that tokens come from
ERRORS_SCHEMA = pa.schema({"shard": pa.int32(), "row": pa.int64(), "name": pa.string(), "reason": pa.string()})


def codec_facts(codec: Codec) -> dict:
    """What tokens of the codec mean: `codec` (its name), `revision`, `token_digest`, `sampling_rate` (Hz),
    `frame_rate` (Hz), `codebook_sizes`, `bitrate` (bits per second), `versions` of the packages that made them.

    `token_digest` is that of `fsqcodec.packing` for codecs of this package, else `Codec.digest`. Raises `ValueError`
    for a codec without tokens.
    """
    if not codec.codebook_sizes:
        raise ValueError(f"{codec.name} is a classical codec, without tokens: a model is wanted")
    return {
        "codec": codec.name,
        "revision": codec.revision,
        "token_digest": token_digest(codec.model) if isinstance(codec.model, PreTrainedCodec) else codec.digest,
        "sampling_rate": codec.input_sampling_rate,
        "frame_rate": codec.frame_rate,
        "codebook_sizes": codec.codebook_sizes,
        "bitrate": codec.bitrate,
        "versions": {package: version(package) for package in PACKAGES},
    }


def shard_schema(source: pa.Schema, facts: dict) -> pa.Schema:
    """The source's columns and `audio_codes`, `num_frames`, `num_samples`: int32 codes in a list, for several codebooks
    in a list of one list for each. Raises `ValueError` where the source has such a column."""
    codes = pa.list_(pa.int32())
    if len(facts["codebook_sizes"]) > 1:
        codes = pa.list_(codes)
    added = pa.schema({"audio_codes": codes, "num_frames": pa.int64(), "num_samples": pa.int64()})
    taken = [name for name in source.names if name in added.names]
    if taken:
        raise ValueError(f"the source has a column {taken[0]}, which is what tokens are written to: rename it")
    return pa.schema([*source, *added], metadata={FACTS_KEY: json.dumps(facts)})


def write_shard(path: Path, schema: pa.Schema, encoded: Iterable[EncodedRow]):
    """Write rows in the order of their positions; the same rows make the same bytes. Codes are delta-encoded before
    zstd, which random ones need least space with of what every reader of parquet knows."""
    encoded = sorted(encoded, key=lambda each: each.position)
    rows = [_values(each, schema) for each in encoded if each.error is None]
    errors = [(each.position, each.row.name, each.error) for each in encoded if each.error is not None]
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({**schema.metadata, ERRORS_KEY: json.dumps(errors)}))
    codes = "audio_codes.list.element"
    if pa.types.is_list(schema.field("audio_codes").type.value_type):
        codes += ".list.element"
    dictionary = [name for name in schema.names if name != "audio_codes"]
    encoding = {"use_dictionary": dictionary, "column_encoding": {codes: "DELTA_BINARY_PACKED"}}
    with (
        atomic_path(path) as unfinished,
        pq.ParquetWriter(unfinished, table.schema, compression="zstd", **encoding) as writer,
    ):
        if rows:  # `datasets` can't read a row group without rows, but a file without row groups
            writer.write_table(table)


def read_errors(path: Path) -> list[tuple[int, str, str]]:
    """(row, name, reason) of what failed in a shard's part."""
    return [tuple(error) for error in json.loads(pq.read_schema(path).metadata[ERRORS_KEY])]


def _values(encoded: EncodedRow, schema: pa.Schema) -> dict:
    codes = encoded.codes
    is_flat = not pa.types.is_list(schema.field("audio_codes").type.value_type)
    return {
        **encoded.row.columns,
        "audio_codes": codes[0] if is_flat else list(codes),
        "num_frames": codes.shape[-1],
        "num_samples": encoded.num_samples,
    }
