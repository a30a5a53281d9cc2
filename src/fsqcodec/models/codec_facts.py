"""The questions that every configuration of this package answers, so that no caller has to ask for its family."""

import math


class CodecFacts:
    """Facts that follow from a configuration's fields. Every one is a property, so config.json holds none of them.

    To be inherited before a `PreTrainedConfig` that has `quantization_levels`, `input_sampling_rate`,
    `output_sampling_rate`, `encoder_hop_length`, `decoder_hop_length` and `num_frames`. A family with several streams,
    with crops or with more channels has a property or a field of its own instead of the one here.
    """

    @property
    def num_channels(self) -> int:
        """Channels of the audio that goes in and comes out."""
        return 1

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz, not rounded."""
        return self.input_sampling_rate / self.encoder_hop_length

    @property
    def num_codebooks(self) -> int:
        """Token streams: one."""
        return 1

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens of a stream."""
        return math.prod(self.quantization_levels)

    @property
    def bits_per_frame(self) -> float:
        """Information of one frame, bits."""
        return self.num_codebooks * math.log2(self.codebook_size)

    @property
    def bitrate(self) -> float:
        """Bits per second."""
        return self.frame_rate * self.bits_per_frame

    @property
    def crop_length(self) -> int:
        """Samples that are coded together and apart from all others; 0 for a codec without crops."""
        return 0

    @property
    def frames_per_crop(self) -> int:
        """Frames of a crop: codes are packed and decoded in multiples of it. 1 for a codec without crops."""
        return 1

    @property
    def hears_whole_clip(self) -> bool:
        """Whether every token and every sample depends on the whole clip, so that there is no look-ahead to state."""
        return False

    @property
    def normalizes_over_clip(self) -> bool:
        """Whether decoded audio depends on statistics of the whole clip, beside the frames around it."""
        return False

    @property
    def streams_frames(self) -> bool:
        """Whether tokens and audio follow frame by frame from a limited stretch of the clip, so that a long clip can be
        coded in pieces."""
        return not (self.crop_length or self.hears_whole_clip)


class OneRateFacts(CodecFacts):
    """The same where audio goes in and comes out at one `sampling_rate`, with one `hop_length`."""

    @property
    def input_sampling_rate(self) -> int:
        """Hz of the audio that goes in."""
        return self.sampling_rate

    @property
    def output_sampling_rate(self) -> int:
        """Hz of the audio that comes out."""
        return self.sampling_rate

    @property
    def encoder_hop_length(self) -> int:
        """Samples of one frame at `input_sampling_rate`."""
        return self.hop_length

    @property
    def decoder_hop_length(self) -> int:
        """Samples of one frame at `output_sampling_rate`."""
        return self.hop_length

    def num_frames(self, num_samples: int) -> int:
        """Frames that a clip of `num_samples` is encoded to: whole frames, or whole crops, that hold all of them."""
        samples_at_once = self.crop_length or self.hop_length
        return -(-num_samples // samples_at_once) * self.frames_per_crop
