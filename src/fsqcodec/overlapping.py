"""Codes to audio in chunks that overlap, for decoders that hear the whole clip: NeuCodec's attends to all of it.

    decoder = OverlappingDecoder(load_codec("demo/neucodec"))
    audio = [decoder.push(codes) for codes in tokens_of_a_language_model] + [decoder.flush()]

It is not the audio of the whole clip, though close where little depends on frames far away: docs/streaming.md has
figures. Where a decoder's reach ends, `fsqcodec.StreamingDecoder` is exact.
"""

import math
from fractions import Fraction

import numpy as np

from .codecs import Codec


class OverlappingDecoder:
    """Each chunk is decoded with frames before and after it, and faded over one frame into what comes before.

    Args:
        codec: of `fsqcodec.codecs.load_codec`; any with tokens, whose frames are a whole number of samples.
        chunk_seconds: of audio that one decoding gives.
        context_seconds: of the clip before a chunk that is decoded with it.
        lookahead_seconds: the same after it, what a chunk waits for.

    Raises:
        ValueError: a codec without tokens, or whose frames are no whole number of samples; a chunk of no time, negative
            context or look-ahead; of a codec of crops other lengths than whole crops.
    """

    def __init__(
        self,
        codec: Codec,
        chunk_seconds: float = 0.5,
        context_seconds: float = 2.0,
        lookahead_seconds: float = 0.2,
    ):
        if codec.frame_rate is None:
            raise ValueError(f"{codec.name} has no tokens: a codec of frames is wanted")
        longest = max(chunk_seconds, context_seconds, lookahead_seconds)
        if not (chunk_seconds > 0 and context_seconds >= 0 and lookahead_seconds >= 0 and longest < math.inf):
            raise ValueError(
                f"chunks of {chunk_seconds} s with {context_seconds} s before and {lookahead_seconds} s after them: "
                "some time, and no negative or infinite ones, are wanted"
            )
        hop_length = Fraction(codec.output_sampling_rate) / Fraction(codec.frame_rate).limit_denominator(10**6)
        if hop_length.denominator != 1:
            raise ValueError(f"a frame of {codec.name} is {float(hop_length):g} samples: a whole number is wanted")
        self.codec = codec
        self._hop_length = int(hop_length)
        self._chunk_frames = max(1, round(chunk_seconds * codec.frame_rate))
        self._context_frames = round(context_seconds * codec.frame_rate)
        self._lookahead_frames = max(1, round(lookahead_seconds * codec.frame_rate))  # one to fade into the next chunk
        frames_per_crop = codec.frames_per_crop
        if any(n % frames_per_crop for n in (self._chunk_frames, self._context_frames, self._lookahead_frames)):
            raise ValueError(
                f"chunks of {self._chunk_frames} frames with {self._context_frames} before and "
                f"{self._lookahead_frames} after them: {codec.name} decodes whole crops, so multiples of "
                f"{frames_per_crop} frames, {frames_per_crop / codec.frame_rate:g} s, are wanted"
            )
        self._codes = np.zeros((len(codec.codebook_sizes), 0), dtype=np.int64)  # context, then what is not yet decoded
        self._num_context = 0
        self._fading = None  # audio of the frame after the last chunk, as decoded with that chunk
        self._is_open = True

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Integer codes `(num_codebooks, num_frames)`, any number of frames, to the audio that is ready: float32
        `(num_samples,)`, or `(num_channels, num_samples)`. Raises `ValueError` for another shape, for codes out of
        range, and after `flush`."""
        if not self._is_open:
            raise ValueError("the clip has ended: make another OverlappingDecoder for the next one")
        codes = np.asarray(codes)
        if codes.ndim != 2 or len(codes) != len(self._codes) or codes.dtype.kind not in "iu":
            raise ValueError(
                f"codes are {codes.dtype} of shape {codes.shape}: integers ({len(self._codes)}, num_frames) are wanted"
            )
        codes, sizes = codes.astype(np.int64), np.array(self.codec.codebook_sizes)[:, None]
        if ((codes < 0) | (codes >= sizes)).any():
            raise ValueError(
                f"codes range from {codes.min()} to {codes.max()}: this codec's are 0 to {sizes.max() - 1}"
            )
        self._codes = np.concatenate([self._codes, codes], axis=1)
        chunks = [self._nothing()]
        while self._codes.shape[1] - self._num_context >= self._chunk_frames + self._lookahead_frames:
            chunks.append(self._decode(self._chunk_frames))
        return np.concatenate(chunks, axis=-1)

    def flush(self) -> np.ndarray:
        """End the clip: the audio that is still to come. Raises `ValueError` the second time."""
        audio = self.push(self._codes[:, :0])
        self._is_open = False
        num_frames = self._codes.shape[1] - self._num_context
        return np.concatenate([audio, self._decode(num_frames)], axis=-1) if num_frames else audio

    def _decode(self, num_frames: int) -> np.ndarray:
        """The next frames, which become context of those that follow."""
        start, stop = self._num_context, self._num_context + num_frames
        window = self._codes[:, : stop + self._lookahead_frames]
        decoded = self.codec.decode([window])[0]
        if decoded.shape[-1] != window.shape[1] * self._hop_length:
            raise ValueError(
                f"{self.codec.name} makes {decoded.shape[-1]} samples of {window.shape[1]} frames: chunks of frames of "
                f"{self._hop_length} samples can't be joined"
            )
        audio = decoded[..., start * self._hop_length : stop * self._hop_length]
        if self._fading is not None:
            rise = (np.arange(self._hop_length, dtype=np.float32) + 0.5) / self._hop_length
            first = audio[..., : self._hop_length]
            audio = np.concatenate([self._fading + rise * (first - self._fading), audio[..., len(rise) :]], axis=-1)
        self._fading = decoded[..., stop * self._hop_length : (stop + 1) * self._hop_length]
        self._num_context = min(self._context_frames, stop)
        self._codes = self._codes[:, stop - self._num_context :]
        return audio

    def _nothing(self) -> np.ndarray:
        return np.zeros((0,) if self.codec.num_channels == 1 else (self.codec.num_channels, 0), dtype=np.float32)
