"""Many audio files to token files and back: what `fsqcodec encode` and `fsqcodec decode` do.

One bad file does not stop the others, nothing that exists is replaced unless asked, and no unfinished file is left.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from .audio import AUDIO_SUFFIXES, audio_seconds, read_audio, write_audio
from .codecs import load_feature_extractor, load_model
from .packing import Tokens, read_token_facts, read_tokens, token_digest, write_tokens

TOKEN_SUFFIX = ".safetensors"
MAX_BATCH_SIZE = 16
MAX_BATCH_SECONDS = 64.0  # padding included
Item = TypeVar("Item")


@dataclass
class FilesReport:
    """What became of the files: written outputs, outputs that existed and were kept, failures with their reason, and
    peaks above full scale."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    peaks: dict[Path, float] = field(default_factory=dict)  # of decoded audio that exceeds full scale, which is 1
    seconds: float = 0.0  # of audio in the written files


def load_fsq_codec(model: str | os.PathLike, device: str | None = None) -> PreTrainedModel:
    """`codecs.load_model`, for the codecs whose tokens a token file can hold: raises `ValueError` for another one."""
    loaded = load_model(model, device)
    if not hasattr(loaded.config, "token_parts"):
        raise ValueError(f"{model} is a {type(loaded).__name__}: a codec of fsqcodec is wanted")
    return loaded


def encode_files(
    inputs: Iterable[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    channels: Literal["mix", "refuse"] = "refuse",
    overwrite: bool = False,
    device: str | None = None,
) -> FilesReport:
    """Encode audio files, folders and globs to one token file each, in batches of similar length.

    Args:
        inputs: files, folders (searched for audio, their structure is kept) and globs.
        model: folder or Hub id.
        output_dir: where `<name>.safetensors` go.
        channels: `"mix"` takes the mean of stereo channels, `"refuse"` reports such files as failed.
        overwrite: replace outputs that exist.
        device: for example "cpu" or "cuda:0".

    Raises:
        FileNotFoundError: an input that is no file, folder or matching glob.
        ValueError: two inputs with the same output.
    """
    outputs = _plan(inputs, Path(output_dir), AUDIO_SUFFIXES, TOKEN_SUFFIX)
    report = FilesReport()
    codec = load_fsq_codec(model, device)
    extractor = load_feature_extractor(model, codec)
    digest, sampling_rate = token_digest(codec), codec.config.input_sampling_rate
    durations = {}
    for source in _without_existing(outputs, overwrite, report):
        with _failures_reported([source], report):
            durations[source] = audio_seconds(source)
    with tqdm(total=len(durations), unit="file", desc="encode") as progress:
        for batch in batches_by_length(durations):
            clips = {}
            for source in batch:
                with _failures_reported([source], report):
                    clip = read_audio(source, sampling_rate, channels)
                    extractor(clip, sampling_rate=sampling_rate)  # refuses what the model can't take
                    clips[source] = clip
            codes = {}
            with _failures_reported(clips, report):
                codes = _encode_batch(codec, extractor, clips)
            for source, clip_codes in codes.items():
                with _failures_reported([source], report):
                    tokens = Tokens(clip_codes, os.fspath(model), digest, sampling_rate, len(clips[source]))
                    write_tokens(outputs[source], tokens, codec.config)
                    report.written.append(outputs[source])
                    report.seconds += len(clips[source]) / sampling_rate
            progress.update(len(batch))
    return report


@torch.inference_mode()
def _encode_batch(codec: PreTrainedModel, extractor, clips: dict[Path, np.ndarray]) -> dict[Path, torch.Tensor]:
    """Codes `(num_codebooks, num_frames)` of each clip `(num_samples,)`."""
    if not clips:
        return {}
    sampling_rate = codec.config.input_sampling_rate
    features = extractor(list(clips.values()), sampling_rate=sampling_rate, return_tensors="pt")
    encoded = codec.encode(**features.to(codec.device))
    num_frames = encoded.audio_codes_mask.sum(dim=-1).tolist()
    return {source: codes[:, :n].cpu() for source, codes, n in zip(clips, encoded.audio_codes, num_frames)}


def decode_files(
    inputs: Iterable[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    audio_format: Literal["wav", "flac"] = "wav",
    overwrite: bool = False,
    limit_peaks: bool = False,
    device: str | None = None,
) -> FilesReport:
    """Decode token files, folders and globs of them to one audio file each, as long as what was encoded; from NeuCodec,
    which drops what follows the last whole frame, up to 20 ms shorter.

    Audio may exceed full scale, where the files' 16 bits clip it. Such files are reported, and with `limit_peaks` their
    audio is scaled so that it does not. Tokens of a codec with another `token_digest` are reported as failed. The other
    arguments and the errors are those of `encode_files`.
    """
    outputs = _plan(inputs, Path(output_dir), (TOKEN_SUFFIX,), f".{audio_format}")
    report = FilesReport()
    codec = load_fsq_codec(model, device)
    digest = token_digest(codec)
    for source in tqdm(_without_existing(outputs, overwrite, report), unit="file", desc="decode"):
        with _failures_reported([source], report):
            facts = read_token_facts(source)
            if facts["token_digest"] != digest:
                raise ValueError(
                    f"{source} was encoded by {facts['model']} with token digest {facts['token_digest']}, {model} has "
                    f"{digest}: its tokens mean something else, decode with the codec that made them"
                )
            tokens = read_tokens(source, codec.config)
            input_rate, output_rate = codec.config.input_sampling_rate, codec.config.output_sampling_rate
            num_samples = tokens.num_samples * output_rate // input_rate
            with torch.inference_mode():
                audio = codec.decode(audio_codes=tokens.codes[None].to(codec.device)).audio_values[0, 0, :num_samples]
            audio = audio.cpu().numpy()
            if num_samples - len(audio) >= codec.config.hop_length:
                raise ValueError(
                    f"{source} is damaged: its {tokens.codes.shape[-1]} frames hold {len(audio)} samples, not "
                    f"{num_samples}"
                )
            peak = float(np.abs(audio).max())
            write_audio(outputs[source], audio / max(peak, 1.0) if limit_peaks else audio, output_rate)
            if peak > 1:
                report.peaks[outputs[source]] = peak
            report.written.append(outputs[source])
            report.seconds += tokens.num_samples / input_rate
    return report


@contextmanager
def _failures_reported(sources: Iterable[Path], report: FilesReport) -> Iterator[None]:
    """Turn an error, running out of memory among them, into a line of the report for each of the files."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error)
        for source in sources:
            report.failed[source] = reason if str(source) in reason else f"{source}: {reason}"


def _plan(inputs, output_dir: Path, suffixes: tuple[str, ...], output_suffix: str) -> dict[Path, Path]:
    """Output by input, with every folder and glob resolved."""
    if output_dir.exists() and not output_dir.is_dir():
        raise NotADirectoryError(f"{output_dir} is a file: a folder for the outputs is wanted")
    outputs, sources = {}, {}
    for given in map(os.fspath, inputs):
        for source, relative in resolve_files(given, suffixes):
            output = output_dir / relative.with_suffix(output_suffix)
            if sources.setdefault(output, source).resolve() != source.resolve():
                raise ValueError(f"{sources[output]} and {source} would both be written to {output}: run them apart")
            outputs[sources[output]] = output
    return outputs


def resolve_files(given: str, suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """(file, its path below the output folder) of a file, a folder or a glob."""
    path = Path(given)
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        found = sorted(file for file in path.rglob("[!.]*") if file.suffix.lower() in suffixes and file.is_file())
        if not found:
            raise FileNotFoundError(f"the folder {given} has no file that ends in {', '.join(suffixes)}")
        return [(file, file.relative_to(path)) for file in found]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True))
    found = [match for match in matches if match.suffix.lower() in suffixes and match.is_file()]
    if not found:
        endings = ", ".join(suffixes)
        raise FileNotFoundError(f"{given} is no file, no folder and no pattern of files that end in {endings}")
    return [(file, Path(file.name)) for file in found]


def _without_existing(outputs: dict[Path, Path], overwrite: bool, report: FilesReport) -> list[Path]:
    sources = []
    for source, output in outputs.items():
        if output.exists() and not overwrite:
            report.kept.append(output)
        else:
            sources.append(source)
    return sources


def batches_by_length(durations: dict[Item, float]) -> Iterator[list[Item]]:
    """Groups of items of similar duration, in seconds, longest first, so that what runs out of memory does so at once:
    at most `MAX_BATCH_SIZE` of them, and `MAX_BATCH_SECONDS` with padding."""
    batch = []
    for item in sorted(durations, key=durations.get, reverse=True):
        longest = durations[batch[0]] if batch else 0.0
        if batch and (len(batch) == MAX_BATCH_SIZE or (len(batch) + 1) * longest > MAX_BATCH_SECONDS):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
