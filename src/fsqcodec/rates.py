"""What the configuration of any codec says of the audio it takes and returns."""


def input_sampling_rate(config) -> int:
    """Hz of the audio that a codec takes, by its configuration."""
    return config.input_sampling_rate if hasattr(config, "input_sampling_rate") else config.sampling_rate


def output_sampling_rate(config) -> int:
    """Hz of the audio that a codec returns, by its configuration."""
    return config.output_sampling_rate if hasattr(config, "output_sampling_rate") else config.sampling_rate


def num_channels(config) -> int:
    """Of the audio that a codec takes and returns, by its configuration: mono unless it says otherwise."""
    return getattr(config, "num_channels", getattr(config, "audio_channels", 1))


def samples_and_milliseconds(num_samples: int, config) -> str:
    """A duration for people, at the codec's `sampling_rate`."""
    return f"{num_samples} samples ({1000 * num_samples / config.sampling_rate:.1f} ms)"
