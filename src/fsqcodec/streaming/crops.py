"""Pieces of whole crops: Lycodec, which knows nothing of the crops before and after, so that they go through the model
one by one, whichever stream they are of. They can follow each other, or overlap by half."""

from dataclasses import replace

import torch

from ..models.modeling_lycodec import CROPS_PER_PASS, LycodecModel
from ..models.padding import ceil_divide
from ..models.streaming_codec import Span
from .pieces import End, Pieces


class CropEncoding(Pieces):
    """Samples to the codes of crops that follow each other."""

    def __init__(self, model: LycodecModel):
        super().__init__(model, model.config.crop_length, CROPS_PER_PASS)

    def end(self, num_steps: int) -> End:
        config = self.model.config
        num_crops = ceil_divide(num_steps, config.crop_length)
        return End(num_steps, num_crops * config.crop_length, num_crops * config.frames_per_crop)

    def compute(self, x, span, state, company):
        codes = _encode(self.model, x.unflatten(1, (-1, self.steps_per_frame)))
        return codes, span.slower(self.model.config.hop_length), _state()


class OverlappingCropEncoding(Pieces):
    """What goes through the model are halves of crops; the last one is remembered."""

    def __init__(self, model: LycodecModel):
        super().__init__(model, _half_crop(model), CROPS_PER_PASS)

    def end(self, num_steps: int) -> End:
        num_halves = max(2, ceil_divide(num_steps, self.steps_per_frame))
        num_frames = (num_halves - 1) * self.model.config.frames_per_crop
        return End(num_steps, num_halves * self.steps_per_frame, num_frames)

    def compute(self, x, span, state, company):
        halves = x.unflatten(1, (-1, self.steps_per_frame))
        before = torch.zeros_like(halves[:, :1]) if state is None else state[0][0]
        halves = torch.cat([before, halves], dim=1)
        codes = _encode(self.model, torch.cat([halves[:, :-1], halves[:, 1:]], dim=2))
        frames_per_crop = self.model.config.frames_per_crop  # the first half ends a crop that is not the clip's
        starts = tuple((start // self.steps_per_frame - 1) * frames_per_crop for start in span.starts)
        return codes, Span(starts, span.stops), _state(halves[:, -1:])


class CropDecoding(Pieces):
    """The codes of crops that follow each other to audio, from the noise that `LycodecModel.decode` starts from."""

    def __init__(self, model: LycodecModel):
        super().__init__(model, model.config.frames_per_crop, CROPS_PER_PASS)

    def end(self, num_steps: int) -> End:
        if num_steps % self.steps_per_frame:
            raise ValueError(
                f"the stream has {num_steps} frames: whole crops, a multiple of {self.steps_per_frame}, are wanted"
            )
        return End(num_steps, num_steps, num_steps * self.model.config.hop_length)

    def compute(self, x, span, state, company):
        audio = self._decode(x, span)
        return audio.transpose(1, 2).flatten(2), span.faster(self.model.config.hop_length), _state()

    def _decode(self, x: torch.Tensor, span: Span) -> torch.Tensor:
        """`(batch, num_frames, num_codebooks)` to crops `(batch, num_crops, 2, crop_length)`."""
        crops = x.unflatten(1, (-1, self.steps_per_frame))
        first = torch.tensor(span.starts)[:, None] // self.steps_per_frame
        noise = self.model.crop_noise((first + torch.arange(crops.shape[1])).flatten())
        audio = self.model.decode(crops.flatten(0, 1).transpose(1, 2), noise=noise).audio_values
        return audio.unflatten(0, crops.shape[:2])


class OverlappingCropDecoding(CropDecoding):
    """The second half of the last crop is remembered. After the end comes one crop of zeros, which is not heard."""

    def __init__(self, model: LycodecModel):
        super().__init__(model)
        self.half_crop = _half_crop(model)

    def end(self, num_steps: int) -> End:
        num_crops = num_steps // self.steps_per_frame
        return replace(
            super().end(num_steps),
            last_heard=num_steps + self.steps_per_frame,
            num_final=(num_crops + 1) * self.half_crop,
        )

    def compute(self, x, span, state, company):
        first, second = self._decode(x, span).split(self.half_crop, dim=-1)
        before = torch.zeros_like(second[:, :1]) if state is None else state[0][0]
        before = torch.cat([before, second], dim=1)
        weight = self._weights(span, first)
        output = weight * first + (1 - weight) * before[:, :-1]
        starts = tuple(start // self.steps_per_frame * self.half_crop for start in span.starts)
        return output.transpose(1, 2).flatten(2), Span(starts, span.stops), _state(before[:, -1:])

    def _weights(self, span: Span, halves: torch.Tensor) -> torch.Tensor:
        """Of crops' first halves `(batch, num_crops, 2, half_crop)`, `(batch, num_crops, 1, half_crop)`; the crops
        before them have the rest. The first crop is not faded in, nor the last one out."""
        weights = (torch.arange(self.half_crop, device=halves.device) + 0.5) / self.half_crop
        weights = weights.expand(*halves.shape[:2], 1, self.half_crop).clone()
        for row, (start, stop) in enumerate(zip(span.starts, span.stops)):
            for crop in range(halves.shape[1]):
                place = start + crop * self.steps_per_frame
                if place in (0, stop):
                    weights[row, crop] = float(place == 0)
        return weights


def _encode(model: LycodecModel, crops: torch.Tensor) -> torch.Tensor:
    """`(batch, num_crops, crop_length, 2)` to `(batch, num_codebooks, num_frames)`."""
    codes = model.encode(crops.flatten(0, 1).transpose(1, 2)).audio_codes
    return codes.unflatten(0, crops.shape[:2]).transpose(1, 2).flatten(2)


def _half_crop(model: LycodecModel) -> int:
    """Samples between crops that overlap."""
    if model.config.crop_length % 2:
        raise ValueError(f"crops of {model.config.crop_length} samples can't overlap by half: an even number is wanted")
    return model.config.crop_length // 2


def _state(*memories: torch.Tensor) -> tuple:
    """What is remembered, `(batch, ...)` each, in the form of `join_states`."""
    return memories, (), None
