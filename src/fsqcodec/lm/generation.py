"""From a language model that generates to audio: only ids that make sense, and sound while they come.

streamer = AudioStreamer(vocabulary, codec, "speech.wav")
language_model.generate(prompt, logits_processor=[AudioLogitsProcessor(vocabulary)], streamer=streamer,
                        eos_token_id=vocabulary.end_of_audio_id, do_sample=True, max_new_tokens=1000)
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from ..audio import WRITABLE_SUFFIXES, write_audio
from ..codecs import Codec
from ..overlapping import OverlappingDecoder
from ..streaming import StreamingDecoder
from .vocabulary import AudioVocabulary


class AudioLogitsProcessor(LogitsProcessor):
    """Lets only those ids through that make audio which can be decoded, in every row of a batch by itself.

    Between begin and end of audio: the ids of the range whose turn it is, and the end after a whole frame. Elsewhere:
    text and begin. Padding on the left of a prompt changes nothing.
    """

    def __init__(self, vocabulary: AudioVocabulary):
        self.vocabulary = vocabulary
        self._allowed = torch.empty(0, 0, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids `(batch, num_ids)` and scores `(batch, num_scores)` of the next id; the forbidden ones become -inf.

        Raises `ValueError` for a model with fewer scores than the vocabulary has ids.
        """
        if self._allowed.shape[1] != scores.shape[1] or self._allowed.device != scores.device:
            self._allowed = self._allowed_ids(scores.shape[1]).to(scores.device)
        return scores.masked_fill(~self._allowed[self._states(input_ids)], -torch.inf)

    def _states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """For each row the range whose turn it is, or `num_ids_per_frame` outside audio."""
        positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        begins = (input_ids == self.vocabulary.begin_of_audio_id) * positions
        ends = (input_ids == self.vocabulary.end_of_audio_id) * positions
        last_begin, last_end = begins.amax(dim=1), ends.amax(dim=1)
        turn = (input_ids.shape[1] - last_begin) % self.vocabulary.num_ids_per_frame
        return turn.where(last_begin > last_end, self.vocabulary.num_ids_per_frame)

    def _allowed_ids(self, num_scores: int) -> torch.Tensor:
        """Bool `(num_ids_per_frame + 1, num_scores)`, a row for each state."""
        vocabulary = self.vocabulary
        if num_scores < vocabulary.size:
            raise ValueError(
                f"the model scores {num_scores} ids, the vocabulary has {vocabulary.size}: resize_embeddings"
            )
        allowed = torch.zeros(vocabulary.num_ids_per_frame + 1, num_scores, dtype=torch.bool)
        for turn, (start, size) in enumerate(zip(vocabulary.range_starts, vocabulary.range_sizes)):
            allowed[turn, start : start + size] = True
        allowed[0, vocabulary.end_of_audio_id] = True
        allowed[-1, : vocabulary.first_id] = True
        allowed[-1, vocabulary.begin_of_audio_id] = True
        return allowed


class AudioStreamer(BaseStreamer):
    """A streamer of `generate` that decodes audio while the language model goes on, for a batch of one. It serves one
    call after the other; after one that failed, make another streamer.

    Every span of audio is decoded by itself, one after the other. Of the prompt only a span that is still open is
    decoded, as its continuation needs it; text is passed over, and so is a last frame that is not whole.

    L3AC, SQCodec and the bundled codec are decoded in chunks as they come, by `fsqcodec.StreamingDecoder`, NeuCodec by
    `fsqcodec.OverlappingDecoder`. Decoders that hear the whole clip then differ from decoding it at once: NeuCodec's,
    and those that normalise over it, which is said in a warning. For a file these are decoded at the end of a span,
    exactly. So are Lycodec and the codecs of Transformers, always.

    Args:
        vocabulary: the language model's.
        codec: of `fsqcodec.codecs.load_codec`, the one the vocabulary was made for.
        output: a `.wav` or `.flac` file, which appears at the end; or a function that is called with float32 chunks
            `(num_samples,)` at `codec.output_sampling_rate`, of several channels `(num_channels, num_samples)`.
        chunk_seconds: how much audio is decoded at a time.

    Raises `ValueError` for another codec than the vocabulary's, and a file that can't be written.
    """

    def __init__(
        self,
        vocabulary: AudioVocabulary,
        codec: Codec,
        output: str | os.PathLike | Callable[[np.ndarray], None],
        chunk_seconds: float = 0.25,
    ):
        vocabulary.check_codec(codec)
        self.vocabulary, self.codec, self.output = vocabulary, codec, output
        if not callable(output) and Path(output).suffix.lower() not in WRITABLE_SUFFIXES:
            raise ValueError(f"{output} is no {' or '.join(WRITABLE_SUFFIXES)} file: audio is written as one")
        self._span_decoder = _span_decoder(codec, for_file=not callable(output))
        self._num_chunk_ids = max(1, round(chunk_seconds * codec.frame_rate)) * vocabulary.num_ids_per_frame
        self._reset()

    def put(self, value: torch.Tensor):
        """Called by `generate`: first with the prompt `(1, num_ids)`, then with each new id `(1,)`."""
        if len(value) != 1 and value.ndim == 2:
            raise ValueError(f"a batch of {len(value)} is generated: AudioStreamer takes one sequence at a time")
        ids = value.flatten().tolist()
        if self._is_prompt:
            self._is_prompt = False
            ids = ids[_index_after_last(ids, self.vocabulary.end_of_audio_id) :]
        for token_id in ids:
            if token_id == self.vocabulary.begin_of_audio_id:
                self._close_span()
                self._decoder = self._span_decoder(self.codec)
            elif token_id == self.vocabulary.end_of_audio_id:
                self._close_span()
            elif self._decoder is not None:
                self._ids.append(token_id)
                if len(self._ids) == self._num_chunk_ids:
                    self._decode()

    def end(self):
        """Called by `generate` at its end: what is left is decoded, and the file written."""
        self._close_span()
        if not callable(self.output):
            if self._audio:
                write_audio(self.output, np.concatenate(self._audio, axis=-1), self.codec.output_sampling_rate)
            else:
                warnings.warn(f"no audio was generated: {self.output} is not written", stacklevel=2)
        self._reset()

    def _reset(self):
        self._is_prompt = True
        self._decoder = None  # of the span that is open
        self._ids = []  # of that span, not decoded yet
        self._audio = []  # for the file

    def _close_span(self):
        if self._decoder is None:
            return
        self._ids = self._ids[: len(self._ids) - len(self._ids) % self.vocabulary.num_ids_per_frame]
        self._decode()
        self._emit(self._decoder.flush())
        self._decoder = None

    def _decode(self):
        if self._ids:
            self._emit(self._decoder.push(self.vocabulary.ids_to_codes(self._ids)))
        self._ids = []

    def _emit(self, audio: np.ndarray):
        if not audio.size:
            return
        if callable(self.output):
            self.output(audio)
        else:
            self._audio.append(audio)


def _span_decoder(codec: Codec, for_file: bool) -> type:
    """What decodes a span: as it comes where that is exact, and for all but a file where it is close."""
    if codec.streams_frames and not (for_file and codec.model.config.normalizes_over_clip):
        return _StreamingSpanDecoder
    if codec.hears_whole_clip and not for_file:
        return OverlappingDecoder
    return _WholeSpanDecoder


class _StreamingSpanDecoder:
    """The audio of one span, as soon as it is final."""

    def __init__(self, codec: Codec):
        self._stream = StreamingDecoder(codec.model)

    def push(self, codes: torch.Tensor) -> np.ndarray:
        return self._to_array(self._stream.push(codes))

    def flush(self) -> np.ndarray:
        return self._to_array(self._stream.flush())

    def _to_array(self, audio: torch.Tensor) -> np.ndarray:
        return audio[0, 0].float().cpu().numpy()


class _WholeSpanDecoder:
    """The same of any codec: nothing before the end."""

    def __init__(self, codec: Codec):
        self._codec, self._codes = codec, []

    def push(self, codes: torch.Tensor) -> np.ndarray:
        self._codes.append(codes)
        return np.zeros(0, dtype=np.float32)

    def flush(self) -> np.ndarray:
        if not self._codes:
            return np.zeros(0, dtype=np.float32)
        return self._codec.decode([torch.cat(self._codes, dim=1).numpy()])[0]


def _index_after_last(ids: list[int], wanted: int) -> int:
    return len(ids) - ids[::-1].index(wanted) if wanted in ids else 0
