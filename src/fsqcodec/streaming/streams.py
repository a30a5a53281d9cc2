"""Encoders and decoders that take a clip as it comes.

`push` takes any number of samples, or of frames, and returns what has become final; `flush` returns the rest. Streams
share a model and hold their own state. `push_together` runs several of them as one batch, whenever each of them began.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from ..models.configuration_codec import ENHANCE_KERNEL_SIZES, CodecConfig
from ..models.configuration_lycodec import LycodecConfig
from ..models.feature_extraction_codec import LOUDEST_SENSIBLE_PEAK
from ..models.modeling_codec import CodecModel
from ..models.modeling_lycodec import LycodecModel
from ..models.pretrained import PreTrainedCodec
from ..models.streaming_codec import Span, join_states, split_state, statistics_so_far
from .crops import CropDecoding, CropEncoding, OverlappingCropDecoding, OverlappingCropEncoding
from .frames import FrameDecoding, FrameEncoding, FrameMeasuring
from .pieces import End, Pieces

ENCODING = {  # by model_type: what a stream runs, and with overlap, `None` where it can't overlap
    CodecConfig.model_type: (FrameEncoding, None),
    LycodecConfig.model_type: (CropEncoding, OverlappingCropEncoding),
}
DECODING = {
    CodecConfig.model_type: (FrameDecoding, None),
    LycodecConfig.model_type: (CropDecoding, OverlappingCropDecoding),
}


class _Stream(ABC):
    """What both directions share: input that waits until a frame is whole, the state, the end."""

    def __init__(self, model: CodecModel | LycodecModel, pieces: Pieces):
        if model.training:
            raise ValueError("the model is in training mode: call model.eval() before streaming")
        self.model = model
        self._pieces = pieces
        self._state = None
        self._waiting = None  # (batch, channels, num_steps), input that has not gone through the model
        self._next_step = pieces.first_step  # of the clip, where what waits begins
        self._num_steps = 0  # pushed
        self._end = End()

    def push(self, chunk) -> torch.Tensor:
        """See the class. Raises `ValueError` for input that the model can't take, and after `flush`."""
        return push_together([self], [chunk])[0]

    def flush(self) -> torch.Tensor:
        """End the clip: what is still to come of it. Raises `ValueError` the second time."""
        self._check_open()
        self._end = self._pieces.end(self._num_steps)
        if not self._num_steps:
            return self._nothing(1 if self._waiting is None else len(self._waiting))
        num_missing = self._end.last_heard - self._next_step - self._waiting.shape[-1]
        self._wait(self._waiting.new_zeros(*self._waiting.shape[:2], num_missing))
        return _advance([self])[0]

    def _check_open(self):
        if self._end.num_final is not None:
            raise ValueError(f"the stream has ended: make another {type(self).__name__} for the next clip")

    def _accept(self, steps: torch.Tensor):
        """Let checked input `(batch, channels, num_steps)` wait."""
        if self._waiting is None:
            self._waiting = steps.new_zeros(*steps.shape[:2], -self._next_step)
        self._wait(steps)
        self._num_steps += steps.shape[-1]

    def _wait(self, steps: torch.Tensor):
        self._waiting = torch.cat([self._waiting, steps], dim=-1)

    def _take(self, num_steps: int) -> tuple[torch.Tensor, Span]:
        """What waits, `(batch, num_steps, channels)`, and where it lies."""
        taken, self._waiting = self._waiting[..., :num_steps], self._waiting[..., num_steps:]
        span = Span((self._next_step,) * len(taken), (self._end.num_clip_steps,) * len(taken))
        self._next_step += num_steps
        return taken.transpose(1, 2), span

    def _final(self, steps: torch.Tensor, start: int) -> torch.Tensor:
        """Those of `(batch, channels, num_steps)`, which begin with step `start` of the output, that are the clip's."""
        stop = None if self._end.num_final is None else max(0, self._end.num_final - start)
        return steps[..., max(0, -start) : stop]

    @abstractmethod
    def _checked(self, chunk) -> torch.Tensor:
        """A user's chunk as a tensor `(batch, channels, num_steps)`, or `ValueError`."""

    @abstractmethod
    def _nothing(self, batch_size: int) -> torch.Tensor:
        """An output without steps."""


class StreamingEncoder(_Stream):
    """Audio to codes, as it comes in: equal to `model.encode` of the whole for every way to cut it.

    `push(samples)` takes floats in [-1, 1] at `model.config.sampling_rate`, any number of them, as an array or a tensor
    `(num_samples,)`, or `(batch, 1, num_samples)` for clips in step. It returns int64 codes
    `(batch, num_codebooks, num_frames)`: those that are final. A code is final `config.encoder_lookahead_samples` after
    the last sample of its frame. `flush()` ends the clip and returns the rest, `ceil(num_samples / hop_length)` in all.
    In half precision codes near a rounding boundary may differ from those of the whole.

    Of Lycodec `push` takes `(num_samples,)`, `(2, num_samples)` or `(batch, 2, num_samples)` and returns the frames of
    whole crops; `flush` pads the last one with silence. With `overlap` each crop begins half a crop after the one
    before it, which doubles the rate: such codes are for a `StreamingDecoder` with `overlap` only. Raises `ValueError`
    for an `overlap` of another codec.
    """

    def __init__(self, model: CodecModel | LycodecModel, *, overlap: bool = False):
        super().__init__(model, _pieces_class(ENCODING, model, overlap)(model))

    def _checked(self, samples) -> torch.Tensor:
        samples = _as_tensor(samples, "samples")
        channels = self.model.config.num_channels
        given = samples
        if samples.ndim == 1 or samples.ndim == 2 and channels > 1:
            samples = torch.atleast_2d(samples)[None]
        if samples.ndim != 3 or samples.shape[1] not in (1, channels) or len(samples) == 0:
            kind = "mono audio (num_samples,)" if channels == 1 else f"audio ({channels}, num_samples)"
            raise ValueError(
                f"samples have shape {tuple(given.shape)}: {kind} or (batch, {channels}, num_samples) is wanted"
            )
        samples = samples.expand(-1, channels, -1)
        if not samples.is_floating_point():
            raise ValueError(f"samples are {samples.dtype}: floats in [-1, 1] are wanted, int16 divided by 32768")
        peak = samples.abs().max().item() if samples.numel() else 0.0
        if not peak <= LOUDEST_SENSIBLE_PEAK:  # not a number either
            raise ValueError(f"samples peak at {peak:g}: finite ones in [-1, 1] are wanted")
        return samples.to(self.model.device, torch.promote_types(self.model.dtype, torch.float32))

    def _nothing(self, batch_size: int) -> torch.Tensor:
        num_codebooks = self.model.config.num_codebooks
        return torch.zeros(batch_size, num_codebooks, 0, dtype=torch.int64, device=self.model.device)


class StreamingDecoder(_Stream):
    """Codes to audio, as they come in.

    `push(codes)` takes integer codes `(num_codebooks, num_frames)` or `(batch, num_codebooks, num_frames)`, any number
    of frames, and returns audio `(batch, 1, num_samples)`: the samples that are final. The last sample of a frame is
    final with the token `config.decoder_lookahead_samples` later. `flush()` ends the clip and returns the rest,
    `num_frames * hop_length` samples in all.

    Equal to `model.decode` of the whole up to rounding where the decoder does not normalise over the clip
    (`config.normalizes_over_clip`). Where it does, it normalises by the statistics so far, which is another result and
    said in a warning; or by `statistics`, those of an earlier clip of the same speaker (its `StreamingDecoder`'s
    `statistics` at the end, or `clip_statistics`). With those of the clip itself it is equal to the whole.

    Of Lycodec it returns stereo `(batch, 2, num_samples)` of whole crops. With `overlap` it takes what a
    `StreamingEncoder` with `overlap` returns, fades each crop into the next one, over half a crop, with weights that
    sum to 1, and returns half a crop more in the end. Raises `ValueError` for an `overlap` of another codec, and when
    the clip ends within a crop.
    """

    def __init__(
        self,
        model: CodecModel | LycodecModel,
        statistics: Sequence[torch.Tensor] | None = None,
        *,
        overlap: bool = False,
    ):
        pieces_class = _pieces_class(DECODING, model, overlap)
        if statistics is None:
            super().__init__(model, pieces_class(model))
        else:
            super().__init__(model, pieces_class(model, _checked_statistics(model, statistics)))
        if model.config.normalizes_over_clip and statistics is None:
            warnings.warn(
                "this decoder normalises over the clip, which a stream does not know: it normalises by what came so "
                "far, and the audio differs from that of the whole. Give statistics= of an earlier clip, or use a "
                "model with enhance_normalization 'running'",
                stacklevel=2,
            )

    @property
    def statistics(self) -> list[torch.Tensor] | None:
        """Mean and variance of the envelopes that the decoder normalises by, `(2, batch, num_envelopes, 1)` for each of
        its stages: those given, or those so far. `None` before the first audio, and where it needs none."""
        if self._pieces.statistics is not None:
            return self._pieces.statistics
        return (statistics_so_far(self._state) if self._state else None) or None

    def _checked(self, codes) -> torch.Tensor:
        config = self.model.config
        codes = _as_tensor(codes, "codes")
        given = codes
        if codes.ndim == 2:
            codes = codes[None]
        if codes.ndim != 3 or codes.shape[1] != config.num_codebooks or len(codes) == 0:
            raise ValueError(
                f"codes have shape {tuple(given.shape)}: ({config.num_codebooks}, num_frames) or "
                f"(batch, {config.num_codebooks}, num_frames) is wanted"
            )
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}: integers are wanted")
        codes = codes.to(torch.int64)
        if codes.numel() and not 0 <= codes.min() <= codes.max() < config.codebook_size:
            raise ValueError(
                f"codes range from {codes.min()} to {codes.max()}: this codec's are 0 to {config.codebook_size - 1}"
            )
        return codes.to(self.model.device)

    def _nothing(self, batch_size: int) -> torch.Tensor:
        channels = self.model.config.num_channels
        return torch.zeros(batch_size, channels, 0, dtype=self.model.dtype, device=self.model.device)


def push_together(streams: Sequence[_Stream], chunks: Sequence) -> list[torch.Tensor]:
    """`stream.push(chunk)` of several encoders, or several decoders, of one model, computed as a batch.

    Each has its own beginning and end: streams come and go from call to call, and chunks may have any lengths. What a
    stream returns does not depend on those beside it. Raises `ValueError` as `push` does, with nothing pushed, and for
    streams of several models or kinds.
    """
    if len(streams) != len(chunks):
        raise ValueError(f"{len(streams)} streams and {len(chunks)} chunks: one chunk for each stream is wanted")
    if len(set(map(id, streams))) < len(streams):
        raise ValueError("a stream is given twice: one chunk for each stream is wanted")
    kinds = {(type(stream._pieces), id(stream.model)) for stream in streams}
    if len(kinds) > 1:
        raise ValueError("streams that are pushed together must be of one model, all encoders or all decoders")
    if len({stream._pieces.statistics is None for stream in streams}) > 1:
        raise ValueError("streams with and without given statistics can't be pushed together: push them apart")
    inputs = []
    for stream, chunk in zip(streams, chunks):
        stream._check_open()
        steps = stream._checked(chunk)
        given = stream._pieces.statistics
        if given and given[0].shape[1] not in (1, len(steps)):
            raise ValueError(
                f"the given statistics are of {given[0].shape[1]} clips, a chunk is of {len(steps)}: the same number "
                "is wanted, or statistics of one clip"
            )
        if stream._waiting is not None and len(steps) != len(stream._waiting):
            raise ValueError(
                f"a chunk is of {len(steps)} clips, those before it were of {len(stream._waiting)}: the batch of a "
                "stream stays as it began"
            )
        inputs.append(steps)
    for stream, steps in zip(streams, inputs):
        stream._accept(steps)
    return _advance(streams)


@torch.no_grad()
def clip_statistics(model: CodecModel, audio_codes: torch.Tensor) -> list[torch.Tensor]:
    """What the decoder of a model that normalises over the clip would normalise by for `(batch, 1, num_frames)`: for
    `StreamingDecoder(model, statistics=...)`. The memory it takes does not grow with the clip.

    The statistics of each stage depend on those before: pass k over the codes runs the stages up to k. Raises
    `ValueError` as `StreamingDecoder` does, for no frames as well.
    """
    if audio_codes.shape[-1] == 0:
        raise ValueError("audio_codes have no frames: there are no statistics")
    _pieces_class(DECODING, model, overlap=False)
    if not model.config.normalizes_over_clip:
        raise ValueError("this decoder does not normalise over the clip: it has no statistics")
    statistics = []
    for _ in model.decoder.stages:
        measuring = _MeasuringDecoder(model, statistics)
        measuring.push(audio_codes)
        measuring.flush()
        statistics += statistics_so_far(measuring._state)
    return statistics


class _MeasuringDecoder(StreamingDecoder):
    """Measures the stage after those whose statistics are given."""

    def __init__(self, model: CodecModel, statistics: Sequence[torch.Tensor]):
        _Stream.__init__(self, model, FrameMeasuring(model, statistics))


@torch.no_grad()
def _advance(streams: Sequence[_Stream]) -> list[torch.Tensor]:
    """Run what waits, as many frames at a time as all streams have that have any."""
    outputs = {id(stream): [] for stream in streams}
    while ready := [stream for stream in streams if stream._waiting.shape[-1] >= stream._pieces.steps_per_frame]:
        pieces = ready[0]._pieces
        num_frames = min(stream._waiting.shape[-1] // pieces.steps_per_frame for stream in ready)
        num_steps = min(num_frames, pieces.most_frames) * pieces.steps_per_frame
        inputs, spans = zip(*(stream._take(num_steps) for stream in ready))
        sizes = [len(rows) for rows in inputs]
        span = Span(sum((span.starts for span in spans), ()), sum((span.stops for span in spans), ()))
        state = join_states([stream._state for stream in ready], sizes)
        company = [(stream._pieces, size) for stream, size in zip(ready, sizes)]
        output, span, state = pieces.compute(torch.cat(inputs), span, state, company)
        first_row = 0
        for stream, steps, stream._state in zip(ready, output.split(sizes), split_state(state, sizes)):
            outputs[id(stream)].append(stream._final(steps, span.starts[first_row]))
            first_row += len(steps)
    return [torch.cat([stream._nothing(len(stream._waiting)), *outputs[id(stream)]], dim=-1) for stream in streams]


def _pieces_class(table: dict[str, tuple], model, overlap: bool) -> type[Pieces]:
    """Class in `table` that computes the model. Raises `ValueError` where it can't be streamed so."""
    if not isinstance(model, PreTrainedCodec) or model.config.model_type not in table:
        raise ValueError(
            f"a {type(model).__name__} can't be streamed: a CodecModel or LycodecModel of fsqcodec is wanted "
            "(codecs that hear the whole clip can be decoded in chunks, by OverlappingDecoder)"
        )
    alone, overlapping = table[model.config.model_type]
    if overlap and overlapping is None:
        raise ValueError(f"overlap is for codecs of crops, as Lycodec: a {type(model).__name__} streams without joins")
    return overlapping if overlap else alone


def _checked_statistics(model: CodecModel | LycodecModel, statistics: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """On the model's device, or `ValueError`."""
    if not model.config.normalizes_over_clip:
        raise ValueError("statistics were given: this decoder does not normalise over the clip and needs none")
    num_stages = len(model.decoder.stages)
    if len(statistics) != num_stages:
        raise ValueError(f"statistics are of {len(statistics)} stages: this decoder has {num_stages}")
    num_envelopes = len(ENHANCE_KERNEL_SIZES)
    for stage in statistics:
        if not isinstance(stage, torch.Tensor) or not stage.is_floating_point():
            given = stage.dtype if isinstance(stage, torch.Tensor) else f"a {type(stage).__name__}"
            raise ValueError(f"statistics of a stage are {given}: a tensor of floats is wanted")
        if stage.ndim != 4 or stage.shape[::2] != (2, num_envelopes) or stage.shape[3] != 1:
            given = tuple(stage.shape)
            raise ValueError(f"statistics of a stage have shape {given}: (2, batch, {num_envelopes}, 1) is wanted")
        if not stage.isfinite().all() or (stage[1] < 0).any():
            raise ValueError("statistics of a stage are not finite, or a variance is negative")
    return [stage.to(model.device, torch.promote_types(model.dtype, torch.float32)) for stage in statistics]


def _as_tensor(steps, name: str) -> torch.Tensor:
    """A user's chunk, of numbers; an array's own memory is not kept."""
    if isinstance(steps, np.ndarray):
        if steps.dtype.kind not in "fiu":
            raise ValueError(f"{name} are {steps.dtype}: numbers are wanted")
        dtype = steps.dtype.newbyteorder("=") if steps.dtype.itemsize <= 8 else np.float64
        return torch.from_numpy(np.array(steps, dtype, order="C"))
    if not isinstance(steps, torch.Tensor):
        raise ValueError(f"{name} are a {type(steps).__name__}: an array or a tensor is wanted")
    return steps
