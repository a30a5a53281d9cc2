"""Real speech for tests, from the examples."""

from pathlib import Path

import numpy as np

from fsqcodec.audio import read_audio

CLIP_DIR = Path(__file__).parent.parent / "examples" / "audio"
ENGLISH = CLIP_DIR / "lj_gutenberg.flac"
GERMAN = CLIP_DIR / "thorsten_eurasien.flac"


def speech(sampling_rate: int = 16000) -> np.ndarray:
    """Both clips, one after the other: 13.3 s, several attention windows of every preset."""
    return np.concatenate([read_audio(path, sampling_rate) for path in (ENGLISH, GERMAN)])
