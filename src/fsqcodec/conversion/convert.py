"""convert_checkpoint: an original checkpoint, local or on the Hub, to a folder that `AutoModel` loads."""

import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import PreTrainedConfig

from ..atomic import atomic_folder
from ..hub.cards import CARD_NAME, converted_model_card
from ..models.configuration_codec import CodecConfig
from ..models.configuration_lycodec import LycodecConfig
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.feature_extraction_lycodec import LycodecFeatureExtractor
from ..models.modeling_codec import CodecModel
from ..models.modeling_lycodec import LycodecModel
from ..presets import preset_config
from .codec_table import FILE_STEMS, convert_codec
from .lycodec_table import convert_lycodec, lycodec_sizes, read_lycodec
from .original_weights import OriginalWeights
from .originals import ORIGINS
from .verification import verify_conversion

HUB_VERSIONS = {"l3ac": "v1", "sqcodec": "v0"}  # of the published weights
ORIGINALS_DESIGN = {"encoder_stem": "trend", "decoder_head": "upsampling", "enhance_normalization": "clip"}
LYCODEC = "lycodec"


def convert_checkpoint(
    origin: str,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    preset: str | None = None,
    config: PreTrainedConfig | None = None,
    verify: bool = False,
    ema: bool = False,
) -> Path:
    """Convert an original checkpoint to a Transformers folder: config.json, preprocessor_config.json,
    model.safetensors, README.md and the code for `trust_remote_code=True`.

    Args:
        origin: `"l3ac"`, `"sqcodec"` or `"lycodec"`.
        source: a local folder with the five files encoder.pt, decoder.pt, quantizer.pt, en_encoder.pt and
            en_decoder.pt, or the id of a Hub repository ("zhai-lw/L3AC", "zhai-lw/SQCodec") from which the preset's
            files are downloaded. Of Lycodec the one file that its trainer wrote, step_<n>.pt or latest.pt.
        output_dir: a folder that does not exist yet, or is empty. It appears when everything has succeeded.
        preset: a name of `fsqcodec.list_presets(origin)`.
        config: instead of a preset, the sizes of a checkpoint that no preset describes. Of Lycodec neither is needed
            where only sizes differ that the tensors' shapes tell.
        verify: run the original package (`pip install fsqcodec[originals]`) on the same weights and compare tokens
            and audio. There is none for Lycodec.
        ema: of Lycodec, take the averaged parameters that a file holds beside the model, its entry "ema".

    Returns:
        The output folder.

    Raises:
        ValueError: an unknown origin or preset, a preset of another family, both or (but for Lycodec) none of preset
            and config, a config that no original can have, `verify` for Lycodec, `ema` for another.
        CheckpointError: (a ValueError) missing, unexpected, misshapen or non-finite tensors, a damaged or foreign file.
        FileNotFoundError: a source that is neither a folder nor a repository id, or, of Lycodec, no file.
        FileExistsError: an output folder with something in it.
        VerificationError: `verify` found a difference; nothing is written.
    """
    origins = (*ORIGINS, LYCODEC)
    if origin not in origins:
        raise ValueError(f"there is no origin {origin!r}; the origins are: {', '.join(origins)}")
    if (preset is None) == (config is None) and (origin != LYCODEC or preset is not None):
        raise ValueError("convert_checkpoint takes either preset or config")
    if preset is not None:
        config = preset_config(preset)
        if not preset.startswith(f"{origin}-"):
            raise ValueError(f"preset {preset!r} is not of the family {origin!r}")
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not empty: convert into a new folder")
    if origin == LYCODEC:
        if verify:
            raise ValueError("there is no package of the original Lycodec to verify with: convert without it")
        model, verification = _lycodec_model(Path(source), config, ema), "there is no package to compare with"
        feature_extractor = LycodecFeatureExtractor(sampling_rate=model.config.sampling_rate)
    else:
        if ema:
            raise ValueError(f"checkpoints of {origin!r} have no averaged parameters: convert without ema")
        model, verification = _codec_model(origin, source, preset, config, verify)
        feature_extractor = CodecFeatureExtractor(sampling_rate=model.config.sampling_rate)

    with atomic_folder(output_dir) as unfinished:
        model.save_pretrained(unfinished)
        feature_extractor.save_pretrained(unfinished)
        card = converted_model_card(origin, preset, model.config, verification)
        (unfinished / CARD_NAME).write_text(card, encoding="utf-8")
    return output_dir


def _codec_model(
    origin: str, source: str | os.PathLike, preset: str | None, config: CodecConfig, verify: bool
) -> tuple[CodecModel, str]:
    """The model with the weights of L3AC or SQCodec, and what a comparison with the original package gave."""
    for name, value in ORIGINALS_DESIGN.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} is {getattr(config, name)!r}: checkpoints of {origin!r} have {value!r}")
    checkpoint_dir = _local_files(origin, source, preset)
    weights = OriginalWeights.read(checkpoint_dir, FILE_STEMS)
    model = _assembled(CodecModel, config, convert_codec(weights, config))
    return model, str(verify_conversion(origin, checkpoint_dir, model)) if verify else "not run"


def _lycodec_model(source: Path, config: LycodecConfig | None, ema: bool) -> LycodecModel:
    if not source.is_file():
        raise FileNotFoundError(f"{source} is no file: the step_<n>.pt or latest.pt of a Lycodec training is wanted")
    weights = read_lycodec(source, ema)
    config = lycodec_sizes(weights) if config is None else config
    return _assembled(LycodecModel, config, convert_lycodec(weights, config))


def _assembled(model_class, config: PreTrainedConfig, weights: dict[str, torch.Tensor]):
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


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
