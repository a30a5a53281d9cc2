"""Data sets to tokens: `TokenizeAudio` for `datasets.map`, `tokenize` for whole corpora in shards."""

from .dataset_map import TokenizeAudio
from .run import Settings, tokenize

__all__ = ["Settings", "TokenizeAudio", "tokenize"]
