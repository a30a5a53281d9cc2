"""What tokenizing a source would give: what `fsqcodec tokenize --dry-run` prints."""

from concurrent.futures import ThreadPoolExecutor

from ..codecs import load_codec
from .encoding import NUM_READERS, row_seconds, windows
from .run import Settings
from .shards import codec_facts
from .sources import open_source


def estimate(settings: Settings) -> dict[str, float]:
    """Counts by the headers of all clips; the model encodes nothing. Raises as `fsqcodec.tokenization.tokenize`.

    Returns:
        `shards`, `clips`, `unreadable` (by their headers: a clip may still fail), `hours` of audio, `frames`,
        `bits_per_second` of the codec, and `bytes` of codes at as many bits; shards take about a tenth more, and what
        the source's columns take.
    """
    source = open_source(settings.source, settings.shard_size)
    facts = codec_facts(load_codec(settings.model, "cpu"))
    num_clips, num_unreadable, seconds = 0, 0, 0.0
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for part in source.parts:
            for window in windows(enumerate(part.read())):
                for _, row_duration in readers.map(row_seconds, window.values()):
                    num_clips += 1
                    num_unreadable += row_duration is None
                    seconds += row_duration or 0.0
    return {
        "shards": len(source.parts),
        "clips": num_clips,
        "unreadable": num_unreadable,
        "hours": round(seconds / 3600, 3),
        "frames": round(seconds * facts["frame_rate"]),
        "bits_per_second": round(facts["bitrate"], 1),
        "bytes": round(seconds * facts["bitrate"] / 8),
    }
