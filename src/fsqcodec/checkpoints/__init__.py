"""Trained models that come with the package: a folder each, named like its preset, with a version from the second."""

from pathlib import Path

FOLDER = Path(__file__).parent


def list_checkpoints() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(config.parent.name for config in FOLDER.glob("*/config.json"))


def bundled_checkpoint(name: str = "speech-3kbps-v2") -> Path:
    """The folder of a model that comes with the package, for `AutoModel.from_pretrained`.

    Raises `ValueError` for a name that is not among `list_checkpoints()`.
    """
    if name not in list_checkpoints():
        raise ValueError(f"no model {name!r} comes with the package; there are: {', '.join(list_checkpoints())}")
    return FOLDER / name
