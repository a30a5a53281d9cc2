"""Many audio files to token files and back: what `fsqcodec encode` and `fsqcodec decode` do.

One bad file does not stop the others, nothing that exists is replaced unless asked, and no unfinished file is left.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from .audio import AUDIO_SUFFIXES, audio_seconds, read_audio, read_audio_pieces, write_audio, write_audio_pieces
from .batches import batches_by_length, encode_each
from .codecs import LONG_SECONDS, codec_of, load_feature_extractor, load_model
from .models.modeling_codec import CodecModel
from .models.pretrained import PreTrainedCodec
from .packing import Tokens, read_token_facts, read_tokens, token_digest, write_tokens
from .paths import resolve_files
from .streaming import StreamingDecoder, StreamingEncoder, clip_statistics

TOKEN_SUFFIX = ".safetensors"
PIECE_SECONDS = 5.0


@dataclass
class FilesReport:
    """What became of the files: written outputs, outputs that existed and were kept, failures with their reason, and
    peaks above full scale."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    peaks: dict[Path, float] = field(default_factory=dict)  # of decoded audio that exceeds full scale, which is 1
    seconds: float = 0.0  # of audio in the written files


def load_fsq_codec(model: str | os.PathLike, device: str | None = None) -> PreTrainedCodec:
    """`codecs.load_model`, for the codecs whose tokens a token file can hold: raises `ValueError` for another one."""
    loaded = load_model(model, device)
    if not isinstance(loaded, PreTrainedCodec):
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
        channels: of files with more channels than the codec has, `"mix"` takes the mean, `"refuse"` reports them as
            failed.
        overwrite: replace outputs that exist.
        device: for example "cpu" or "cuda:0".

    Raises:
        FileNotFoundError: an input that is no file, folder or matching glob.
        ValueError: two inputs with the same output.
    """
    outputs = _plan(inputs, Path(output_dir), AUDIO_SUFFIXES, TOKEN_SUFFIX)
    report = FilesReport()
    codec = load_fsq_codec(model, device)
    adapter = codec_of(codec, load_feature_extractor(model, codec))
    digest, sampling_rate = token_digest(codec), adapter.input_sampling_rate
    durations = {}
    for source in _without_existing(outputs, overwrite, report):
        with _failures_reported(source, report):
            durations[source] = audio_seconds(source)
    with tqdm(total=len(durations), unit="file", desc="encode") as progress:
        for batch in batches_by_length(durations):
            encoded = {}
            if codec.config.streams_frames and durations[batch[0]] >= LONG_SECONDS:  # so long that it is alone
                with _failures_reported(batch[0], report):
                    encoded[batch[0]] = _encode_in_pieces(codec, batch[0], channels, PIECE_SECONDS)
            else:
                clips = {}
                for source in batch:
                    with _failures_reported(source, report):
                        clips[source] = read_audio(source, sampling_rate, channels, adapter.num_channels)
                for (source, clip), result in zip(clips.items(), encode_each(adapter, list(clips.values()))):
                    with _failures_reported(source, report):
                        if isinstance(result, Exception):
                            raise result
                        encoded[source] = torch.from_numpy(result), clip.shape[-1]
            for source, (codes, num_samples) in encoded.items():
                with _failures_reported(source, report):
                    tokens = Tokens(codes, os.fspath(model), digest, sampling_rate, num_samples)
                    write_tokens(outputs[source], tokens, codec.config)
                    report.written.append(outputs[source])
                    report.seconds += num_samples / sampling_rate
            progress.update(len(batch))
    return report


def encode_file(
    source: str | os.PathLike,
    model: str | os.PathLike | CodecModel,
    output: str | os.PathLike,
    *,
    channels: Literal["mix", "refuse"] = "refuse",
    overwrite: bool = False,
    device: str | None = None,
    piece_seconds: float = PIECE_SECONDS,
) -> Tokens:
    """Encode one audio file of any length to a token file, reading it in pieces: codes are those of the whole, whatever
    `piece_seconds` is, and memory does not grow with the audio.

    `model` may be loaded already; `device` is then not looked at. Other arguments are those of `encode_files`.

    Raises:
        FileExistsError: there is an `output`, and `overwrite` is not set.
        FileNotFoundError, ValueError: as `read_audio` and `StreamingEncoder`; a `piece_seconds` that is not above 0; an
            `output` that does not end in .safetensors.
    """
    if Path(output).suffix != TOKEN_SUFFIX:
        raise ValueError(f"{output} is no name of a token file: one that ends in {TOKEN_SUFFIX} is wanted")
    codec = _loaded(model, output, overwrite, device, piece_seconds)
    codes, num_samples = _encode_in_pieces(codec, source, channels, piece_seconds)
    tokens = Tokens(codes, codec.name_or_path, token_digest(codec), codec.config.sampling_rate, num_samples)
    write_tokens(output, tokens, codec.config)
    return tokens


def _encode_in_pieces(
    codec: CodecModel, source: str | os.PathLike, channels: Literal["mix", "refuse"], piece_seconds: float
) -> tuple[torch.Tensor, int]:
    """Codes `(num_codebooks, num_frames)` of a file, and how many samples it has."""
    encoder, codes, num_samples = StreamingEncoder(codec), [], 0
    for piece in read_audio_pieces(source, codec.config.sampling_rate, channels, piece_seconds):
        codes.append(encoder.push(piece))
        num_samples += len(piece)
    codes.append(encoder.flush())
    return torch.cat(codes, dim=-1)[0].cpu(), num_samples


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

    Audio of NeuCodec and Lycodec may exceed full scale, where the files' 16 bits clip it. Such files are reported, and
    with `limit_peaks` their audio is scaled so that it does not. Tokens of a codec with another `token_digest` are
    reported as failed. The other arguments and the errors are those of `encode_files`.
    """
    outputs = _plan(inputs, Path(output_dir), (TOKEN_SUFFIX,), f".{audio_format}")
    report = FilesReport()
    codec = load_fsq_codec(model, device)
    digest = token_digest(codec)
    for source in tqdm(_without_existing(outputs, overwrite, report), unit="file", desc="decode"):
        with _failures_reported(source, report):
            tokens = _readable_tokens(source, codec, model, digest)
            peak = _decode_tokens(tokens, codec, outputs[source], limit_peaks)
            if peak > 1:
                report.peaks[outputs[source]] = peak
            report.written.append(outputs[source])
            report.seconds += tokens.num_samples / codec.config.input_sampling_rate
    return report


def decode_file(
    source: str | os.PathLike,
    model: str | os.PathLike | CodecModel,
    output: str | os.PathLike,
    *,
    overwrite: bool = False,
    device: str | None = None,
    piece_seconds: float = PIECE_SECONDS,
):
    """Decode one token file of any length to a wav or flac file, by the suffix of `output`, writing it in pieces: the
    audio is that of the whole, and memory hardly grows with it.

    Where the decoder normalises over the clip it first measures the clip's statistics, which takes most of three more
    decodes. Arguments and errors are those of `encode_file`; tokens of a codec with another `token_digest` raise
    `ValueError`.
    """
    codec = _loaded(model, output, overwrite, device, piece_seconds)
    tokens = _readable_tokens(source, codec, codec.name_or_path, token_digest(codec))
    write_audio_pieces(output, _decoded_pieces(tokens, codec, piece_seconds), codec.config.sampling_rate)


def _loaded(
    model: str | os.PathLike | CodecModel,
    output: str | os.PathLike,
    overwrite: bool,
    device: str | None,
    piece_seconds: float,
) -> CodecModel:
    if not 0 < piece_seconds < math.inf:
        raise ValueError(f"piece_seconds is {piece_seconds}: it must be above 0, and finite")
    if Path(output).exists() and not overwrite:
        raise FileExistsError(f"{output} exists: give another name, or overwrite=True")
    codec = load_fsq_codec(model, device) if isinstance(model, (str, os.PathLike)) else model
    if not (isinstance(codec, PreTrainedCodec) and codec.config.streams_frames):
        raise ValueError(
            f"a {type(codec).__name__} can't take files in pieces: encode_files and decode_files are for it"
        )
    return codec


def _readable_tokens(
    source: str | os.PathLike, codec: PreTrainedCodec, model: str | os.PathLike, digest: str
) -> Tokens:
    facts = read_token_facts(source)
    if facts["token_digest"] != digest:
        raise ValueError(
            f"{source} was encoded by {facts['model']} with token digest {facts['token_digest']}, {model} has "
            f"{digest}: its tokens mean something else, decode with the codec that made them"
        )
    return read_tokens(source, codec.config)


def _decode_tokens(tokens: Tokens, codec: PreTrainedCodec, output: Path, limit_peaks: bool) -> float:
    """Write the audio and return its peak: at once where the codec has no streams, and where it is short, which takes
    less time where the decoder normalises over the clip. A codec with streams stays below full scale."""
    sampling_rate = codec.config.output_sampling_rate
    if codec.config.streams_frames and tokens.num_samples >= LONG_SECONDS * sampling_rate:
        write_audio_pieces(output, _decoded_pieces(tokens, codec, PIECE_SECONDS), sampling_rate)
        return 0.0
    num_samples = tokens.num_samples * sampling_rate // tokens.sampling_rate
    with torch.inference_mode():
        audio = codec.decode(tokens.codes[None].to(codec.device), num_samples=num_samples).audio_values[0].squeeze(0)
    audio = audio.cpu().numpy()
    peak = float(np.abs(audio).max())
    write_audio(output, audio / peak if limit_peaks and peak > 1 else audio, sampling_rate)
    return peak


def _decoded_pieces(tokens: Tokens, codec: CodecModel, piece_seconds: float) -> Iterator[np.ndarray]:
    """The audio, `num_samples` in all."""
    codes = tokens.codes[None]
    statistics = clip_statistics(codec, codes) if codec.config.normalizes_over_clip else None
    decoder, num_left = StreamingDecoder(codec, statistics), tokens.num_samples
    pieces = codes.split(max(1, int(piece_seconds * codec.config.frame_rate)), dim=-1)
    for codes in (*pieces, None):
        audio = decoder.flush() if codes is None else decoder.push(codes)
        audio = audio[0, 0, :num_left].float().cpu().numpy()
        num_left -= len(audio)
        yield audio


@contextmanager
def _failures_reported(source: Path, report: FilesReport) -> Iterator[None]:
    """Turn an error, running out of memory among them, into a line of the report."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error)
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


def _without_existing(outputs: dict[Path, Path], overwrite: bool, report: FilesReport) -> list[Path]:
    sources = []
    for source, output in outputs.items():
        if output.exists() and not overwrite:
            report.kept.append(output)
        else:
            sources.append(source)
    return sources
