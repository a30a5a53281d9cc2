"""Training: seconds of audio a second, and where a step's time goes.

    python benchmarks/training.py CLIPS [--recipe NAME_OR_YAML] [--threads 1] [--steps 5]

Runs a recipe's steps on CLIPS (what `fsqcodec train --data` takes), as it is, without compiled units, and with all
scales of its losses, and prints the seconds of audio that each gets through in a second of one clock and the ratio to
the first. The table below it is of the recipe as it is: milliseconds of the clock for a second of audio. Losses are
timed forward and backward, up to the decoded audio; the network is what is left of forward and backward.

On a GPU every part is waited for, so the parts add up to more than the step.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fsqcodec.evaluation.summary import commit, machine
from fsqcodec.training.recipe import load_recipe, recipe_path
from fsqcodec.training.trainer import Trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="what `fsqcodec train --data` takes")
    parser.add_argument("--recipe", default="speech-cpu", help="a ready recipe, or a YAML file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=5, help="timed, after one that is not")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    is_file = arguments.recipe.endswith((".yaml", ".yml"))
    path = Path(arguments.recipe) if is_file else recipe_path(arguments.recipe)
    recipe = load_recipe(path, **{"data.train": arguments.clips, "data.hold_out_speakers": 0, "trackers": []})
    facts = machine()
    print(f"{facts['processor']}, {arguments.threads} threads, commit {commit()}, torch {torch.__version__}")
    variants = {"as it is": recipe}
    if recipe.compile:
        variants["not compiled"] = dataclasses.replace(recipe, compile=False)
    if recipe.scales_per_step is not None:
        variants["all scales"] = dataclasses.replace(recipe, scales_per_step=None)
    rates = {}
    for name, variant in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(variant, folder)
            rates[name] = seconds_per_second(trainer, arguments.steps)
            print(f"{name:24}{rates[name]:8.1f} s of audio a second{rates[name] / rates['as it is']:8.2f} x")
            if variant is recipe:
                parts = parts_of_a_step(trainer, arguments.steps)
    print(f"\n{'part of a step':24}{'ms for a second of audio':>26}")
    for name, milliseconds in parts.items():
        print(f"{name:24}{milliseconds:26.1f}")


def seconds_per_second(trainer: Trainer, num_steps: int) -> float:
    """Whole steps, crops included."""
    batches = trainer.accelerator_batches()
    for _ in range(2):  # compiles, and reads the first clips
        trainer.train_step(next(batches))
    elapsed = timed(lambda: trainer.train_step(next(batches)), num_steps, trainer)
    return trainer.recipe.batch_size * trainer.recipe.data.crop_seconds / elapsed


def parts_of_a_step(trainer: Trainer, num_steps: int) -> dict[str, float]:
    """Milliseconds for a second of audio, by part."""
    recipe = trainer.recipe
    batches = trainer.accelerator_batches()
    seconds = {"crops": timed(lambda: next(batches), num_steps, trainer)}
    batch = next(batches)
    seconds["whole step"] = timed(lambda: trainer.train_step(batch), num_steps, trainer)
    seconds |= {f"loss {name}": timed(loss, num_steps, trainer) for name, loss in losses_of(trainer, batch).items()}
    trainer.model.zero_grad()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    seconds["optimizers"] = timed(lambda: [optimizer.step() for optimizer in trainer.optimizers], num_steps, trainer)
    seconds["average of weights"] = timed(lambda: trainer._update_average(0.01), num_steps, trainer)
    seconds["network"] = seconds["whole step"] - sum(
        value for name, value in seconds.items() if name not in ("crops", "whole step")
    )
    scale = 1000 / (recipe.batch_size * recipe.data.crop_seconds)
    return {name: scale * value for name, value in sorted(seconds.items(), key=lambda item: -item[1])}


def losses_of(trainer: Trainer, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    """Each loss of the last phase on the whole batch, forward and backward up to the decoded audio."""
    phase = trainer.recipe.phases[-1]
    trainer.family.start_step(0, phase)

    def detached(**inputs):  # the network is not timed
        output = trainer.model(**inputs)
        return dataclasses.replace(output, audio_values=output.audio_values.detach().requires_grad_())

    functions = trainer.family.loss_functions(detached, batch, batch["padding_mask"].sum(), True)
    return {name: lambda name=name: functions[name]().sum().backward(retain_graph=True) for name in phase.losses}


def timed(function: Callable, num_times: int, trainer: Trainer) -> float:
    """Seconds of the clock for one call."""
    started = time.perf_counter()
    for _ in range(num_times):
        function()
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / num_times


if __name__ == "__main__":
    main()
