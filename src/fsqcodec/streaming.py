"""Audio to codes and back while it comes in, equal to what the whole clip gives.

    encoder = StreamingEncoder(model)
    codes = [encoder.push(chunk) for chunk in microphone] + [encoder.flush()]

`push` takes any number of samples, or of frames, and returns what has become final; `flush` returns the rest. Streams
share a model and hold their own state. `push_together` runs several of them as one batch, whenever each of them began.
A codec of crops, Lycodec, waits for whole crops; its crops can overlap.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .models.feature_extraction_codec import LOUDEST_SENSIBLE_PEAK
from .models.modeling_codec import CodecModel
from .models.modeling_lycodec import CROPS_PER_PASS, LycodecModel
from .models.padding import ceil_divide, ceil_to_multiple
from .models.streaming_codec import Span, join_states, split_state, statistics_so_far, stream_decoder, stream_encoder
from .rates import num_channels

LONG_SECONDS = 60.0  # clips of this duration and more are encoded in pieces wherever that makes no difference
PIECE_SECONDS = 5.0  # of audio that go through the model at once, however much is pushed


class _Stream(ABC):
    """What both directions share: input that waits until a frame is whole, the state, the end."""

    def __init__(self, model: CodecModel | LycodecModel):
        if not isinstance(model, (CodecModel, LycodecModel)):
            raise ValueError(
                f"a {type(model).__name__} can't be streamed: a CodecModel or LycodecModel of fsqcodec is wanted "
                "(codecs that hear the whole clip can be decoded in chunks, by OverlappingDecoder)"
            )
        if model.training:
            raise ValueError("the model is in training mode: call model.eval() before streaming")
        self.model = model
        self._state = None
        self._waiting = None  # (batch, channels, num_steps), input that has not gone through the model
        self._next_step = self._first_step()  # of the clip, where what waits begins
        self._num_steps = 0  # pushed
        self._end = _End()

    def push(self, chunk) -> torch.Tensor:
        """See the class. Raises `ValueError` for input that the model can't take, and after `flush`."""
        return push_together([self], [chunk])[0]

    def flush(self) -> torch.Tensor:
        """End the clip: what is still to come of it. Raises `ValueError` the second time."""
        self._check_open()
        self._end = self._end_after(self._num_steps)
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

    @property
    @abstractmethod
    def _steps_per_frame(self) -> int:
        """Steps of the input that make a frame, or what else goes through the model as one."""

    @property
    def _most_frames(self) -> int:
        """How many of these go through the model at once."""
        return max(1, int(PIECE_SECONDS * self.model.config.frame_rate))

    @abstractmethod
    def _first_step(self) -> int:
        """Where the input begins, as the model sees it: 0 or before."""

    @abstractmethod
    def _end_after(self, num_steps: int) -> "_End":
        """What the end of a clip of `num_steps` means."""

    @abstractmethod
    def _checked(self, chunk) -> torch.Tensor:
        """A user's chunk as a tensor `(batch, channels, num_steps)`, or `ValueError`."""

    @abstractmethod
    def _nothing(self, batch_size: int) -> torch.Tensor:
        """An output without steps."""

    @abstractmethod
    def _compute(self, x: torch.Tensor, span: Span, state: tuple | None, streams: "Sequence[_Stream]"):
        """Output `(batch, channels, num_steps)` of a piece of several streams, its span, and the state after it."""


@dataclass(frozen=True)
class _End:
    """Of a clip; all `None` before it is known.

    Args:
        num_clip_steps: what the model takes for the clip's length.
        last_heard: up to which input step the last output depends on it.
        num_final: steps of the whole output.
    """

    num_clip_steps: int | None = None
    last_heard: int | None = None
    num_final: int | None = None


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

    def __new__(cls, model: CodecModel | LycodecModel, *, overlap: bool = False):
        return super().__new__(_class_for(cls, model, overlap, _CropEncoder, _OverlappingEncoder))

    def __init__(self, model: CodecModel | LycodecModel, *, overlap: bool = False):
        super().__init__(model)

    @property
    def _steps_per_frame(self) -> int:
        return self.model.config.hop_length

    def _first_step(self) -> int:
        # zeros before the clip, so that a frame is final whenever the model has been given a whole number of them
        return -(-self.model.config.encoder_lookahead_samples % self.model.config.hop_length)

    def _end_after(self, num_steps: int) -> _End:
        config = self.model.config
        num_frames = ceil_to_multiple(num_steps, config.hop_length) // config.hop_length
        return _End(
            num_clip_steps=ceil_to_multiple(num_steps, config.padding_multiple),
            last_heard=num_frames * config.hop_length + config.encoder_lookahead_samples,
            num_final=num_frames,
        )

    def _checked(self, samples) -> torch.Tensor:
        if not isinstance(samples, (torch.Tensor, np.ndarray)):
            raise ValueError(f"samples are a {type(samples).__name__}: an array or a tensor is wanted")
        samples = torch.as_tensor(samples)
        channels = num_channels(self.model.config)
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
        return samples.to(self.model.device, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of samples."""
        return self.model.dtype

    def _nothing(self, batch_size: int) -> torch.Tensor:
        num_codebooks = self.model.config.num_codebooks
        return torch.zeros(batch_size, num_codebooks, 0, dtype=torch.int64, device=self.model.device)

    def _compute(self, x, span, state, streams):
        latents, span, state = stream_encoder(self.model.encoder, x, span, state)
        return self.model.quantizer(latents)[1].unsqueeze(1), span, state


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

    def __new__(cls, model: CodecModel | LycodecModel, *arguments, overlap: bool = False, **keywords):
        return super().__new__(_class_for(cls, model, overlap, _CropDecoder, _OverlappingDecoder))

    def __init__(
        self,
        model: CodecModel | LycodecModel,
        statistics: Sequence[torch.Tensor] | None = None,
        *,
        overlap: bool = False,
    ):
        super().__init__(model)
        self._given = None if statistics is None else self._checked_statistics(statistics)
        if _normalizes_over_clip(model) and statistics is None:
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
        if self._given is not None:
            return self._given
        return (statistics_so_far(self._state) if self._state else None) or None

    @property
    def _steps_per_frame(self) -> int:
        return 1

    def _first_step(self) -> int:
        return 0

    def _end_after(self, num_steps: int) -> _End:
        hop_length = self.model.config.hop_length
        last_heard = num_steps + self.model.config.decoder_lookahead_samples // hop_length
        return _End(num_clip_steps=num_steps, last_heard=last_heard, num_final=num_steps * hop_length)

    def _checked(self, codes) -> torch.Tensor:
        config = self.model.config
        if not isinstance(codes, (torch.Tensor, np.ndarray)):
            raise ValueError(f"codes are a {type(codes).__name__}: an array or a tensor is wanted")
        codes = torch.as_tensor(codes)
        if codes.ndim == 2:
            codes = codes[None]
        if codes.ndim != 3 or codes.shape[1] != config.num_codebooks or len(codes) == 0:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}: (batch, {config.num_codebooks}, num_frames) is wanted"
            )
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}: integers are wanted")
        if codes.numel() and not 0 <= codes.min() <= codes.max() < config.codebook_size:
            raise ValueError(
                f"codes range from {codes.min()} to {codes.max()}: this codec's are 0 to {config.codebook_size - 1}"
            )
        return codes.to(self.model.device, torch.int64)

    def _checked_statistics(self, statistics: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not _normalizes_over_clip(self.model):
            raise ValueError("statistics were given: this decoder does not normalise over the clip and needs none")
        num_stages = len(self.model.decoder.stages)
        if len(statistics) != num_stages:
            raise ValueError(f"statistics are of {len(statistics)} stages: this decoder has {num_stages}")
        return [stage.to(self.model.device) for stage in statistics]

    def _nothing(self, batch_size: int) -> torch.Tensor:
        channels = num_channels(self.model.config)
        return torch.zeros(batch_size, channels, 0, dtype=self.model.dtype, device=self.model.device)

    def _compute(self, x, span, state, streams):
        features = self.model.quantizer.indices_to_features(x[..., 0])
        statistics = _join_statistics(streams)
        audio, span, state = stream_decoder(self.model.decoder, features, span, state, statistics)
        return audio.transpose(1, 2), span, state


class _Crops(_Stream):
    """Crops that go through a `LycodecModel` one by one, whichever stream they are of. Nothing is remembered."""

    @property
    def _most_frames(self) -> int:
        return CROPS_PER_PASS


class _CropEncoder(_Crops, StreamingEncoder):
    """Samples to the codes of crops that follow each other."""

    @property
    def _steps_per_frame(self) -> int:
        return self.model.config.crop_length

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.model.dtype, torch.float32)

    def _first_step(self) -> int:
        return 0

    def _end_after(self, num_steps: int) -> _End:
        config = self.model.config
        num_crops = ceil_divide(num_steps, config.crop_length)
        return _End(num_steps, num_crops * config.crop_length, num_crops * config.frames_per_crop)

    def _compute(self, x, span, state, streams):
        codes = self._encode(x.unflatten(1, (-1, self.model.config.crop_length)))
        return codes, span.slower(self.model.config.hop_length), _state()

    def _encode(self, crops: torch.Tensor) -> torch.Tensor:
        """`(batch, num_crops, crop_length, 2)` to `(batch, num_codebooks, num_frames)`."""
        codes = self.model.encode(crops.flatten(0, 1).transpose(1, 2)).audio_codes
        return codes.unflatten(0, crops.shape[:2]).transpose(1, 2).flatten(2)


class _OverlappingEncoder(_CropEncoder):
    """What goes through the model are halves of crops; the last one is remembered."""

    @property
    def _steps_per_frame(self) -> int:
        return _half_crop(self.model)

    def _end_after(self, num_steps: int) -> _End:
        num_halves = max(2, ceil_divide(num_steps, self._steps_per_frame))
        num_frames = (num_halves - 1) * self.model.config.frames_per_crop
        return _End(num_steps, num_halves * self._steps_per_frame, num_frames)

    def _compute(self, x, span, state, streams):
        halves = x.unflatten(1, (-1, self._steps_per_frame))
        before = torch.zeros_like(halves[:, :1]) if state is None else state[0][0]
        halves = torch.cat([before, halves], dim=1)
        codes = self._encode(torch.cat([halves[:, :-1], halves[:, 1:]], dim=2))
        frames_per_crop = self.model.config.frames_per_crop  # the first half ends a crop that is not the clip's
        starts = tuple((start // self._steps_per_frame - 1) * frames_per_crop for start in span.starts)
        return codes, Span(starts, span.stops), _state(halves[:, -1:])


class _CropDecoder(_Crops, StreamingDecoder):
    """The codes of crops that follow each other to audio, from the noise that `LycodecModel.decode` starts from."""

    @property
    def _steps_per_frame(self) -> int:
        return self.model.config.frames_per_crop

    def _end_after(self, num_steps: int) -> _End:
        if num_steps % self._steps_per_frame:
            raise ValueError(
                f"the stream has {num_steps} frames: whole crops, a multiple of {self._steps_per_frame}, are wanted"
            )
        return _End(num_steps, num_steps, num_steps * self.model.config.hop_length)

    def _compute(self, x, span, state, streams):
        audio = self._decode(x, span)
        return audio.transpose(1, 2).flatten(2), span.faster(self.model.config.hop_length), _state()

    def _decode(self, x: torch.Tensor, span: Span) -> torch.Tensor:
        """`(batch, num_frames, num_codebooks)` to crops `(batch, num_crops, 2, crop_length)`."""
        crops = x.unflatten(1, (-1, self._steps_per_frame))
        first = torch.tensor(span.starts)[:, None] // self._steps_per_frame
        noise = self.model.crop_noise((first + torch.arange(crops.shape[1])).flatten())
        audio = self.model.decode(crops.flatten(0, 1).transpose(1, 2), noise=noise).audio_values
        return audio.unflatten(0, crops.shape[:2])


class _OverlappingDecoder(_CropDecoder):
    """The second half of the last crop is remembered. After the end comes one crop of zeros, which is not heard."""

    def _end_after(self, num_steps: int) -> _End:
        end = super()._end_after(num_steps)
        num_crops = num_steps // self._steps_per_frame
        return replace(
            end, last_heard=num_steps + self._steps_per_frame, num_final=(num_crops + 1) * _half_crop(self.model)
        )

    def _compute(self, x, span, state, streams):
        half = _half_crop(self.model)
        audio = self._decode(x, span)
        first, second = audio.split(half, dim=-1)
        before = torch.zeros_like(second[:, :1]) if state is None else state[0][0]
        before = torch.cat([before, second], dim=1)
        weight = (torch.arange(half, device=audio.device) + 0.5) / half
        weight = weight.expand(*audio.shape[:2], 1, half).clone()
        for row, (start, stop) in enumerate(zip(span.starts, span.stops)):
            for crop in range(audio.shape[1]):
                place = start + crop * self._steps_per_frame
                if place in (0, stop):  # the first crop is not faded in, nor the last one out
                    weight[row, crop] = float(place == 0)
        output = weight * first + (1 - weight) * before[:, :-1]
        starts = tuple(start // self._steps_per_frame * half for start in span.starts)
        return output.transpose(1, 2).flatten(2), Span(starts, span.stops), _state(before[:, -1:])


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
    if any(type(stream) is not type(streams[0]) or stream.model is not streams[0].model for stream in streams):
        raise ValueError("streams that are pushed together must be of one model, all encoders or all decoders")
    inputs = []
    for stream, chunk in zip(streams, chunks):
        stream._check_open()
        steps = stream._checked(chunk)
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
    statistics = []
    for _ in model.decoder.stages:
        measuring = _MeasuringDecoder(model, statistics)
        measuring.push(audio_codes)
        measuring.flush()
        statistics += statistics_so_far(measuring._state)
    return statistics


class _MeasuringDecoder(StreamingDecoder):
    """Runs the stages whose statistics are given, and measures those of the next one."""

    def _checked_statistics(self, statistics: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(statistics)

    def _compute(self, x, span, state, streams):
        features = self.model.quantizer.indices_to_features(x[..., 0])
        _, span, state = stream_decoder(self.model.decoder, features, span, state, self._given, only_measure=True)
        return self._nothing(len(x)), span, state


@torch.no_grad()
def _advance(streams: Sequence[_Stream]) -> list[torch.Tensor]:
    """Run what waits, as many frames at a time as all streams have that have any."""
    outputs = {id(stream): [] for stream in streams}
    while ready := [stream for stream in streams if stream._waiting.shape[-1] >= stream._steps_per_frame]:
        first = ready[0]
        num_frames = min(stream._waiting.shape[-1] // first._steps_per_frame for stream in ready)
        pieces, spans = zip(
            *(stream._take(min(num_frames, first._most_frames) * first._steps_per_frame) for stream in ready)
        )
        sizes = [len(piece) for piece in pieces]
        span = Span(sum((span.starts for span in spans), ()), sum((span.stops for span in spans), ()))
        state = join_states([stream._state for stream in ready], sizes)
        output, span, state = first._compute(torch.cat(pieces), span, state, ready)
        rows = 0
        for stream, steps, stream._state in zip(ready, output.split(sizes), split_state(state, sizes)):
            outputs[id(stream)].append(stream._final(steps, span.starts[rows]))
            rows += len(steps)
    return [torch.cat([stream._nothing(len(stream._waiting)), *outputs[id(stream)]], dim=-1) for stream in streams]


def _class_for(cls: type, model, overlap: bool, crops: type, overlapping: type) -> type:
    """Which subclass of `cls` streams this model."""
    if not isinstance(model, LycodecModel):
        if overlap:
            raise ValueError(
                f"overlap is for codecs of crops, as Lycodec: a {type(model).__name__} streams without joins"
            )
        return cls
    return overlapping if overlap else crops


def _half_crop(model: LycodecModel) -> int:
    """Samples between crops that overlap."""
    if model.config.crop_length % 2:
        raise ValueError(f"crops of {model.config.crop_length} samples can't overlap by half: an even number is wanted")
    return model.config.crop_length // 2


def _state(*memories: torch.Tensor) -> tuple:
    """What is remembered, `(batch, ...)` each, in the form of `join_states`."""
    return memories, (), None


def _normalizes_over_clip(model: CodecModel | LycodecModel) -> bool:
    return isinstance(model, CodecModel) and model.config.normalizes_over_clip


def _join_statistics(streams: Sequence[StreamingDecoder]) -> list[torch.Tensor] | None:
    """The given statistics of all streams, or `None` if they have none."""
    given = [stream._given for stream in streams]
    if all(statistics is None for statistics in given):
        return None
    if any(statistics is None for statistics in given):
        raise ValueError("streams with and without given statistics can't be pushed together: push them apart")
    sizes = [len(stream._waiting) for stream in streams]
    return [
        torch.cat([stage.expand(-1, size, -1, -1) for stage, size in zip(stages, sizes)], dim=1)
        for stages in zip(*given)
    ]
