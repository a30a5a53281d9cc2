"""The names of all presets, of every family."""

from transformers import PreTrainedConfig

from .models import configuration_codec, configuration_lycodec
from .models.configuration_distill_neucodec import DistillNeuCodecConfig
from .models.configuration_neucodec import FsqNeuCodecConfig

CONFIGURATIONS = (  # with the module's presets
    (configuration_codec.CodecConfig, configuration_codec.PRESETS),
    (configuration_lycodec.LycodecConfig, configuration_lycodec.PRESETS),
    (FsqNeuCodecConfig, {}),
    (DistillNeuCodecConfig, {}),
)
PRESETS = {name: fields for _, presets in CONFIGURATIONS for name, fields in presets.items()}
FAMILIES = list(dict.fromkeys(name.split("-")[0] for name in PRESETS))


def list_presets(family: str | None = None) -> list[str]:
    """Names that `from_preset` of a configuration knows: all, or those of one family: "l3ac" and "sqcodec", which have
    originals to convert, "speech", codecs of our own, or "lycodec", stereo, which is [`LycodecConfig`]'s.

    Raises `ValueError` for an unknown family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"there is no family {family!r}; the families are: {', '.join(FAMILIES)}")
    return [name for name in PRESETS if family is None or name.startswith(f"{family}-")]


def preset_config(name: str) -> PreTrainedConfig:
    """The configuration of a preset of any family. Raises `ValueError` for an unknown name."""
    for config_class, presets in CONFIGURATIONS:
        if name in presets:
            return config_class.from_preset(name)
    raise ValueError(f"there is no preset {name!r}; the presets are: {', '.join(PRESETS)}")
