"""Classical codecs as yardsticks: Opus, Codec 2 and Speex, through their own command-line programs.

Their "codes" are the bytes of the coded file; their rate is that of the payload, without the container's headers.
"""

import shutil
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path

import numpy as np

from .audio import read_audio, resample, write_audio
from .codecs import Codec

CODEC2_SAMPLING_RATE = 8000  # Hz
CODEC2_PADDING_SECONDS = 0.08  # so that the delayed end of a clip is coded too
# Samples at 8 kHz by which decoded audio lags. Codec 2 keeps no waveform that a correlation could align: these are the
# delays with the best STOI on 39 clips of speech.
CODEC2_DELAYS = {"3200": 160, "2400": 160, "1600": 150, "1200": 160, "700C": 240}


class ClassicalCodec(Codec):
    """A codec of two programs, `encoder` and `decoder`; `option` is what follows the colon of its name.

    Raises `OSError` where a program is not installed, `ValueError` for an option it does not know.
    """

    encoder: str
    decoder: str
    debian_package: str

    def __init__(self, name: str, option: str):
        self.name, self.option = name, option
        for program in (self.encoder, self.decoder):
            if shutil.which(program) is None:
                raise FileNotFoundError(
                    f"{name} needs the program {program}: install it (Debian: {self.debian_package})"
                )
        self._check_option()
        self.revision = self._version()

    def encode(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        return [self._in_folder(self._encode_clip, clip) for clip in audio]

    def decode(self, codes: list[np.ndarray], num_samples: list[int] | None = None) -> list[np.ndarray]:
        decoded = [self._in_folder(self._decode_clip, np.asarray(clip, dtype=np.uint8).tobytes()) for clip in codes]
        return [clip[:length] for clip, length in zip(decoded, num_samples or [None] * len(codes))]

    @abstractmethod
    def num_bits(self, codes: np.ndarray, seconds: float) -> float: ...

    @abstractmethod
    def _check_option(self): ...

    @abstractmethod
    def _encode_clip(self, folder: Path, audio: np.ndarray) -> bytes: ...

    @abstractmethod
    def _decode_clip(self, folder: Path, coded: bytes) -> np.ndarray: ...

    def _in_folder(self, function, argument):
        with tempfile.TemporaryDirectory(prefix="fsqcodec-") as folder:
            result = function(Path(folder), argument)
        return np.frombuffer(result, dtype=np.uint8).astype(np.int64)[None] if isinstance(result, bytes) else result

    def _run(self, *command: str | Path):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed with exit code {done.returncode}: {done.stderr.strip()[-300:]}")

    def _version(self) -> str | None:
        """What the encoder says about itself, or else its Debian package."""
        for command in (
            [self.encoder, "--version"],
            ["dpkg-query", "--show", "--showformat", "${Package} ${Version}", self.debian_package],
        ):
            if shutil.which(command[0]):
                done = subprocess.run(command, capture_output=True, text=True, errors="replace")
                if done.returncode == 0 and done.stdout.strip():
                    return done.stdout.strip().splitlines()[0]
        return None

    def _refuse_option(self, wanted: str):
        raise ValueError(f"{self.name!r} is no codec: after the colon comes {wanted}")


class OggCodec(ClassicalCodec):
    """A codec whose programs read wav and write Ogg."""

    def num_bits(self, codes: np.ndarray, seconds: float) -> float:
        header_packets = 2  # identification and comments, in Opus and Speex
        return 8.0 * sum(ogg_packet_sizes(codes.astype(np.uint8).tobytes())[header_packets:])

    def _encode_clip(self, folder: Path, audio: np.ndarray) -> bytes:
        write_audio(folder / "in.wav", audio, self.input_sampling_rate)
        self._run(self.encoder, *self._encoder_options(), folder / "in.wav", folder / "coded")
        return (folder / "coded").read_bytes()

    def _decode_clip(self, folder: Path, coded: bytes) -> np.ndarray:
        (folder / "coded").write_bytes(coded)
        self._run(self.decoder, *self._decoder_options(), folder / "coded", folder / "out.wav")
        return read_audio(folder / "out.wav", self.output_sampling_rate)


class OpusCodec(OggCodec):
    """`opus:KBPS`: variable bit rate around a target in kbit/s, 20 ms frames (RFC 6716)."""

    encoder, decoder, debian_package = "opusenc", "opusdec", "opus-tools"
    input_sampling_rate = output_sampling_rate = 16000

    def _check_option(self):
        try:
            valid = 6 <= float(self.option) <= 256
        except ValueError:
            valid = False
        if not valid:
            self._refuse_option("a bit rate from 6 to 256 kbit/s, as in opus:6")

    def _encoder_options(self) -> list[str]:
        return ["--quiet", "--bitrate", self.option, "--framesize", "20", "--serial", "1"]

    def _decoder_options(self) -> list[str]:
        return ["--quiet", "--rate", str(self.output_sampling_rate)]


class SpeexCodec(OggCodec):
    """`speex:QUALITY`: wideband Speex at a quality from 0 to 10 (RFC 5574)."""

    encoder, decoder, debian_package = "speexenc", "speexdec", "speex"
    input_sampling_rate = output_sampling_rate = 16000

    def _check_option(self):
        if self.option not in map(str, range(11)):
            self._refuse_option("a quality from 0 to 10, as in speex:1")

    def _encoder_options(self) -> list[str]:
        return ["--wideband", "--quality", self.option]

    def _decoder_options(self) -> list[str]:
        return ["--force-wb"]


class Codec2Codec(ClassicalCodec):
    """`codec2:MODE`: a parametric codec at 8 kHz, its mode the bit rate; audio is resampled from and to 16 kHz."""

    encoder, decoder, debian_package = "c2enc", "c2dec", "codec2"
    keeps_waveform = False
    input_sampling_rate = output_sampling_rate = 16000

    def num_bits(self, codes: np.ndarray, seconds: float) -> float:
        return float(self.option.rstrip("C")) * seconds  # constant, and the padding is not part of the clip

    def _check_option(self):
        if self.option not in CODEC2_DELAYS:
            self._refuse_option(f"one of {', '.join(CODEC2_DELAYS)}, as in codec2:3200")

    def _encode_clip(self, folder: Path, audio: np.ndarray) -> bytes:
        padded = np.pad(audio, (0, round(CODEC2_PADDING_SECONDS * self.input_sampling_rate)))
        narrow = resample(padded.astype(np.float32), self.input_sampling_rate, CODEC2_SAMPLING_RATE)
        (np.clip(narrow, -1, 1) * 32767).round().astype("<i2").tofile(folder / "in.raw")
        self._run(self.encoder, self.option, folder / "in.raw", folder / "coded.bit")
        return (folder / "coded.bit").read_bytes()

    def _decode_clip(self, folder: Path, coded: bytes) -> np.ndarray:
        (folder / "coded.bit").write_bytes(coded)
        self._run(self.decoder, self.option, folder / "coded.bit", folder / "out.raw")
        narrow = np.fromfile(folder / "out.raw", dtype="<i2").astype(np.float32) / 32768
        return resample(narrow[CODEC2_DELAYS[self.option] :], CODEC2_SAMPLING_RATE, self.output_sampling_rate)


CLASSICAL_CODECS = {"opus": OpusCodec, "codec2": Codec2Codec, "speex": SpeexCodec}


def ogg_packet_sizes(ogg: bytes) -> list[int]:
    """Bytes of each packet of an Ogg file with one stream, by the segment tables of its pages (RFC 3533).

    Raises `ValueError` for bytes that are not Ogg.
    """
    sizes, packet, position = [], 0, 0
    while position < len(ogg):
        if ogg[position : position + 4] != b"OggS":
            raise ValueError(f"byte {position} of {len(ogg)} is not the start of an Ogg page")
        num_segments = ogg[position + 26]
        segments = ogg[position + 27 : position + 27 + num_segments]
        for segment in segments:
            packet += segment
            if segment < 255:
                sizes.append(packet)
                packet = 0
        position += 27 + num_segments + sum(segments)
    return sizes
