"""What every model here adds to loading and saving: a checkpoint that does not fit is an error, folders carry code."""

from transformers import PreTrainedModel


class StrictPreTrainedMixin:
    """To be inherited before `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs) -> PreTrainedModel:
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
        module = type(self).__module__.rpartition(".")[2]
        self.config.auto_map = {**auto_map, "AutoModelForAudioTokenization": f"{module}.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)
