"""The README.md of a converted folder."""

from importlib.metadata import version

from ..models.configuration_codec import CodecConfig
from .verification import Agreement

SOURCES = {
    "l3ac": ("L3AC", "https://github.com/zhai-lw/L3AC"),
    "sqcodec": ("SQCodec", "https://github.com/zhai-lw/SQCodec"),
}

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: audio-to-audio
license: mit
tags: [audio-codec, speech-tokenizer, fsqcodec, {origin}]
---
# {title}

{family} ({url}, MIT; paper https://arxiv.org/abs/2504.04949), converted by fsqcodec {version}.

| sampling rate | tokens per second | codebook | bit/s |
|---|---|---|---|
| {config.sampling_rate} Hz | {config.frame_rate:.2f} | {config.codebook_size} | {config.bitrate:.1f} |

```python
import fsqcodec
import torch
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("path/of/this/folder")
feature_extractor = AutoFeatureExtractor.from_pretrained("path/of/this/folder")
features = feature_extractor(audio, sampling_rate={config.sampling_rate}, return_tensors="pt")
with torch.inference_mode():
    audio_codes = model.encode(**features).audio_codes  # (batch, 1, num_frames)
    audio_values = model.decode(audio_codes).audio_values  # (batch, 1, num_samples)
```

Verification against the original package: {verification}.
"""


def model_card(origin: str, preset: str | None, config: CodecConfig, agreement: Agreement | None) -> str:
    """The card's text; `agreement` is `None` where the conversion was not verified."""
    family, url = SOURCES[origin]
    return TEMPLATE.format(
        origin=origin,
        title=preset or f"{family}, own sizes",
        family=family,
        url=url,
        version=version("fsqcodec"),
        config=config,
        verification="not run" if agreement is None else agreement,
    )
