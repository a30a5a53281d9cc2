"""What every configuration of this package tells of its tokens."""

import math


class TokenRates:
    """To be inherited before a `PreTrainedConfig` with `sampling_rate`, `hop_length` and `quantization_levels`.

    A family with two rates, or with several streams, has a property of its own instead of the one here.
    """

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz, not rounded."""
        return self.sampling_rate / self.hop_length

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
