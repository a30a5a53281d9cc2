"""The names of all presets, of every family."""

from .models import configuration_codec

PRESETS = {**configuration_codec.PRESETS}
FAMILIES = list(dict.fromkeys(name.split("-")[0] for name in PRESETS))


def list_presets(family: str | None = None) -> list[str]:
    """Names that `from_preset` of a configuration knows: all, or those of one family: "l3ac" and "sqcodec", which have
    originals to convert, or "speech", codecs of our own.

    Raises `ValueError` for an unknown family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"there is no family {family!r}; the families are: {', '.join(FAMILIES)}")
    return [name for name in PRESETS if family is None or name.startswith(f"{family}-")]
