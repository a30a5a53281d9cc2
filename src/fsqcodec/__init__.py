"""Neural audio codecs with one quantizer as Transformers models.

Importing this package registers them: `AutoModel`, `AutoModelForAudioTokenization`, `AutoConfig` and
`AutoFeatureExtractor` load their folders.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from .checkpoints import bundled_checkpoint
from .conversion import convert_checkpoint
from .files import decode_file, encode_file
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
    "bundled_checkpoint",
    "convert_checkpoint",
    "decode_file",
    "encode_file",
    "list_presets",
]

AutoConfig.register(CodecConfig.model_type, CodecConfig)
AutoModel.register(CodecConfig, CodecModel)
AutoModelForAudioTokenization.register(CodecConfig, CodecModel)
AutoFeatureExtractor.register(CodecConfig, CodecFeatureExtractor)
