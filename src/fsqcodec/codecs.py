"""Any codec behind one small adapter, so that evaluation, tokenizing and language models need to know no family.

codec = load_codec("demo/codec-1kbps")          # a folder or Hub id: ours, EnCodec, DAC, Mimi, Xcodec, ...
codec = load_codec("kyutai/mimi:8")             # its first 8 codebooks
codec = load_codec("opus:6")                    # a classical codec at 6 kbit/s, where its programs are installed
codes = codec.encode([clip_a, clip_b])          # lists of clips, each of any length
audio = codec.decode(codes, [len(clip_a), len(clip_b)])
"""

import hashlib
import inspect
import json
import math
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoFeatureExtractor, AutoModel, NeuCodecConfig, PreTrainedConfig, PreTrainedModel

from .checkpoints import bundled_checkpoint, list_checkpoints
from .models.codec_facts import CodecFacts
from .models.configuration_neucodec import FsqNeuCodecConfig
from .models.feature_extraction_neucodec import FsqNeuCodecFeatureExtractor
from .models.modeling_neucodec import FsqNeuCodecModel
from .models.pretrained import PreTrainedCodec
from .presets import PRESETS
from .streaming import StreamingEncoder

LONG_SECONDS = 60.0  # clips of this duration and more are coded in pieces wherever that makes no difference
BUILT_EXTRACTORS = {  # by model_type: made from the configuration, as the one in Transformers' folders needs torchaudio
    NeuCodecConfig.model_type: FsqNeuCodecFeatureExtractor,
    FsqNeuCodecConfig.model_type: FsqNeuCodecFeatureExtractor,
}


class Codec(ABC):
    """What every codec offers.

    Attributes:
        name: as given to `load_codec`.
        input_sampling_rate, output_sampling_rate: Hz, of what `encode` takes and `decode` returns.
        num_channels: 1 for clips `(num_samples,)`; more for clips `(num_channels, num_samples)`.
        frame_rate: frames a second, exact; `None` for a classical codec, which has no tokens.
        frames_per_crop: frames that are decoded together and apart from all others; 1 for a codec without crops.
        hears_whole_clip: `True` where all audio depends on all codes of the clip, as far as the codec says.
        streams_frames: `True` where `StreamingEncoder` and `StreamingDecoder` take the model, frame by frame.
        codebook_sizes: codes of each codebook; empty for a classical codec.
        quantization_levels: levels of each FSQ digit where the one codebook is FSQ, else `None`.
        revision: commit of the model on the Hub, or version of the program; `None` where there is none.
        digest: 16 hexadecimal digits that change with configuration and weights; `None` for a classical codec.
        keeps_waveform: `False` for a parametric codec, whose output can't be aligned with its input by correlation.
        model: the Transformers model; `None` for a classical codec.
    """

    name: str
    input_sampling_rate: int
    output_sampling_rate: int
    num_channels: int = 1
    frame_rate: float | None = None
    frames_per_crop: int = 1
    hears_whole_clip: bool = False
    streams_frames: bool = False
    codebook_sizes: list[int] = []
    quantization_levels: list[int] | None = None
    revision: str | None = None
    digest: str | None = None
    keeps_waveform: bool = True
    model: PreTrainedModel | None = None

    @abstractmethod
    def encode(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        """Float clips at `input_sampling_rate` to int64 codes `(num_codebooks, num_frames)` each, equal to those of the
        clip alone. Of a classical codec it is the bytes of its file, `(1, num_bytes)`.

        Raises `ValueError` for audio the codec can't take."""

    @abstractmethod
    def decode(self, codes: list[np.ndarray], num_samples: list[int] | None = None) -> list[np.ndarray]:
        """Codes to float32 clips at `output_sampling_rate`, cut to `num_samples` each; a codec whose output is shorter
        is not padded."""

    @property
    def bitrate(self) -> float | None:
        """Bits per second, frame rate times bits of a frame; `None` for a classical codec: its rate is measured."""
        return self.frame_rate * sum(map(math.log2, self.codebook_sizes)) if self.codebook_sizes else None

    def num_bits(self, codes: np.ndarray, seconds: float) -> float:
        """Payload bits of one clip of `seconds`, the file's container left out."""
        return codes.shape[-1] * sum(map(math.log2, self.codebook_sizes))


def load_codec(name: str | os.PathLike, device: str | None = None) -> Codec:
    """The codec behind a name: `opus:KBPS`, `codec2:MODE`, `speex:QUALITY`, or a model: a folder, a Hub id, or one that
    comes with the package (`speech-3kbps-v2`).

    `:N` after a folder or id takes the first N codebooks of a residual quantizer. `device` is for models, which are
    loaded in float32, by default the GPU where there is one.

    Raises `ValueError` for a model that is no codec, damaged weights, a wrong number of codebooks or an unknown mode,
    `OSError` where there is no such model or the program is not installed.
    """
    from .classical import CLASSICAL_CODECS

    name = os.fspath(name)
    base, _, option = name.partition(":")
    if base in CLASSICAL_CODECS and not Path(name).is_dir():
        return CLASSICAL_CODECS[base](name, option)
    base, separator, option = name.rpartition(":")
    num_codebooks = int(option) if separator and option.isdigit() and not Path(name).is_dir() else None
    folder = name if num_codebooks is None else base
    model = load_model(folder, device)
    return codec_of(model, load_feature_extractor(folder, model), name, num_codebooks)


def codec_of(
    model: PreTrainedModel, feature_extractor, name: str | None = None, num_codebooks: int | None = None
) -> "TransformersCodec":
    """The adapter of a model that is loaded already; by default all its codebooks, under the model's own name. Raises
    `ValueError` as `load_codec` does."""
    adapter = TRANSFORMERS_CODECS.get(model.config.model_type, TransformersCodec)
    return adapter(model.name_or_path if name is None else name, model, feature_extractor, num_codebooks)


def load_model(model: str | os.PathLike, device: str | None = None) -> PreTrainedModel:
    """A codec of Transformers or of this package in float32 and evaluation mode, from a folder, a Hub id or the name
    of a model that comes with the package, on `device` (by default the GPU where one is).

    Raises `ValueError` for damaged weights, for a model without `encode` and `decode` and for a device that can't be
    used, `OSError` where there is no model.
    """
    device = usable_device(device)
    model = model_location(model)
    if not Path(model).is_dir():
        if model in PRESETS:
            raise ValueError(f"{model} is a preset, sizes without weights: convert a checkpoint first")
        if Path(model).is_file() or str(model).count("/") > 1:
            raise FileNotFoundError(f"{model} is no model: a folder or a Hub id like org/name is wanted")
    elif not (Path(model) / "config.json").is_file():
        raise FileNotFoundError(f"the folder {model} holds no model: it has no config.json")
    try:
        loaded = _model_class(model).from_pretrained(model, dtype=torch.float32)
    except SafetensorError as error:
        raise ValueError(f"the weights of {model} can't be read, truncated or damaged: {error}") from error
    except (OSError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"no model {str(model)!r}: it is no folder here, and of the Hub: {reason}") from error
    if not (callable(getattr(loaded, "encode", None)) and callable(getattr(loaded, "decode", None))):
        raise ValueError(f"{model} is a {type(loaded).__name__}, which has no encode and decode: a codec is wanted")
    return loaded.to(device).eval()


def load_feature_extractor(model: str | os.PathLike, loaded: PreTrainedModel):
    """The feature extractor of a model that `load_model` has loaded from `model`."""
    config = loaded.config
    if extractor := BUILT_EXTRACTORS.get(config.model_type):
        return extractor(sampling_rate=config.input_sampling_rate, hop_length=config.encoder_hop_length)
    return AutoFeatureExtractor.from_pretrained(model_location(model))


def _model_class(model: str | os.PathLike) -> type:
    """`AutoModel`, and for a folder of Transformers' NeuCodec our subclass: the same weights, exact in batches."""
    config, _ = PreTrainedConfig.get_config_dict(model)
    return FsqNeuCodecModel if config.get("model_type") == NeuCodecConfig.model_type else AutoModel


def model_location(model: str | os.PathLike) -> str | os.PathLike:
    """For the name of a model that comes with the package its folder; all else, and a folder so named, as it is."""
    return bundled_checkpoint(model) if model in list_checkpoints() and not Path(model).is_dir() else model


def usable_device(device: str | None) -> str:
    """`device`, or by default the GPU where there is one. Raises `ValueError` for one that can't be used."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    return device


class TransformersCodec(Codec):
    """A codec model of Transformers, or one of ours, with its feature extractor.

    Ours encode any list of clips as one padded batch. Other models' codes change with padding, so their clips share a
    batch only where they have the same length. Clips of a minute and more go in pieces through a model that streams
    frames, so that they take no more memory than their samples; but for tokens on a rounding boundary nothing changes
    by that.
    """

    def __init__(self, name: str, model: PreTrainedModel, feature_extractor, num_codebooks: int | None = None):
        config = model.config
        self.name, self.model, self.feature_extractor = name, model, feature_extractor
        self.revision = getattr(config, "_commit_hash", None)
        facts = _facts(config, feature_extractor)
        for fact in FACTS:
            setattr(self, fact, getattr(facts, fact))
        self.codebook_sizes = self._select(self._all_codebook_sizes(facts), num_codebooks)
        if facts.quantization_levels is not None and len(self.codebook_sizes) == 1:
            self.quantization_levels = list(facts.quantization_levels)

    @cached_property
    def digest(self) -> str:
        return model_digest(self.model)

    def encode(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        groups = [(self._is_streamed(clip), None if self._batches_are_exact else clip.shape[-1]) for clip in audio]
        return _by_group(groups, self._encode_group, audio)

    def decode(self, codes: list[np.ndarray], num_samples: list[int] | None = None) -> list[np.ndarray]:
        lengths = [None if self._batches_are_exact else clip_codes.shape[-1] for clip_codes in codes]
        decoded = _by_group(lengths, self._decode_batch, codes)
        return [clip[..., :length] for clip, length in zip(decoded, num_samples or [None] * len(codes))]

    @property
    def _batches_are_exact(self) -> bool:
        return isinstance(self.model, PreTrainedCodec)

    def _all_codebook_sizes(self, facts: "CodecFacts | _ForeignFacts") -> list[int]:
        return [facts.codebook_size] * facts.num_codebooks

    def _select(self, sizes: list[int], num_codebooks: int | None) -> list[int]:
        if num_codebooks is not None and not 1 <= num_codebooks <= len(sizes):
            raise ValueError(f"{self.name} asks for {num_codebooks} codebooks: the model has {len(sizes)}")
        return sizes[:num_codebooks]

    def _is_streamed(self, clip: np.ndarray) -> bool:
        return self.streams_frames and clip.shape[-1] >= LONG_SECONDS * self.input_sampling_rate

    def _encode_group(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        if self._is_streamed(audio[0]):
            return [self._encode_in_pieces(clip) for clip in audio]
        return self._encode_batch(audio)

    def _encode_in_pieces(self, clip: np.ndarray) -> np.ndarray:
        encoder = StreamingEncoder(self.model)
        return torch.cat([encoder.push(clip), encoder.flush()], dim=-1)[0].cpu().numpy()

    @torch.inference_mode()
    def _encode_batch(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        # Transformers' extractors take stereo as (num_samples, num_channels)
        clips = [clip.T if clip.ndim == 2 else clip for clip in audio]
        clips = clips[0] if len(clips) == 1 else clips  # what is wrong with it is then not said of a clip by number
        features = self.feature_extractor(clips, sampling_rate=self.input_sampling_rate, return_tensors="pt")
        taken = inspect.signature(self.model.encode).parameters  # DAC has no mask
        features = {key: value for key, value in features.to(self.model.device).items() if key in taken}
        return [codes[: len(self.codebook_sizes)].cpu().numpy() for codes in self._encode_features(features)]

    def _encode_features(self, features: dict) -> list[torch.Tensor]:
        """Codes `(num_codebooks, num_frames)` of each clip."""
        encoded = self.model.encode(**features)
        if not self._batches_are_exact:
            return list(encoded.audio_codes)
        return [codes[:, :n] for codes, n in zip(encoded.audio_codes, encoded.audio_codes_mask.sum(dim=-1).tolist())]

    @torch.inference_mode()
    def _decode_batch(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        num_frames = [clip.shape[-1] for clip in codes]
        padded = torch.zeros(len(codes), len(codes[0]), max(num_frames), dtype=torch.long)
        mask = torch.zeros(len(codes), max(num_frames), dtype=torch.long)
        for row, clip in enumerate(codes):
            padded[row, :, : clip.shape[-1]] = torch.as_tensor(clip)
            mask[row, : clip.shape[-1]] = 1
        device = self.model.device
        audio = self._decode_codes(padded.to(device), mask.to(device)).float().cpu().numpy()
        audio = audio.reshape(len(codes), self.num_channels, -1)
        samples_per_frame = audio.shape[-1] / max(num_frames)
        if self._batches_are_exact:
            audio = [clip[:, : round(n * samples_per_frame)] for clip, n in zip(audio, num_frames)]
        return [clip[0] if self.num_channels == 1 else clip for clip in audio]

    def _decode_codes(self, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        masks = {"audio_codes_mask": mask} if self._batches_are_exact else {}
        return self.model.decode(audio_codes=codes, **masks).audio_values


class EncodecCodec(TransformersCodec):
    """EnCodec at its highest bandwidth, or the first codebooks of that, which is the same as a lower bandwidth.

    Raises `ValueError` for the 48 kHz model: it sends a level beside the codes of each of its overlapping chunks, so
    its codes alone can't be decoded.
    """

    def __init__(self, name: str, model: PreTrainedModel, feature_extractor, num_codebooks: int | None = None):
        if model.config.chunk_length is not None or model.config.normalize:
            raise ValueError(
                f"{name} is an EnCodec that sends a level beside the codes of each chunk, as the 48 kHz model does: "
                "its codes alone can't be decoded; use the 24 kHz model"
            )
        self._bandwidth = max(model.config.target_bandwidths)
        super().__init__(name, model, feature_extractor, num_codebooks)

    def _all_codebook_sizes(self, facts: "CodecFacts | _ForeignFacts") -> list[int]:
        num_codebooks = self.model.quantizer.get_num_quantizers_for_bandwidth(self._bandwidth)
        return [facts.codebook_size] * num_codebooks

    def _encode_features(self, features: dict) -> list[torch.Tensor]:
        return list(self.model.encode(**features, bandwidth=self._bandwidth).audio_codes[0])  # its only chunk

    def _decode_codes(self, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.decode(audio_codes=codes[None], audio_scales=[None]).audio_values


TRANSFORMERS_CODECS = {"encodec": EncodecCodec}


def model_digest(model: PreTrainedModel) -> str:
    """16 hexadecimal digits of the SHA-256 of a model's configuration and of all its weights."""
    facts = {key: value for key, value in model.config.to_dict().items() if key not in UNDIGESTED_FIELDS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


UNDIGESTED_FIELDS = ("_name_or_path", "transformers_version", "dtype", "architectures", "auto_map")


FACTS = (  # that an adapter takes over as they are
    "input_sampling_rate",
    "output_sampling_rate",
    "num_channels",
    "frame_rate",
    "frames_per_crop",
    "hears_whole_clip",
    "streams_frames",
)


class _ForeignFacts:
    """The facts of [`CodecFacts`] that an adapter needs, of a codec of Transformers, whose configurations name them in
    several ways and leave some to the feature extractor."""

    frames_per_crop = 1
    hears_whole_clip = streams_frames = False  # not known: it is coded whole

    def __init__(self, config: PreTrainedConfig, feature_extractor):
        self.input_sampling_rate = feature_extractor.sampling_rate
        self.output_sampling_rate = getattr(config, "output_sampling_rate", self.input_sampling_rate)
        self.num_channels = getattr(config, "audio_channels", 1)
        hop_length = _first_field(config, "encoder_hop_length", "frame_size", "hop_length")
        self.frame_rate = self.input_sampling_rate / hop_length
        self.quantization_levels = getattr(config, "quantization_levels", None)
        if self.quantization_levels is None:
            self.codebook_size = config.codebook_size
            self.num_codebooks = _first_field(config, "n_codebooks", "num_codebooks", "num_quantizers")
        else:
            self.codebook_size = math.prod(self.quantization_levels)
            self.num_codebooks = getattr(config, "num_codebooks", 1)


def _facts(config: PreTrainedConfig, feature_extractor) -> CodecFacts | _ForeignFacts:
    """What the configuration answers, where it is one of this package."""
    return config if isinstance(config, CodecFacts) else _ForeignFacts(config, feature_extractor)


def _first_field(config, *names: str):
    for name in names:
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    raise ValueError(f"the configuration of {config.model_type} has none of {', '.join(names)}: no codec that is known")


def _by_group(keys: list, function, items: list) -> list:
    """`function` of the items of each key together, results in the order of `items`."""
    groups = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    results = [None] * len(items)
    for positions in groups.values():
        for position, result in zip(positions, function([items[position] for position in positions])):
            results[position] = result
    return results
