"""Two processes under `accelerate launch` train as one with their batches together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from clips import ENGLISH
from fsqcodec import CodecFeatureExtractor
from fsqcodec.audio import read_audio
from fsqcodec.codecs import load_codec
from small_configs import small_model

PROGRAM = """
import sys
import torch
from fsqcodec.training.recipe import load_recipe
from fsqcodec.training.trainer import Trainer

recipe, output = sys.argv[1:]
trainer = Trainer(load_recipe(recipe), output)
trainer.optimizers[0].zero_grad = lambda: None
batch = next(trainer.accelerator_batches())
facts = trainer.train_step(batch)
gradients = {name: parameter.grad for name, parameter in trainer.codec.named_parameters()}
if trainer.accelerator.is_main_process:
    torch.save([trainer.accelerator.num_processes, gradients], f"{output}/step.pt")
trainer.step += 1
trainer.validate()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frames-plain", "running"])
def test_two_processes_make_the_gradients_and_the_model_of_one(name, tmp_path):
    (tmp_path / "step.py").write_text(PROGRAM)
    audio = read_audio(ENGLISH, 16000)
    for number, length in enumerate((3000, 900, 2000, 3000)):  # of 1600 samples a crop: one is padded
        soundfile.write(tmp_path / f"{number}.wav", audio[16000 * (number + 1) :][:length], 16000)
    small_model(name).save_pretrained(tmp_path / "model")
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "model")
    recipe = {
        "model": {"folder": str(tmp_path / "model")},
        "data": {"train": [str(tmp_path / "*.wav")], "hold_out_speakers": 0, "crop_seconds": 0.1},
        "batch_size": 4,
        "phases": [{"steps": 1, "losses": {"waveform": 10, "mel": 1}}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    steps = [launch(tmp_path, num_processes) for num_processes in (1, 2)]
    assert [step[0] for step in steps] == [1, 2]
    (_, whole), (_, shared) = steps
    for key, gradient in whole.items():
        torch.testing.assert_close(
            shared[key], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )
    one, two = (load_codec(tmp_path / f"run{num_processes}" / "last").model.state_dict() for num_processes in (1, 2))
    for key, weight in one.items():
        if "running_" not in key:  # means over batches, which differ
            torch.testing.assert_close(two[key], weight, rtol=1e-2, atol=1e-3)


def launch(folder: Path, num_processes: int) -> list:
    """Run the program under `accelerate launch` on CPUs; what it saved."""
    output = folder / f"run{num_processes}"
    options = [
        "--num_processes",
        num_processes,
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    options += ["--multi_gpu"] if num_processes > 1 else ["--cpu"]  # the name for any processes that work together
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    command = [str(part) for part in (*launcher, folder / "step.py", folder / "recipe.yaml", output)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output / "step.pt", weights_only=True)
