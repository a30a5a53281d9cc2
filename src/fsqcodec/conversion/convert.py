"""convert_checkpoint: an original checkpoint, local or on the Hub, to a folder that `AutoModel` loads."""

import os
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, PreTrainedConfig

from ..atomic import atomic_folder, check_new_folder
from ..hub.cards import CARD_NAME, converted_model_card, converted_neucodec_card
from ..models.configuration_codec import CodecConfig
from ..models.configuration_lycodec import LycodecConfig
from ..models.feature_extraction_codec import CodecFeatureExtractor
from ..models.feature_extraction_distill_neucodec import DistillNeuCodecFeatureExtractor
from ..models.feature_extraction_lycodec import LycodecFeatureExtractor
from ..models.feature_extraction_neucodec import FsqNeuCodecFeatureExtractor
from ..models.modeling_codec import CodecModel
from ..models.modeling_distill_neucodec import DistillNeuCodecModel
from ..models.modeling_lycodec import LycodecModel
from ..models.modeling_neucodec import FsqNeuCodecModel
from ..presets import preset_config
from .codec_table import FILE_STEMS, convert_codec
from .lycodec_table import convert_lycodec, lycodec_sizes, read_lycodec
from .neucodec_table import NEUCODEC_MODELS, SEMANTIC_SOURCES, convert_neucodec
from .original_weights import CheckpointError, OriginalWeights
from .originals import ORIGINS
from .verification import verify_conversion

HUB_VERSIONS = {"l3ac": "v1", "sqcodec": "v0"}  # of the published weights
ORIGINALS_DESIGN = {"encoder_stem": "trend", "decoder_head": "upsampling", "enhance_normalization": "clip"}
LYCODEC = "lycodec"
NEUCODEC_FILE = "pytorch_model.bin"


def convert_checkpoint(
    origin: str,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    preset: str | None = None,
    config: PreTrainedConfig | None = None,
    semantic: str | os.PathLike | None = None,
    verify: bool = False,
    ema: bool = False,
) -> Path:
    """Convert an original checkpoint to a Transformers folder: config.json, preprocessor_config.json,
    model.safetensors, README.md and the code for `trust_remote_code=True`.

    Args:
        origin: `"l3ac"`, `"sqcodec"`, `"lycodec"`, `"neucodec"` or `"distill-neucodec"`.
        source: a local folder with the five files encoder.pt, decoder.pt, quantizer.pt, en_encoder.pt and
            en_decoder.pt, or the id of a Hub repository ("zhai-lw/L3AC", "zhai-lw/SQCodec") from which the preset's
            files are downloaded. Of Lycodec the one file that its trainer wrote, step_<n>.pt or latest.pt. Of NeuCodec
            a folder with pytorch_model.bin, that file, or a repository ("neuphonic/neucodec",
            "neuphonic/distill-neucodec").
        output_dir: a folder that does not exist yet, or is empty. It appears when everything has succeeded.
        preset: a name of `fsqcodec.list_presets(origin)`; NeuCodec has none.
        config: instead of a preset, the sizes of a checkpoint that no preset describes. Of Lycodec neither is needed
            where only sizes differ that the tensors' shapes tell; of NeuCodec not for the published sizes.
        semantic: of NeuCodec, folder or Hub id of the semantic model, for a checkpoint without its weights; by default
            the one that the published model was trained with.
        verify: run the original package (`pip install fsqcodec[originals]`) on the same weights and compare tokens
            and audio. There is none for Lycodec and NeuCodec.
        ema: of Lycodec, take the averaged parameters that a file holds beside the model, its entry "ema".

    Returns:
        The output folder.

    Raises:
        ValueError: an unknown origin or preset, a preset of another family, both or (of L3AC and SQCodec) none of
            preset and config, a config that no original can have, an argument that is not for this origin.
        CheckpointError: (a ValueError) missing, unexpected, misshapen or non-finite tensors, a damaged or foreign file.
        FileNotFoundError: a source that is neither a folder nor a repository id, or, of Lycodec, no file.
        FileExistsError: an output folder with something in it.
        OSError: a semantic model that is not there.
        VerificationError: `verify` found a difference; nothing is written.
    """
    origins = (*ORIGINS, LYCODEC, *NEUCODEC_MODELS)
    if origin not in origins:
        raise ValueError(f"there is no origin {origin!r}; the origins are: {', '.join(origins)}")
    if (preset is None) == (config is None) and (origin in ORIGINS or preset is not None):
        raise ValueError("convert_checkpoint takes either preset or config")
    if preset is not None:
        config = preset_config(preset)
        if not preset.startswith(f"{origin}-"):
            raise ValueError(f"preset {preset!r} is not of the family {origin!r}")
    output_dir = Path(output_dir)
    check_new_folder(output_dir)
    _check_arguments(origin, semantic, verify, ema)
    if origin == LYCODEC:
        model = _lycodec_model(Path(source), config, ema)
        feature_extractor = LycodecFeatureExtractor(sampling_rate=model.config.sampling_rate)
        card = converted_model_card(origin, preset, model.config, "there is no package to compare with")
    elif origin in NEUCODEC_MODELS:
        model, ignored = _neucodec_model(origin, source, config, semantic)
        hop_length = model.config.encoder_hop_length
        feature_extractor = (
            FsqNeuCodecFeatureExtractor(hop_length=hop_length)
            if origin == "neucodec"
            else DistillNeuCodecFeatureExtractor()
        )
        card = converted_neucodec_card(origin, model.config, config is None, ignored)
    else:
        model, verification = _codec_model(origin, source, preset, config, verify)
        feature_extractor = CodecFeatureExtractor(sampling_rate=model.config.sampling_rate)
        card = converted_model_card(origin, preset, model.config, verification)

    with atomic_folder(output_dir) as unfinished:
        model.save_pretrained(unfinished)
        feature_extractor.save_pretrained(unfinished)
        (unfinished / CARD_NAME).write_text(card, encoding="utf-8")
    return output_dir


def _check_arguments(origin: str, semantic: str | os.PathLike | None, verify: bool, ema: bool):
    if verify and origin not in ORIGINS:
        raise ValueError(f"there is no package of the original {origin!r} to verify with: convert without verify")
    if ema and origin != LYCODEC:
        raise ValueError(f"checkpoints of {origin!r} have no averaged parameters: convert without ema")
    if semantic is not None and origin not in NEUCODEC_MODELS:
        raise ValueError(f"{origin!r} has no semantic model: convert without semantic")


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


def _neucodec_model(
    origin: str, source: str | os.PathLike, config: PreTrainedConfig | None, semantic: str | os.PathLike | None
) -> tuple[FsqNeuCodecModel | DistillNeuCodecModel, list[str]]:
    """The model with the weights of NeuCodec or distill-NeuCodec, and which tensors only training needs."""
    model_class = NEUCODEC_MODELS[origin]
    config = model_class.config_class() if config is None else config
    if not isinstance(config, model_class.config_class):
        raise ValueError(f"config is a {type(config).__name__}: {origin} has a {model_class.config_class.__name__}")
    weights = OriginalWeights.read_file(_neucodec_file(source))
    semantic_weights = None
    if not any(key.startswith("semantic_model.") for key in weights.tensors):
        semantic_weights = _semantic_weights(semantic or SEMANTIC_SOURCES[origin], config.semantic_model_config)
    elif semantic is not None:
        raise ValueError(f"semantic is {os.fspath(semantic)!r}: leave it out, the checkpoint has these weights")
    tensors, ignored = convert_neucodec(origin, weights, config, semantic_weights)
    return _assembled(model_class, config, tensors), ignored


def _neucodec_file(source: str | os.PathLike) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / NEUCODEC_FILE).is_file():
            raise CheckpointError(f"{path} has no {NEUCODEC_FILE}, which an original checkpoint is")
        return path / NEUCODEC_FILE
    _check_repository(source, "neuphonic/neucodec")
    return Path(hf_hub_download(str(source), NEUCODEC_FILE))


def _semantic_weights(source: str | os.PathLike, config) -> dict[str, torch.Tensor]:
    """The state dict of the semantic model in its own folder or repository, as many of its layers as `config` has."""
    with torch.device("meta"):
        model_class = type(AutoModel.from_config(config))
    try:
        model, info = model_class.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OSError(
            f"the checkpoint has no semantic model, and {os.fspath(source)!r} can't be loaded as one: {reason}; "
            "name its folder as semantic"
        ) from error
    except RuntimeError as error:
        raise CheckpointError(f"the semantic model {os.fspath(source)!r} has other sizes than the config") from error
    missing = sorted(set(info["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise CheckpointError(f"the semantic model {os.fspath(source)!r} lacks weights: {', '.join(missing[:8])}")
    return model.state_dict()


def _assembled(model_class, config: PreTrainedConfig, weights: dict[str, torch.Tensor]):
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _local_files(origin: str, source: str | os.PathLike, preset: str | None) -> Path:
    """The folder with the checkpoint's files, downloaded first where `source` is a Hub repository."""
    if Path(source).is_dir():
        return Path(source)
    _check_repository(source, "zhai-lw/L3AC")
    if preset is None:
        raise ValueError(f"{source} is a Hub repository: name the preset whose weights to take from it")
    name = preset.removeprefix(f"{origin}-").replace("-", "_")
    folder = f"weights/{name}.{HUB_VERSIONS[origin]}"
    files = [hf_hub_download(str(source), f"{folder}/{stem}.pt") for stem in FILE_STEMS]
    return Path(files[0]).parent


def _check_repository(source: str | os.PathLike, example: str):
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} is neither a folder nor a Hub repository id like {example!r}")
