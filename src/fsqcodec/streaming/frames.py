"""Pieces of whole frames: L3AC, SQCodec and the bundled codec, whose layers remember what they need."""

from collections.abc import Sequence

import torch

from ..models.modeling_codec import CodecModel, warn_of_half_precision
from ..models.padding import ceil_to_multiple
from ..models.streaming_codec import stream_decoder, stream_encoder
from .pieces import End, Pieces

PIECE_SECONDS = 5.0  # of audio that go through the model at once, however much is pushed


class FrameEncoding(Pieces):
    """Samples to codes."""

    def __init__(self, model: CodecModel):
        config = model.config
        # zeros before the clip, so that a frame is final whenever the model has been given a whole number of them
        first_step = -(-config.encoder_lookahead_samples % config.hop_length)
        super().__init__(model, config.hop_length, _most_frames(model), first_step)
        warn_of_half_precision(model)

    def end(self, num_steps: int) -> End:
        config = self.model.config
        num_frames = ceil_to_multiple(num_steps, config.hop_length) // config.hop_length
        return End(
            num_clip_steps=ceil_to_multiple(num_steps, config.padding_multiple),
            last_heard=num_frames * config.hop_length + config.encoder_lookahead_samples,
            num_final=num_frames,
        )

    def compute(self, x, span, state, company):
        latents, span, state = stream_encoder(self.model.encoder, x.to(self.model.dtype), span, state)
        return self.model.quantizer(latents)[1].unsqueeze(1), span, state


class FrameDecoding(Pieces):
    """Codes to samples, normalised by `statistics` where they are given: mean and variance of the envelopes of each
    stage, `(2, batch, num_envelopes, 1)`."""

    def __init__(self, model: CodecModel, statistics: Sequence[torch.Tensor] | None = None):
        super().__init__(model, 1, _most_frames(model))
        self.statistics = statistics

    def end(self, num_steps: int) -> End:
        hop_length = self.model.config.hop_length
        last_heard = num_steps + self.model.config.decoder_lookahead_samples // hop_length
        return End(num_clip_steps=num_steps, last_heard=last_heard, num_final=num_steps * hop_length)

    def compute(self, x, span, state, company):
        features = self.model.quantizer.indices_to_features(x[..., 0])
        audio, span, state = stream_decoder(self.model.decoder, features, span, state, _join_statistics(company))
        return audio.transpose(1, 2), span, state


class FrameMeasuring(FrameDecoding):
    """Runs the decoder's stages whose statistics are given, and measures those of the next one: no output."""

    def compute(self, x, span, state, company):
        features = self.model.quantizer.indices_to_features(x[..., 0])
        _, span, state = stream_decoder(self.model.decoder, features, span, state, self.statistics, only_measure=True)
        return features.new_zeros(len(x), 1, 0), span, state


def _most_frames(model: CodecModel) -> int:
    return max(1, int(PIECE_SECONDS * model.config.frame_rate))


def _join_statistics(company: Sequence[tuple[FrameDecoding, int]]) -> list[torch.Tensor] | None:
    """The given statistics of all streams, or `None` if they have none."""
    given = [pieces.statistics for pieces, _ in company]
    if given[0] is None:
        return None
    sizes = [size for _, size in company]
    return [
        torch.cat([stage.expand(-1, size, -1, -1) for stage, size in zip(stages, sizes)], dim=1)
        for stages in zip(*given)
    ]
