"""What a model costs by its sizes alone: parameters and multiply-accumulates."""

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from .models.configuration_codec import CodecConfig
from .models.configuration_lycodec import LycodecConfig
from .models.encoder_lycodec import SPECTROGRAM_CHANNELS
from .models.modeling_codec import CodecModel
from .models.modeling_lycodec import LycodecModel

NUM_COUNTED_WINDOWS = 3  # enough for every layer to have met all kinds: the first, whole ones, a part of one


def num_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of the `total` model and of each of its parts, for a `CodecModel` encoder, quantizer and decoder."""
    parts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in model.named_children()}
    return {"total": sum(parameter.numel() for parameter in model.parameters()), **parts}


def multiply_accumulates(config: CodecConfig | LycodecConfig, seconds: float) -> dict[str, int]:
    """Multiply-accumulates that `encode` and `decode` take for one clip of `seconds`, frames rounded up.

    Counted are matrix products, convolutions and attention, as they are computed: attention includes the masked scores
    of a tile (the original scores whole blocks: 44 G for 10 s where l3ac-1kbps has 42 G). Norms, activations and
    pooling are not. Nothing is computed: meta tensors have shapes only.
    """
    if config.crop_length:
        num_crops = math.ceil(seconds * config.sampling_rate / config.crop_length)
        return {part: num_crops * count for part, count in _counted_crop(config).items()}
    num_frames = math.ceil(seconds * config.frame_rate)
    with torch.device("meta"):
        model = CodecModel(config).eval()
    num_more_windows = max(0, num_frames // config.attention_window_size - NUM_COUNTED_WINDOWS)
    num_frames -= num_more_windows * config.attention_window_size
    counts = _counted(model, num_frames)
    if num_more_windows:  # each costs the same
        longer = _counted(model, num_frames + config.attention_window_size)
        counts = {part: count + num_more_windows * (longer[part] - count) for part, count in counts.items()}
    return counts


@torch.no_grad()
def _counted(model: CodecModel, num_frames: int) -> dict[str, int]:
    """For a model on the meta device. Torch counts two operations for each multiply-accumulate, and of fused attention
    on a CPU none."""
    with FlopCounterMode(display=False) as encode:
        audio_codes = model.encode(torch.empty(1, 1, num_frames * model.config.hop_length, device="meta")).audio_codes
    with FlopCounterMode(display=False) as decode:  # `model.decode` would look at the codes' values first
        model.decoder(model.quantizer.indices_to_features(audio_codes[:, 0]), None)
    return {"encode": encode.get_total_flops() // 2, "decode": decode.get_total_flops() // 2}


@torch.no_grad()
def _counted_crop(config: LycodecConfig) -> dict[str, int]:
    """Of one crop. Fourier transforms are not counted."""
    with torch.device("meta"):
        model = LycodecModel(config).eval()
        spectrogram = torch.empty(1, SPECTROGRAM_CHANNELS, config.stft_bins, config.stft_frames)
        noise_level = torch.empty(1)
    with FlopCounterMode(display=False) as encode:
        latents = model.encoder(spectrogram)
    with FlopCounterMode(display=False) as decode:
        model.decoder(model.quantizer(latents)[0], spectrogram, noise_level)
    return {"encode": encode.get_total_flops() // 2, "decode": decode.get_total_flops() // 2}
