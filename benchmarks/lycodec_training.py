r"""Does Lycodec's training learn? The recipe lycodec-quick on music, measured on clips that it never hears.

Writes lycodec_training.json and lycodec_training.png; the run, which goes on where it stopped, is in --output.

    python benchmarks/lycodec_training.py ../shared/audio/manifest.jsonl:music_48k_stereo/ \
        --output ../runs/lycodec

The distance is `stft_distance` of the held-out clips as decoded, mean over channels, by the trained weights and by
those that training began with, and that of each clip's own mean spectrum: the magnitudes' mean over time, and the
logarithms'.
It is a proof that the trainer works, and says nothing about how good a Lycodec can be.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from fsqcodec.audio import resample
from fsqcodec.codecs import Codec, load_codec
from fsqcodec.data import Clip, find_clips
from fsqcodec.evaluation.metrics import FLOOR, compute_metrics
from fsqcodec.training.recipe import load_recipe, recipe_path
from fsqcodec.training.trainer import Trainer

HERE = Path(__file__).parent
HELD_OUT = ("cc0_loop_safari", "cc0_loop_tabla", "ccbysa_openmusic_bumblebeat")
WINDOW_LENGTH = 1024  # of `stft_distance`, samples; hop length a quarter


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("music", help="folder or manifest, whose held-out clips are found by their names")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    arguments = parser.parse_args()

    held_out = [f"{arguments.music}{name}" for name in HELD_OUT]
    recipe = load_recipe(recipe_path("lycodec-quick"), **{"data.train": [arguments.music], "data.evaluation": held_out})
    trainer = Trainer(recipe, arguments.output)
    trainer.validation.clips = clips = find_clips(held_out)
    untrained = arguments.output / "untrained"
    if trainer.step == 0:
        trainer.averaged.save_pretrained(untrained)
        trainer.validation.extractor.save_pretrained(untrained)
    trainer.run()

    result = summary(arguments.output, clips)
    (HERE / "lycodec_training.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(arguments.output, result, HERE / "lycodec_training.png")
    print(json.dumps(result, indent=1))


def summary(run: Path, clips: list[Clip]) -> dict:
    """What the run did and the distances on the held-out clips."""
    trained, untrained = load_codec(run / "last", "cpu"), load_codec(run / "untrained", "cpu")
    lines = _lines(run / "log.jsonl")
    record = json.loads((run / "last" / "training.json").read_text())
    return {
        "steps": record["step"],
        "minutes": record["minutes"],
        "minutes_of_audio": 60 * record["hours_of_audio"],
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "digit_bits": lines[-1]["digit_bits"],
        **{f"{name}_loss": _ends([line[name] for line in lines if name in line]) for name in ("stft", "consistency")},
        "stft_distance": {
            Path(clip.name).stem: {
                "trained": decoded_distance(trained, clip),
                "untrained": decoded_distance(untrained, clip),
                **mean_spectrum_distances(trained, clip),
            }
            for clip in clips
        },
    }


def _ends(values: list[float]) -> dict[str, float]:
    """Means of the first and the last quarter."""
    quarter = max(1, len(values) // 4)
    return {"first_quarter": float(np.mean(values[:quarter])), "last_quarter": float(np.mean(values[-quarter:]))}


def decoded_distance(codec: Codec, clip: Clip) -> float:
    """`stft_distance` of a clip as the codec decodes it, at the codec's sampling rate."""
    audio = read(clip, codec)
    (decoded,) = codec.decode(codec.encode([audio]), [audio.shape[-1]])
    return compute_metrics(audio, decoded, codec.input_sampling_rate, ["stft_distance"])[0]["stft_distance"]


def mean_spectrum_distances(codec: Codec, clip: Clip) -> dict[str, float]:
    """The same of a spectrum that does not change, each channel's own mean."""
    audio = read(clip, codec)
    spectra = torch.stft(
        torch.from_numpy(audio).double(),
        WINDOW_LENGTH,
        WINDOW_LENGTH // 4,
        window=torch.hann_window(WINDOW_LENGTH, dtype=torch.float64),
        return_complex=True,
    )
    logarithms = spectra.abs().clamp(min=FLOOR).log10()
    means = {
        "mean_spectrum": spectra.abs().mean(dim=-1, keepdim=True).clamp(min=FLOOR).log10(),
        "mean_logarithmic_spectrum": logarithms.mean(dim=-1, keepdim=True),
    }
    return {name: (logarithms - mean).abs().mean().item() for name, mean in means.items()}


def read(clip: Clip, codec: Codec) -> np.ndarray:
    """`(2, num_samples)` at the codec's sampling rate."""
    return resample(*clip.read(num_channels=codec.num_channels), codec.input_sampling_rate)


def draw(run: Path, result: dict, path: Path):
    """Losses by step, and the mean distance of the held-out clips by minute beside what does not learn."""
    log, validation = _lines(run / "log.jsonl"), _lines(run / "validation.jsonl")
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("stft", "consistency", "distance")):
        if name == "distance":
            axes.plot([line["minutes"] for line in validation], [line["stft_distance"] for line in validation], "k.-")
            for other, style in (("untrained", "r--"), ("mean_spectrum", "b--"), ("mean_logarithmic_spectrum", "c--")):
                level = np.mean([clip[other] for clip in result["stft_distance"].values()])
                axes.axhline(level, color=style[0], linestyle=style[1:], label=other.replace("_", " "))
            axes.set(title="STFT distance, held-out clips", xlabel="minutes", ylim=(0, None))
            axes.legend()
        else:
            shown = [line for line in log if name in line]
            axes.plot([line["step"] for line in shown], [line[name] for line in shown], linewidth=0.8)
            axes.set(title=f"{name} loss, weighted", xlabel="steps")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
