"""Neural audio codecs with one quantizer as Transformers models.

Importing this package registers them: `AutoModel`, `AutoModelForAudioTokenization`, `AutoConfig` and
`AutoFeatureExtractor` load their folders.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from .conversion import convert_checkpoint
from .models.configuration_codec import CodecConfig
from .models.feature_extraction_codec import CodecFeatureExtractor
from .models.modeling_codec import CodecModel
from .presets import list_presets
from .streaming import StreamingDecoder, StreamingEncoder

__all__ = [
    "CodecConfig",
    "CodecFeatureExtractor",
    "CodecModel",
    "StreamingDecoder",
    "StreamingEncoder",
    "convert_checkpoint",
    "list_presets",
]

AutoConfig.register(CodecConfig.model_type, CodecConfig)
AutoModel.register(CodecConfig, CodecModel)
AutoModelForAudioTokenization.register(CodecConfig, CodecModel)
AutoFeatureExtractor.register(CodecConfig, CodecFeatureExtractor)
