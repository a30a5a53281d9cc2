"""Streams between programs: 16-bit samples in, tokens out, and back, while they come in. The channels of stereo
alternate.

A token stream begins with a line `fsqcodec-stream-1` and a line of JSON that says what the tokens are. Blocks follow:
the number of frames, two bytes, least significant first, and their codes as `packing.pack` packs them. A block of no
frames ends the stream, with the number of samples that were encoded in eight bytes after it; where it is missing, the
stream was cut.
"""

import json
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch

from .models.pretrained import PreTrainedCodec
from .packing import check_duration, num_packed_bytes, pack, token_digest, unpack
from .streaming import StreamingDecoder, StreamingEncoder

FORMAT = b"fsqcodec-stream-1\n"
FACTS = ("token_digest", "sampling_rate", "num_codebooks", "codebook_size")
READ_BYTES = 2**16
AUDIO_FILES = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd")  # their first bytes
MICROPHONE_SECONDS = 0.02
MOST_FRAMES = 64  # of a block: what a cut may cost, at the price of two bytes


def encode_pipe(samples_in: BinaryIO, tokens_out: BinaryIO, codec: PreTrainedCodec):
    """16-bit samples, at the codec's sampling rate and of its channels, to a token stream. Ctrl-C ends the clip as
    the end of the input does.

    Raises `ValueError` for an audio file, and for an input that ends within a sample when all that was complete is
    written; `BrokenPipeError` when nobody reads the output any more.
    """
    encoder, meter, num_samples = StreamingEncoder(codec), Meter(codec.config.sampling_rate), 0
    channels = codec.config.num_channels
    facts = {"model": codec.name_or_path, **_facts(codec)}
    with _end_of_reader_explained(meter):
        _write(tokens_out, FORMAT + json.dumps(facts).encode() + b"\n")
        pieces = _Input(read_samples(samples_in, channels))
        for samples in pieces:
            with meter.counting(samples.shape[-1]):
                codes = encoder.push(samples)
            num_samples += samples.shape[-1]
            _write_codes(tokens_out, codes, codec)
        if not num_samples:
            pieces.raise_failure()  # without an end: nobody is to take it for the stream of an empty clip
        with meter.counting(0):
            codes = encoder.flush()
        _write_codes(tokens_out, codes, codec)
        _write(tokens_out, struct.pack("<HQ", 0, num_samples))
        meter.show(at_end=True)
        pieces.raise_failure()


def decode_pipe(tokens_in: BinaryIO, samples_out: BinaryIO, codec: PreTrainedCodec):
    """A token stream to 16-bit samples, as many as were encoded. Of a codec of crops the last crop waits for the next
    one or the end, which says how much of it is audio. Ctrl-C, which the program that encodes gets as well, is not
    listened to once: the stream's end is still to come.

    Raises `ValueError` for another input and for tokens of another codec, and for a stream that was cut or damaged, or
    goes on after its end, when what came before that is written; `BrokenPipeError` as `encode_pipe`.
    """
    _check_facts(_read_facts(tokens_in), codec)
    decoder, meter, num_samples, length = StreamingDecoder(codec), Meter(codec.config.sampling_rate), 0, None
    most_padding, waiting = codec.config.crop_length, None
    with _end_of_reader_explained(meter):
        blocks = _Input(_read_blocks(tokens_in, codec), waits_for_end=True)
        for block in blocks:
            if isinstance(block, int):
                length = block
                continue
            with meter.counting(block.shape[-1] * codec.config.hop_length):
                audio = decoder.push(block)
            audio = audio if waiting is None else torch.cat([waiting, audio], dim=-1)
            num_final = max(0, audio.shape[-1] - most_padding)
            audio, waiting = audio[..., :num_final], audio[..., num_final:]
            num_samples += num_final
            _write(samples_out, to_pcm(audio))
        with meter.counting(0):
            audio = decoder.flush()
        audio = audio if waiting is None else torch.cat([waiting, audio], dim=-1)
        _write(samples_out, to_pcm(audio if length is None else audio[..., : max(0, length - num_samples)]))
        meter.show(at_end=True)
        blocks.raise_failure()


def roundtrip_pipe(samples_in: BinaryIO, samples_out: BinaryIO, codec: PreTrainedCodec):
    """16-bit samples to tokens and back, as many as came in. Raises as `encode_pipe`."""
    encoder, decoder, meter = StreamingEncoder(codec), StreamingDecoder(codec), Meter(codec.config.sampling_rate)
    with _end_of_reader_explained(meter):
        num_left = 0
        pieces = _Input(read_samples(samples_in, codec.config.num_channels))
        for samples in pieces:
            with meter.counting(samples.shape[-1]):
                audio = decoder.push(encoder.push(samples))
            num_left += samples.shape[-1] - audio.shape[-1]
            _write(samples_out, to_pcm(audio))
        with meter.counting(0):
            audio = torch.cat([decoder.push(encoder.flush()), decoder.flush()], dim=-1)
        _write(samples_out, to_pcm(audio[..., :num_left]))
        meter.show(at_end=True)
        pieces.raise_failure()


class Microphone:
    """The default microphone as a codec hears it, 16-bit, as a file to read. It needs sounddevice
    (`fsqcodec[microphone]`).

    Raises `ImportError` or `OSError` with a hint where there is no sounddevice, PortAudio or microphone.
    """

    def __init__(self, codec: PreTrainedCodec):
        sampling_rate, channels = codec.config.sampling_rate, codec.config.num_channels
        try:
            import sounddevice
        except ImportError as error:
            raise ImportError("the microphone needs sounddevice: pip install 'fsqcodec[microphone]'") from error
        except OSError as error:
            raise OSError(f"the microphone needs PortAudio ({error}): on Debian, apt install libportaudio2") from error
        self._chunk_samples = int(MICROPHONE_SECONDS * sampling_rate)
        try:
            self._stream = sounddevice.RawInputStream(sampling_rate, channels=channels, dtype="int16")
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise OSError(
                f"no microphone of {channels} channels can be opened at {sampling_rate} Hz: {error}"
            ) from error

    def read1(self, num_bytes: int) -> bytes:
        """The next 20 ms; `num_bytes` is not looked at."""
        samples, overflowed = self._stream.read(self._chunk_samples)
        if overflowed:
            print("\nsamples were lost: computing is too slow for the microphone", file=sys.stderr)
        return bytes(samples)


class Meter:
    """Audio and computing so far, on stderr: once a second on a terminal, and at the end."""

    def __init__(self, sampling_rate: int):
        self._sampling_rate = sampling_rate
        self._num_samples = 0
        self._computing_seconds = 0.0
        self._shown = time.monotonic()

    @property
    def audio_seconds(self) -> float:
        return self._num_samples / self._sampling_rate

    @contextmanager
    def counting(self, num_samples: int) -> Iterator[None]:
        """Count the block's time as computing, for so much audio."""
        started = time.perf_counter()
        yield
        self._computing_seconds += time.perf_counter() - started
        self._num_samples += num_samples
        if sys.stderr.isatty() and time.monotonic() - self._shown > 1:
            self.show()

    def show(self, at_end: bool = False):
        self._shown = time.monotonic()
        factor = self._computing_seconds / max(self.audio_seconds, 1e-9)
        line = f"{self.audio_seconds:.2f} s of audio, computed in {self._computing_seconds:.2f} s"
        line += f": real-time factor {factor:.3f}" if self._num_samples else ""
        print(f"\r{line}" if sys.stderr.isatty() else line, end="\n" if at_end else "", file=sys.stderr, flush=True)


def read_samples(file: BinaryIO | Microphone, num_channels: int = 1) -> Iterator[np.ndarray]:
    """16-bit samples as they come in, float32 in [-1, 1): `(num_samples,)`, or `(num_channels, num_samples)`."""
    rest = b""
    is_start = True
    while data := file.read1(READ_BYTES):
        if is_start and data.startswith(AUDIO_FILES):
            raise ValueError(
                "the input is an audio file: bare 16-bit samples are wanted, such as ffmpeg makes with "
                f"-f s16le -ac {num_channels} -ar and the codec's sampling rate"
            )
        is_start = False
        data = rest + data
        whole = len(data) // (2 * num_channels) * 2 * num_channels
        samples = np.frombuffer(data[:whole], dtype="<i2").astype(np.float32) / 32768
        yield samples if num_channels == 1 else samples.reshape(-1, num_channels).T
        rest = data[whole:]
    if rest:
        raise ValueError("the input ended within a sample: it was cut, or is not 16-bit samples")


def to_pcm(audio: torch.Tensor) -> bytes:
    """Audio `(1, num_channels, num_samples)` as 16-bit samples, clipped to full scale."""
    return np.rint(audio[0].T.float().clamp(-1, 1).cpu().numpy() * 32767).astype("<i2").tobytes()


def _facts(codec: PreTrainedCodec) -> dict:
    config = codec.config
    values = (token_digest(codec), config.sampling_rate, config.num_codebooks, config.codebook_size)
    return dict(zip(FACTS, values))


def _read_facts(file: BinaryIO) -> dict:
    if file.readline(len(FORMAT)) != FORMAT:
        raise ValueError("the input is no token stream: it must be what `fsqcodec stream encode` writes")
    try:
        facts = json.loads(file.readline(READ_BYTES))
        return {name: facts[name] for name in ("model", *FACTS)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("the token stream was cut or damaged within its header") from error


def _check_facts(facts: dict, codec: PreTrainedCodec):
    for name, value in _facts(codec).items():
        if facts[name] != value:
            raise ValueError(
                f"the stream was encoded by {facts['model']} with {name} {facts[name]}, {codec.name_or_path} has "
                f"{value}: decode with the codec that made it"
            )


def _read_blocks(file: BinaryIO, codec: PreTrainedCodec) -> Iterator[torch.Tensor | int]:
    """Codes `(num_codebooks, num_frames)`, and at the end the number of samples that were encoded."""
    num_frames = 0
    cut = "the token stream was cut after {} frames, {:.2f} s: the audio of these was written"
    while True:
        head = file.read(2)
        num_block_frames = int.from_bytes(head, "little")
        num_bytes = 8 if num_block_frames == 0 else num_packed_bytes(num_block_frames, codec.config)
        data = file.read(num_bytes) if len(head) == 2 else b""
        if len(data) < num_bytes:
            raise ValueError(cut.format(num_frames, num_frames / codec.config.frame_rate))
        if num_block_frames == 0:
            num_samples = int.from_bytes(data, "little")
            try:
                check_duration(num_samples, num_frames, codec.config)
            except ValueError as error:
                raise ValueError(f"the token stream is damaged at its end: {error}; all were written") from error
            yield num_samples
            if file.read(1):
                raise ValueError("the token stream goes on after its end: one clip is decoded, which was written")
            return
        yield unpack(data, codec.config, num_block_frames)
        num_frames += num_block_frames


def _write_codes(file: BinaryIO, codes: torch.Tensor, codec: PreTrainedCodec):
    """Codes `(1, num_codebooks, num_frames)` as blocks; none where there are none."""
    frames_per_crop = codec.config.frames_per_crop
    for block in codes[0].split(max(1, MOST_FRAMES // frames_per_crop) * frames_per_crop, dim=-1):
        if block.shape[-1]:
            _write(file, struct.pack("<H", block.shape[-1]) + pack(block, codec.config))


def _write(file: BinaryIO, data: bytes):
    file.write(data)
    file.flush()


@contextmanager
def _end_of_reader_explained(meter: Meter) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise BrokenPipeError(
            f"the program that reads the output has ended, after about {meter.audio_seconds:.2f} s of audio"
        ) from error


class _Input:
    """Items up to the end, a `ValueError` or Ctrl-C, so that what was complete can be written before `raise_failure`.

    Ctrl-C is an end and no failure. It waits where it comes while an item is computed. With `waits_for_end` only the
    second one counts.
    """

    def __init__(self, items: Iterator, waits_for_end: bool = False):
        self._items = items
        self._waits_for_end = waits_for_end
        self._failure = None
        self._is_reading = self._is_interrupted = False

    def __iter__(self) -> Iterator:
        is_main = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGINT, self._interrupt) if is_main else None
        try:
            while not self._is_interrupted:
                self._is_reading = True
                item = next(self._items, None)
                self._is_reading = False
                if item is None:
                    return
                yield item
        except KeyboardInterrupt:
            return
        except ValueError as error:
            self._failure = error
        finally:
            self._is_reading = False
            if is_main:
                signal.signal(signal.SIGINT, previous)

    def raise_failure(self):
        if self._failure is not None:
            raise self._failure

    def _interrupt(self, *_):
        if self._waits_for_end:
            self._waits_for_end = False
            print("\nwaiting for the end of the input; Ctrl-C once more ends it here", file=sys.stderr)
        elif self._is_reading:
            raise KeyboardInterrupt
        else:
            self._is_interrupted = True
