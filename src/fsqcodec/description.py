"""What `fsqcodec info` shows, as rows of name and value."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from .files import TOKEN_SUFFIX, load_fsq_codec
from .packing import read_token_facts, token_digest
from .presets import PRESETS, list_presets, preset_config


def describe(target: str | None) -> Iterator[tuple[str, str]]:
    """Rows about a preset, a model's folder or Hub id, or a token file; a row for each preset if `target` is `None`.

    Raises `OSError` or `ValueError` where it is none of these.
    """
    if target is None:
        for name in list_presets():
            yield name, _summary(preset_config(name))
    elif target in PRESETS:
        yield "preset", target
        yield from _config_rows(preset_config(target))
    elif Path(target).suffix == TOKEN_SUFFIX:
        facts = read_token_facts(target)
        for name, fact in facts.items():
            yield name.replace("_", " "), str(fact)
        yield "seconds", f"{facts['num_samples'] / facts['sampling_rate']:.3f}"
    else:
        model = load_fsq_codec(target, device="cpu")
        yield "model", target
        yield from (_whole_clip_rows if model.config.hears_whole_clip else _config_rows)(model.config)
        yield "parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"
        yield "token digest", token_digest(model)


def samples_and_milliseconds(num_samples: int, config: PreTrainedConfig) -> str:
    """A duration for people, at the codec's `sampling_rate`."""
    return f"{num_samples} samples ({1000 * num_samples / config.sampling_rate:.1f} ms)"


def _summary(config: PreTrainedConfig) -> str:
    return (
        f"{config.sampling_rate} Hz  {config.frame_rate:8.2f} tokens/s  codebook {config.codebook_size}"
        f"{f' x {config.num_codebooks}' if config.num_codebooks > 1 else ''}  {config.bitrate:8.1f} bit/s"
    )


def _config_rows(config: PreTrainedConfig) -> Iterator[tuple[str, str]]:
    yield "sampling rate", f"{config.sampling_rate} Hz"
    if config.num_channels > 1:
        yield "channels", str(config.num_channels)
    yield "hop length", f"{config.hop_length} samples"
    yield "tokens per second", f"{config.frame_rate:.2f}"
    yield "codebook size", f"{config.codebook_size} ({' x '.join(map(str, config.quantization_levels))})"
    if config.num_codebooks > 1:
        yield "codebooks, each frame", str(config.num_codebooks)
    yield "bits per second", f"{config.bitrate:.1f}"
    yield "algorithmic latency", f"{1000 * config.algorithmic_latency:.1f} ms"
    yield "encoder look-ahead", samples_and_milliseconds(config.encoder_lookahead_samples, config)
    yield "decoder look-ahead", samples_and_milliseconds(config.decoder_lookahead_samples, config)
    yield "encoder look-back", samples_and_milliseconds(config.encoder_context_samples, config)
    yield "decoder look-back", samples_and_milliseconds(config.decoder_context_samples, config)
    if config.streams_frames and config.has_attention:
        window_seconds = config.attention_window_size / config.frame_rate
        yield "attention window", f"{config.attention_window_size} frames ({window_seconds:.2f} s)"


def _whole_clip_rows(config: PreTrainedConfig) -> Iterator[tuple[str, str]]:
    yield "input sampling rate", f"{config.input_sampling_rate} Hz"
    yield "output sampling rate", f"{config.output_sampling_rate} Hz"
    yield "encoder hop length", f"{config.encoder_hop_length} samples"
    yield "decoder hop length", f"{config.decoder_hop_length} samples"
    yield "tokens per second", f"{config.frame_rate:.2f}"
    yield "codebook size", f"{config.codebook_size} ({' x '.join(map(str, config.quantization_levels))})"
    yield "bits per second", f"{config.bitrate:.1f}"
    yield "look-ahead and look-back", "the whole clip"
