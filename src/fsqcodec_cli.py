"""The command line, arguments only. It lies beside the package so that `fsqcodec --help` does not import torch."""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

app = typer.Typer(
    help="Neural audio codecs with one quantizer: audio to a single stream of tokens, and back.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Origin(StrEnum):
    l3ac = "l3ac"
    sqcodec = "sqcodec"
    lycodec = "lycodec"
    neucodec = "neucodec"
    distill_neucodec = "distill-neucodec"


class Channels(StrEnum):
    mix = "mix"
    refuse = "refuse"


class Engine(StrEnum):
    process = "process"
    ray = "ray"


class AudioFormat(StrEnum):
    wav = "wav"
    flac = "flac"


Model = Annotated[str, typer.Option("--model", "-m", help="Folder or Hub id of a codec, or speech-3kbps-v2.")]
OutputDir = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if needed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist; they are kept otherwise.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; the GPU where there is one.")]


@app.command()
def info(
    target: Annotated[
        str | None,
        typer.Argument(help="A preset, a model's folder or Hub id, or a token file; all presets if left out."),
    ] = None,
):
    """Show rates and sizes of a preset or a model, or what a token file holds.

    Example: fsqcodec info l3ac-1kbps
    """
    with _errors_as_sentences():
        from fsqcodec.description import describe

        for name, value in describe(target):
            typer.echo(f"{name:<28}{value}")


@app.command()
def convert(
    origin: Annotated[Origin, typer.Argument(help="Which family the checkpoint is of.")],
    source: Annotated[
        str, typer.Argument(help="Folder of the original, or Hub id like zhai-lw/L3AC; Lycodec: a file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the converted model.")],
    preset: Annotated[str | None, typer.Option(help="Which published model it is, a name that `info` lists.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Or its sizes, a config.json with the fields that differ.")
    ] = None,
    semantic: Annotated[
        str | None, typer.Option(help="NeuCodec: folder or Hub id of the semantic model, where SOURCE has none of it.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare with the original package, if installed.")] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="Lycodec: the averaged parameters, where the file has both.")
    ] = False,
):
    """Convert an original checkpoint to a folder that AutoModel.from_pretrained loads.

    Example: fsqcodec convert l3ac zhai-lw/L3AC --preset l3ac-1kbps --output codec-1kbps
    """
    with _errors_as_sentences():
        needs_sizes = origin in (Origin.l3ac, Origin.sqcodec)
        if (preset is None) == (config is None) and (needs_sizes or preset is not None):
            raise ValueError("give either --preset NAME, one that `fsqcodec info` lists, or --config FILE")
        from fsqcodec import convert_checkpoint

        own_config = _read_config(config, origin) if config else None
        folder = convert_checkpoint(
            origin.value,
            source,
            output,
            preset=preset,
            config=own_config,
            semantic=semantic,
            verify=verify,
            ema=ema,
        )
        typer.echo(f"wrote {folder}{', verified: its README.md has the figures' if verify else ''}")


@app.command()
def encode(
    files: Annotated[list[str], typer.Argument(help="Audio files, folders, or globs in quotes.")],
    model: Model,
    output: OutputDir,
    channels: Annotated[
        Channels, typer.Option(help="More channels than the codec has: their mean, or refuse.")
    ] = Channels.refuse,
    overwrite: Overwrite = False,
    device: Device = None,
):
    """Encode audio to tokens: one .safetensors file with packed codes for each input.

    Example: fsqcodec encode recordings/ --model codec-1kbps --output tokens
    """
    with _errors_as_sentences():
        from fsqcodec.files import encode_files

        report = encode_files(files, model, output, channels=channels.value, overwrite=overwrite, device=device)
        _print_report(report)


@app.command()
def decode(
    files: Annotated[list[str], typer.Argument(help="Token files, folders, or globs in quotes.")],
    model: Model,
    output: OutputDir,
    audio_format: Annotated[AudioFormat, typer.Option("--format", help="Of the audio files.")] = AudioFormat.wav,
    limit_peaks: Annotated[
        bool, typer.Option("--limit-peaks", help="Scale audio that exceeds full scale; it is clipped otherwise.")
    ] = False,
    overwrite: Overwrite = False,
    device: Device = None,
):
    """Decode token files to audio of exactly the length that was encoded.

    Example: fsqcodec decode tokens/ --model codec-1kbps --output decoded --format flac
    """
    with _errors_as_sentences():
        from fsqcodec.files import decode_files

        report = decode_files(
            files,
            model,
            output,
            audio_format=audio_format.value,
            overwrite=overwrite,
            limit_peaks=limit_peaks,
            device=device,
        )
        if report.peaks:
            loudest = max(report.peaks, key=report.peaks.get)
            done = "were scaled to it" if limit_peaks else "are clipped (--limit-peaks scales them)"
            typer.echo(
                f"{len(report.peaks)} exceeded full scale and {done}, {loudest} most: peak {report.peaks[loudest]:.2f}"
            )
        _print_report(report)


stream_app = typer.Typer(
    help="Encode and decode while audio comes in, in a pipe.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(stream_app, name="stream")


@stream_app.command("encode")
def stream_encode(
    model: Model,
    microphone: Annotated[bool, typer.Option("--microphone", help="Listen instead of reading; Ctrl-C ends.")] = False,
    device: Device = None,
):
    """16-bit samples, at the codec's rate and of its channels, on the standard input to a stream of tokens on the
    output.

    Example: ffmpeg -i talk.mp3 -f s16le -ac 1 -ar 16000 - | fsqcodec stream encode -m codec-1kbps > talk.tokens
    """
    with _errors_as_sentences(), _pipe(reads=not microphone) as (samples, tokens):
        from fsqcodec.files import load_fsq_codec
        from fsqcodec.pipe import Microphone, encode_pipe

        codec = load_fsq_codec(model, device)
        encode_pipe(Microphone(codec) if microphone else samples, tokens, codec)


@stream_app.command("decode")
def stream_decode(model: Model, device: Device = None):
    """A stream of tokens on the standard input to 16-bit samples on the output.

    Example: fsqcodec stream decode -m codec-1kbps < talk.tokens | aplay -f S16_LE -r 16000
    """
    with _errors_as_sentences(), _pipe() as (tokens, samples), _warnings_as_notes():
        from fsqcodec.files import load_fsq_codec
        from fsqcodec.pipe import decode_pipe

        decode_pipe(tokens, samples, load_fsq_codec(model, device))


@stream_app.command("roundtrip")
def stream_roundtrip(
    model: Model,
    microphone: Annotated[bool, typer.Option("--microphone", help="Listen instead of reading; Ctrl-C ends.")] = False,
    device: Device = None,
):
    """16-bit samples on the standard input to tokens and back to samples on the output.

    Example: fsqcodec stream roundtrip --microphone -m codec-1kbps | aplay -f S16_LE -r 16000
    """
    with _errors_as_sentences(), _pipe(reads=not microphone) as (samples, decoded), _warnings_as_notes():
        from fsqcodec.files import load_fsq_codec
        from fsqcodec.pipe import Microphone, roundtrip_pipe

        codec = load_fsq_codec(model, device)
        roundtrip_pipe(Microphone(codec) if microphone else samples, decoded, codec)


@app.command()
def tokenize(
    source: Annotated[str, typer.Argument(help="Folder, glob, manifest, parquet, WebDataset tars, or org/name:split.")],
    model: Model,
    output: OutputDir,
    channels: Annotated[Channels, typer.Option(help="Stereo: take the channels' mean, or refuse.")] = Channels.refuse,
    shard_size: Annotated[int, typer.Option(help="Rows of a shard; a tar or streamed file is one shard.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Clips encoded at once; no matter for the tokens.")] = 16,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first clip that fails.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count clips, hours and bytes, and write nothing.")
    ] = False,
    engine: Annotated[Engine, typer.Option(help="This process, or a cluster.")] = Engine.process,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; a local one is started otherwise.")] = None,
    device: Device = None,
):
    """Tokenize a data set to parquet, or go on with a run that was interrupted.

    Under `accelerate launch -m fsqcodec tokenize ...` the processes share the work.

    Example: fsqcodec tokenize recordings/ --model codec-1kbps --output tokens
    """
    with _errors_as_sentences():
        from fsqcodec.tokenization.estimate import estimate
        from fsqcodec.tokenization.run import Settings
        from fsqcodec.tokenization.run import tokenize as tokenize_source

        settings = Settings(source, model, channels.value, shard_size, batch_size, fail_fast)
        if dry_run:
            for name, value in estimate(settings).items():
                typer.echo(f"{name.replace('_', ' '):<28}{value:,}")
            return
        result = tokenize_source(settings, output, engine=engine.value, address=address, device=device)
        typer.echo(f"{result.num_rows} clips, {result.seconds / 3600:.3f} h of audio, {result.num_bytes:,} bytes")
        if result.num_missing_shards:
            missing = f"{result.num_missing_shards} of {result.num_shards} shards are missing"
            typer.echo(f"{missing}: other processes write them, or run it again")
        elif result.num_errors:
            typer.echo(f"{result.num_errors} clips failed: {output / 'errors.parquet'} says why", err=True)


@app.command()
def evaluate(
    audio: Annotated[list[str], typer.Argument(help="Files, folders, globs, manifests, or data sets like name:split.")],
    codec: Annotated[list[str], typer.Option("--codec", "-c", help="Folder, Hub id[:codebooks], opus:6, codec2:3200.")],
    output: OutputDir,
    metric: Annotated[list[str] | None, typer.Option(help="Instead of the usual ones; can be repeated.")] = None,
    recognizer: Annotated[str | None, typer.Option(help="Speech recognition model, for word error rates.")] = None,
    channels: Annotated[
        Channels, typer.Option(help="More channels than the codec has: their mean, or refuse.")
    ] = Channels.refuse,
    device: Device = None,
):
    """Compare codecs on clips: clips.parquet, summary.json, report.md and report.html, which plays.

    Example: fsqcodec evaluate recordings/ --codec demo/codec-1kbps --codec opus:6 --output evaluation
    """
    with _errors_as_sentences():
        from fsqcodec.evaluation.report import write_reports
        from fsqcodec.evaluation.run import DEFAULT_METRICS, Settings
        from fsqcodec.evaluation.run import evaluate as evaluate_codecs

        chosen = tuple(metric or DEFAULT_METRICS)
        settings = Settings(tuple(audio), tuple(codec), chosen, channels.value, recognizer)
        evaluate_codecs(settings, output, device=device, command=shlex.join(["fsqcodec", *sys.argv[1:]]))
        markdown, page = write_reports(output)
        typer.echo(markdown.read_text().split("\n\n")[1])
        typer.echo(f"wrote {markdown} and {page}")


@app.command()
def latency(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a codec, or a preset: random weights.")],
    output: OutputDir,
    device: Device = None,
):
    """Measure what a codec looks ahead and back, its speed, memory and size: latency.json and latency.png.

    Example: fsqcodec latency codec-1kbps --output latency
    """
    with _errors_as_sentences():
        from fsqcodec.evaluation.latency import latency_table, measure_latency

        typer.echo(latency_table(measure_latency(model, output, device)))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a ready recipe like speech-cpu.")],
    output: OutputDir,
    data: Annotated[list[str] | None, typer.Option(help="Clips, instead of the recipe's; can be repeated.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Clips to evaluate on later: they and their speakers are left out.")
    ] = None,
    folder: Annotated[str | None, typer.Option(help="Model to fine-tune, instead of the recipe's.")] = None,
):
    """Train a codec, or go on with a run that was interrupted: models in OUTPUT/last and OUTPUT/best.

    Example: fsqcodec train speech-cpu --data clips.jsonl --output run
    """
    with _errors_as_sentences():
        from fsqcodec.training.recipe import load_recipe, recipe_path
        from fsqcodec.training.trainer import Trainer

        replaced = {"data.train": data} if data else {}
        if exclude:
            replaced["data.evaluation"] = exclude
        if folder is not None:
            replaced |= {"model.preset": None, "model.folder": folder}
        path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else recipe_path(recipe)
        Trainer(load_recipe(path, **replaced), output).run()


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a codec.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the ONNX files.")],
):
    """Export a codec to ONNX: encoder.onnx and decoder.onnx, weights inside, and codec.json with its rates.

    Example: fsqcodec export codec-1kbps --output codec-1kbps-onnx
    """
    with _errors_as_sentences():
        from fsqcodec.export import export_onnx
        from fsqcodec.files import load_fsq_codec

        for path in sorted(export_onnx(load_fsq_codec(model, device="cpu"), output).iterdir()):
            typer.echo(f"{path.stat().st_size:>14,}  {path}")


@app.command()
def card(
    target: Annotated[str, typer.Argument(help="A model's folder, a preset, or a family like l3ac.")],
    evaluation: Annotated[Path | None, typer.Option(help="summary.json of `evaluate`, for figures.")] = None,
    codec: Annotated[str | None, typer.Option(help="Which codec of the evaluation, if several fit.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; printed otherwise.")] = None,
):
    """Write the model card of a codec, with figures where an evaluation gives them.

    Example: fsqcodec card codec-1kbps --evaluation evaluation/summary.json --output codec-1kbps/README.md
    """
    with _errors_as_sentences():
        from fsqcodec.atomic import atomic_path
        from fsqcodec.hub.cards import model_card

        text = model_card(target, _read_json(evaluation) if evaluation else None, codec)
        if output is None:
            typer.echo(text, nl=False)
            return
        with atomic_path(output) as path:
            path.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {output}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a codec, with its card.")],
    repo_id: Annotated[str, typer.Argument(help="user/name of a model repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if needed; the main one if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the folder and send nothing.")] = False,
):
    """Upload a codec's folder to the Hub in one commit, after checking that it is complete.

    Example: fsqcodec push codec-1kbps me/codec-1kbps --dry-run
    """
    with _errors_as_sentences():
        from fsqcodec.hub.push import push as push_folder

        pushed = push_folder(folder, repo_id, private, revision, dry_run)
        for name, num_bytes in pushed.files.items():
            typer.echo(f"{num_bytes:>14,}  {name}")
        typer.echo(f"would be sent to {repo_id}" if pushed.commit_url is None else pushed.commit_url)


def _read_config(path: Path, origin: Origin):
    from fsqcodec import CodecConfig, DistillNeuCodecConfig, FsqNeuCodecConfig, LycodecConfig

    config_class = {
        Origin.lycodec: LycodecConfig,
        Origin.neucodec: FsqNeuCodecConfig,
        Origin.distill_neucodec: DistillNeuCodecConfig,
    }.get(origin, CodecConfig)
    try:
        return config_class(**_read_json(path))
    except TypeError as error:
        raise ValueError(
            f"{path} is not a configuration, a JSON object of {config_class.__name__}'s fields: {error}"
        ) from error


def _read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    """Errors that say what is wrong with the input become one line on stderr; others keep their traceback."""
    try:
        _hide_loading_bars()
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: files written so far are complete", err=True)
        sys.exit(130)
    except _user_errors() as error:
        strict_cause = error.__cause__ if type(error).__name__.startswith("StrictDataclass") else None
        typer.echo(f"error: {strict_cause or error}", err=True)
        sys.exit(1)


def _hide_loading_bars():
    """Of weights, which load in a moment; the bars of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    hub_shows_bars = not are_progress_bars_disabled()
    disable_progress_bar()
    if hub_shows_bars:
        enable_progress_bars()


@contextmanager
def _pipe(reads: bool = True) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The standard input and output as files of bytes, neither of them a terminal."""
    if reads and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError("nothing is piped in: see the example of --help")
    if sys.stdout is None:
        raise ValueError("the output is closed: pipe it into a program, or send it to a file with >")
    if sys.stdout.isatty():
        raise ValueError("the output is bytes and no text: pipe it into a program, or send it to a file with >")
    try:
        yield sys.stdin.buffer, sys.stdout.buffer
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered can't be written at exit
        raise


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    def note(message, *_):
        typer.echo(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = note
        yield


def _user_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    return ValueError, OSError, ImportError, RuntimeError, StrictDataclassError


def _print_report(report):
    typer.echo(f"{len(report.written)} written, {report.seconds:.1f} s of audio")
    if report.kept:
        typer.echo(f"{len(report.kept)} existed and were kept (--overwrite replaces them)")
    for reason in report.failed.values():
        typer.echo(f"failed: {reason}", err=True)
    if report.failed:
        sys.exit(1)
