"""Language models over the tokens of any codec: a vocabulary for both, batches to train on, generation to audio."""

from .collators import AudioCollator, AudioToTextCollator, TextToAudioCollator
from .embeddings import resize_embeddings
from .generation import AudioLogitsProcessor, AudioStreamer
from .vocabulary import AudioVocabulary

__all__ = [
    "AudioCollator",
    "AudioLogitsProcessor",
    "AudioStreamer",
    "AudioToTextCollator",
    "AudioVocabulary",
    "TextToAudioCollator",
    "resize_embeddings",
]
