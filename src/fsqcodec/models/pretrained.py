"""What all models of this package share: strict loading, saved folders that carry their code, checks of arguments."""

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedAudioTokenizerBase


class PreTrainedCodec(PreTrainedAudioTokenizerBase):
    """A codec of Transformers that loads a checkpoint completely or not at all.

    `token_parts` are the modules whose weights tokens depend on.
    """

    token_parts = ("encoder", "quantizer")
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module):
        """Every layer's own initialisation; weights that come from a checkpoint are left alone."""
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As every Transformers model, but a checkpoint that lacks weights, or has weights this model has not, is an
        error instead of a warning: `ValueError` with their names."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for fault in ("missing_keys", "unexpected_keys"):
            if info[fault]:
                raise ValueError(
                    f"the checkpoint does not fit its config.json, {fault.replace('_', ' ')}: "
                    f"{', '.join(sorted(info[fault])[:8])}{', ...' if len(info[fault]) > 8 else ''}"
                )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As every Transformers model, and with the code that loads the folder where fsqcodec is not installed
        (`trust_remote_code=True`), as `AutoModel` and as `AutoModelForAudioTokenization`."""
        auto_map = getattr(self.config, "auto_map", None) or {}
        reference = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = {**auto_map, "AutoModelForAudioTokenization": reference}
        super().save_pretrained(save_directory, *args, **kwargs)


def check_tensor(value, name: str, num_channels: int | tuple[int, ...], time_axis: str, is_float: bool):
    """Raise `ValueError` unless `value` is a tensor `(batch, num_channels, ...)`, not empty, of floats or integers.
    Several numbers of channels are alternatives."""
    allowed = num_channels if isinstance(num_channels, tuple) else (num_channels,)
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}: a tensor is wanted")
    if value.ndim != 3 or value.shape[1] not in allowed or value.numel() == 0:
        channels = " or ".join(map(str, allowed))
        raise ValueError(f"{name} has shape {tuple(value.shape)}: it must be (batch, {channels}, {time_axis})")
    if value.is_floating_point() != is_float or value.dtype == torch.bool:
        raise ValueError(f"{name} holds {value.dtype}: {'floats' if is_float else 'integers'} are wanted")


def check_finite(values: torch.Tensor, name: str):
    """Raise `ValueError` for NaN or infinity. Not under `torch.compile` and on the meta device, where values are
    unknown."""
    if not torch.compiler.is_compiling() and not values.is_meta and not values.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity: finite ones are wanted")


def check_code_range(codes: torch.Tensor, codebook_size: int):
    """Raise `ValueError` for a code outside [0, codebook_size). Not under `torch.compile`, where values are unknown."""
    if not torch.compiler.is_compiling():
        lowest, highest = torch.aminmax(codes)
        if lowest < 0 or highest >= codebook_size:
            raise ValueError(
                f"audio_codes range from {int(lowest)} to {int(highest)}: this codec's codes are 0 to "
                f"{codebook_size - 1}"
            )


def check_num_samples(num_samples: int | None, num_frames: int, hop_length: int):
    """Raise `ValueError` for a length that the frames do not hold."""
    most_samples = num_frames * hop_length
    if num_samples is not None and not (isinstance(num_samples, int) and 0 < num_samples <= most_samples):
        raise ValueError(f"num_samples is {num_samples}: {num_frames} frames hold whole numbers up to {most_samples}")
