"""convert_checkpoint: an original checkpoint, local or on the Hub, to a folder that `AutoModel` loads."""

import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from ..atomic import atomic_folder
from ..hub.cards import CARD_NAME, converted_model_card
from ..models.configuration_codec import CodecConfig
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.modeling_codec import CodecModel
from .codec_table import FILE_STEMS, convert_codec
from .original_weights import OriginalWeights
from .originals import ORIGINS
from .verification import verify_conversion

HUB_VERSIONS = {"l3ac": "v1", "sqcodec": "v0"}  # of the published weights
ORIGINALS_DESIGN = {"encoder_stem": "trend", "decoder_head": "upsampling", "enhance_normalization": "clip"}


def convert_checkpoint(
    origin: str,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    preset: str | None = None,
    config: CodecConfig | None = None,
    verify: bool = False,
) -> Path:
    """Convert an original checkpoint to a Transformers folder: config.json, preprocessor_config.json,
    model.safetensors, README.md and the code for `trust_remote_code=True`.

    Args:
        origin: `"l3ac"` or `"sqcodec"`.
        source: a local folder with the five files encoder.pt, decoder.pt, quantizer.pt, en_encoder.pt and
            en_decoder.pt, or the id of a Hub repository ("zhai-lw/L3AC", "zhai-lw/SQCodec") from which the preset's
            files are downloaded.
        output_dir: a folder that does not exist yet, or is empty. It appears when everything has succeeded.
        preset: a name of `fsqcodec.list_presets(origin)`.
        config: instead of a preset, the sizes of a checkpoint that no preset describes.
        verify: run the original package (`pip install fsqcodec[originals]`) on the same weights and compare tokens
            and audio.

    Returns:
        The output folder.

    Raises:
        ValueError: an unknown origin or preset, a preset of another family, both or none of preset and config, a config
            that no original can have.
        CheckpointError: (a ValueError) missing, unexpected, misshapen or non-finite tensors, a damaged or foreign file.
        FileNotFoundError: a source that is neither a folder nor a repository id.
        FileExistsError: an output folder with something in it.
        VerificationError: `verify` found a difference; nothing is written.
    """
    if origin not in ORIGINS:
        raise ValueError(f"there is no origin {origin!r}; the origins are: {', '.join(ORIGINS)}")
    if (preset is None) == (config is None):
        raise ValueError("convert_checkpoint takes either preset or config")
    if preset is not None:
        config = CodecConfig.from_preset(preset)
        if not preset.startswith(f"{origin}-"):
            raise ValueError(f"preset {preset!r} is not of the family {origin!r}")
    for name, value in ORIGINALS_DESIGN.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} is {getattr(config, name)!r}: checkpoints of {origin!r} have {value!r}")
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not empty: convert into a new folder")

    checkpoint_dir = _local_files(origin, source, preset)
    weights = OriginalWeights.read(checkpoint_dir, FILE_STEMS)
    with torch.device("meta"):
        model = CodecModel(config)
    model.load_state_dict(convert_codec(weights, config), strict=True, assign=True)
    model.eval()
    agreement = verify_conversion(origin, checkpoint_dir, model) if verify else None

    with atomic_folder(output_dir) as unfinished:
        model.save_pretrained(unfinished)
        CodecFeatureExtractor(sampling_rate=config.sampling_rate).save_pretrained(unfinished)
        card = converted_model_card(
            origin, preset, config, verification="not run" if agreement is None else str(agreement)
        )
        (unfinished / CARD_NAME).write_text(card, encoding="utf-8")
    return output_dir


def _local_files(origin: str, source: str | os.PathLike, preset: str | None) -> Path:
    """The folder with the checkpoint's files, downloaded first where `source` is a Hub repository."""
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} is neither a folder nor a Hub repository id like 'zhai-lw/L3AC'")
    if preset is None:
        raise ValueError(f"{source} is a Hub repository: name the preset whose weights to take from it")
    name = preset.removeprefix(f"{origin}-").replace("-", "_")
    folder = f"weights/{name}.{HUB_VERSIONS[origin]}"
    files = [hf_hub_download(str(source), f"{folder}/{stem}.pt") for stem in FILE_STEMS]
    return Path(files[0]).parent
