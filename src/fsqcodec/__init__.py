"""Neural audio codecs with one quantizer as Transformers models.

Importing this package registers them: `AutoModel`, `AutoModelForAudioTokenization`, `AutoConfig` and
`AutoFeatureExtractor` load their folders.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

from .checkpoints import bundled_checkpoint
from .conversion import convert_checkpoint
from .models.configuration_codec import CodecConfig
from .models.configuration_distill_neucodec import DistillNeuCodecConfig
from .models.configuration_neucodec import FsqNeuCodecConfig
from .models.feature_extraction_codec import CodecFeatureExtractor
from .models.feature_extraction_distill_neucodec import DistillNeuCodecFeatureExtractor
from .models.feature_extraction_neucodec import FsqNeuCodecFeatureExtractor
from .models.modeling_codec import CodecModel
from .models.modeling_distill_neucodec import DistillNeuCodecModel
from .models.modeling_neucodec import FsqNeuCodecModel
from .presets import list_presets

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
    "bundled_checkpoint",
    "convert_checkpoint",
    "list_presets",
]

for _config, _model, _feature_extractor in (
    (CodecConfig, CodecModel, CodecFeatureExtractor),
    (FsqNeuCodecConfig, FsqNeuCodecModel, FsqNeuCodecFeatureExtractor),
    (DistillNeuCodecConfig, DistillNeuCodecModel, DistillNeuCodecFeatureExtractor),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForAudioTokenization.register(_config, _model)
    AutoFeatureExtractor.register(_config, _feature_extractor)
