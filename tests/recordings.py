"""A small corpus of real speech for tests of tokenizing, with a codec that takes milliseconds."""

import json
import wave
from pathlib import Path

import numpy as np
import soundfile

from clips import ENGLISH
from fsqcodec import CodecFeatureExtractor
from fsqcodec.audio import read_audio
from small_configs import small_model


def write_codec(folder: Path) -> Path:
    small_model("frames-plain").save_pretrained(folder)  # 8 samples a frame
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return folder


def write_recordings(folder: Path, num_clips: int, longest: int = 3000) -> dict[str, np.ndarray]:
    """Flac files at 16 kHz, lengths of 100 to `longest` samples in no order, and `manifest.jsonl`: samples by name."""
    folder.mkdir(parents=True, exist_ok=True)
    speech = read_audio(ENGLISH, 16000)
    random = np.random.default_rng(0)
    clips = {}
    for number in range(num_clips):
        start, length = random.integers(0, len(speech) - longest), random.integers(100, longest)
        name = f"{number:04}.flac"
        clips[name] = speech[start : start + length]
        soundfile.write(folder / name, clips[name], 16000)
    rows = [{"path": name, "speaker": f"s{number % 3}", "words": number} for number, name in enumerate(clips)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return clips


def write_broken(folder: Path) -> dict[str, str]:
    """Twelve files that can't be tokenized: by name, a part of the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    speech = read_audio(ENGLISH, 16000)[:8000]
    soundfile.write(folder / "whole.flac", speech, 16000)
    soundfile.write(folder / "whole.wav", speech, 16000)
    flac, wav = (folder / "whole.flac").read_bytes(), (folder / "whole.wav").read_bytes()
    for path in (folder / "whole.flac", folder / "whole.wav"):
        path.unlink()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "cut.wav").write_bytes(wav[: len(wav) // 2])
    (folder / "nothing.wav").write_bytes(b"")
    (folder / "text.wav").write_text("these are words\n")
    (folder / "zeros.mp3").write_bytes(bytes(2000))
    (folder / "header.wav").write_bytes(wav[:40])
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(8000) == 4000, np.nan, speech), 16000, subtype="FLOAT")
    soundfile.write(folder / "infinite.wav", np.full(100, np.inf), 16000, subtype="FLOAT")
    soundfile.write(folder / "three.wav", np.stack([speech] * 3, axis=1), 16000)
    soundfile.write(folder / "stereo.flac", np.stack([speech] * 2, axis=1), 16000)
    soundfile.write(folder / "loud.wav", speech * 32768, 16000, subtype="FLOAT")
    return {
        "cut.flac": "can't be decoded",
        "cut.wav": "is truncated",
        "nothing.wav": "is not an audio file",
        "text.wav": "is not an audio file",
        "zeros.mp3": "is not an audio file",
        "header.wav": "",  # as libsndfile says
        "empty.wav": "is empty",
        "nan.wav": "NaN",
        "infinite.wav": "infinite",
        "three.wav": "3 channels",
        "stereo.flac": "2 channels",
        "loud.wav": "peaks at",
    }


def write_unusual(folder: Path, long_minutes: float = 30) -> dict[str, int]:
    """Eight files that can: by name, their length at 16 kHz."""
    folder.mkdir(parents=True, exist_ok=True)
    speech = read_audio(ENGLISH, 16000)[:8000]
    soundfile.write(folder / "8k.wav", read_audio(ENGLISH, 8000)[:4000], 8000)
    soundfile.write(folder / "96k.flac", read_audio(ENGLISH, 96000)[:48000], 96000)
    long = np.resize(read_audio(ENGLISH, 16000), round(long_minutes * 60 * 16000))
    soundfile.write(folder / "long.flac", long, 16000)
    soundfile.write(folder / "10ms.wav", speech[4000:4160], 16000)
    soundfile.write(folder / "24bit.wav", speech, 16000, subtype="PCM_24")
    soundfile.write(folder / "mulaw.wav", speech, 16000, subtype="ULAW")
    soundfile.write(folder / "one.wav", speech[4000:4001], 16000)
    with wave.open(str(folder / "8bit.wav"), "wb") as file:
        file.setparams((1, 1, 16000, 0, "NONE", ""))
        file.writeframes((speech * 100 + 128).astype(np.uint8).tobytes())
    lengths = dict.fromkeys(("8k.wav", "96k.flac", "24bit.wav", "mulaw.wav", "8bit.wav"), 8000)
    return {**lengths, "long.flac": len(long), "10ms.wav": 160, "one.wav": 1}
