"""Audio to codes and back while it comes in, equal to what the whole clip gives.

    encoder = StreamingEncoder(model)
    codes = [encoder.push(chunk) for chunk in microphone] + [encoder.flush()]

`streams` holds what users call, `frames` and `crops` how the two kinds of codec compute a piece, and `pieces` what they
have in common. The layers themselves are in `models/streaming_codec.py`.
"""

from .streams import StreamingDecoder, StreamingEncoder, clip_statistics, push_together

__all__ = ["StreamingDecoder", "StreamingEncoder", "clip_statistics", "push_together"]
