"""Neural audio codecs with one quantizer as Transformers models.

Importing this package registers them: `AutoModel`, `AutoModelForAudioTokenization`, `AutoConfig` and
`AutoFeatureExtractor` load their folders.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from .checkpoints import bundled_checkpoint
from .conversion import convert_checkpoint
from .files import decode_file, encode_file
from .models.configuration_codec import CodecConfig
from .models.configuration_distill_neucodec import DistillNeuCodecConfig
from .models.configuration_lycodec import LycodecConfig
from .models.configuration_neucodec import FsqNeuCodecConfig
from .models.feature_extraction_codec import CodecFeatureExtractor
from .models.feature_extraction_distill_neucodec import DistillNeuCodecFeatureExtractor
from .models.feature_extraction_lycodec import LycodecFeatureExtractor
from .models.feature_extraction_neucodec import FsqNeuCodecFeatureExtractor
from .models.modeling_codec import CodecModel
from .models.modeling_distill_neucodec import DistillNeuCodecModel
from .models.modeling_lycodec import LycodecModel
from .models.modeling_neucodec import FsqNeuCodecModel
from .overlapping import OverlappingDecoder
from .presets import list_presets
from .streaming import StreamingDecoder, StreamingEncoder

__all__ = [
    "CodecConfig",
    "CodecFeatureExtractor",
    "CodecModel",
    "DistillNeuCodecConfig",
    "DistillNeuCodecFeatureExtractor",
    "DistillNeuCodecModel",
    "FsqNeuCodecConfig",
    "FsqNeuCodecFeatureExtractor",
    "FsqNeuCodecModel",
    "LycodecConfig",
    "LycodecFeatureExtractor",
    "LycodecModel",
    "OverlappingDecoder",
    "StreamingDecoder",
    "StreamingEncoder",
    "bundled_checkpoint",
    "convert_checkpoint",
    "decode_file",
    "encode_file",
    "list_presets",
]

for config_class, model_class, feature_extractor_class in (
    (CodecConfig, CodecModel, CodecFeatureExtractor),
    (LycodecConfig, LycodecModel, LycodecFeatureExtractor),
    (FsqNeuCodecConfig, FsqNeuCodecModel, FsqNeuCodecFeatureExtractor),
    (DistillNeuCodecConfig, DistillNeuCodecModel, DistillNeuCodecFeatureExtractor),
):
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
    AutoModelForAudioTokenization.register(config_class, model_class)
    AutoFeatureExtractor.register(config_class, feature_extractor_class)
