"""Training runs: what is frozen stays, what is interrupted goes on, what is asked for is learned."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator

from clips import ENGLISH, GERMAN
from fsqcodec import CodecFeatureExtractor
from fsqcodec.audio import read_audio
from fsqcodec.codecs import load_codec
from fsqcodec.training.recipe import RECIPES, Source, as_dict, load_recipe, recipe_path
from fsqcodec.training.trainer import Trainer
from small_configs import small_model
from small_recognizer import save_small_whisper


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Eight seconds of speech in four clips by two speakers, a small model, a recipe."""
    folder = tmp_path_factory.mktemp("training")
    rows = []
    for speaker, path in (("lj", ENGLISH), ("thorsten", GERMAN)):
        audio = read_audio(path, 16000)
        for number in range(2):
            name = f"{speaker}{number}.wav"
            soundfile.write(folder / name, audio[16000 * (1 + 2 * number) :][:32000], 16000)
            rows.append({"path": name, "speaker": speaker})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small_model("frames-plain").save_pretrained(folder / "model")
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(
        f"""
model: {{folder: {folder / "model"}}}
data: {{train: [{folder / "clips.jsonl"}], hold_out_speakers: 1, num_validation_clips: 1, crop_seconds: 0.1}}
phases:
  - {{steps: 6, losses: {{waveform: 10, mel: 1}}}}
  - {{steps: 6, losses: {{waveform: 1, mel: 1, stft: 1}}, caps: {{stft: 2}}}}
batch_size: 4
digit_noise: {{probability: 0.5, first_step: 2, ramp_steps: 2}}
save_minutes: 0
"""
    )
    return folder


def recipe_of(workplace, **replaced):
    return load_recipe(workplace / "recipe.yaml", **replaced)


def logged(output) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "audio_seconds_per_second"} for line in lines]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_codec(folder).model.state_dict()


@pytest.fixture(scope="module")
def everything(workplace, tmp_path_factory):
    """A recipe with every loss and schedule of speech but discriminators on."""
    folder = tmp_path_factory.mktemp("everything")
    recognizer = save_small_whisper(folder / "whisper")
    (folder / "recipe.yaml").write_text(
        f"""
model: {{folder: {workplace / "model"}}}
data: {{train: [{workplace / "clips.jsonl"}], hold_out_speakers: 1, num_validation_clips: 1, crop_seconds: 0.2}}
phases:
  - {{steps: 6, losses: {{waveform: 10, complex_stft: 1}}, quantizer_dropout: 0.5}}
  - steps: 6
    losses: {{waveform: 1, mel: 1, complex_stft: 1, features: 1, token_consistency: 1, buzz: 1}}
batch_size: 4
accumulation_steps: 2
scales_per_step: 2
compile: true
perceptual_model: {recognizer}
recognizer: {recognizer}
recognize_every: 2
features: {{layers: [1], share: 0.5}}
consistency: {{share: 0.5}}
save_minutes: 0
validate_minutes: 0
"""
    )
    return folder / "recipe.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_an_undisturbed_run_and_one_that_was_killed_end_alike(workplace, everything, tmp_path, monkeypatch, kind):
    recipe = workplace / "recipe.yaml" if kind == "plain" else everything
    monkeypatch.setattr("fsqcodec.training.trainer.LOG_EVERY_STEPS", 1)
    Trainer(load_recipe(recipe), tmp_path / "whole").run()
    program = (
        "from fsqcodec.training import recipe, trainer; trainer.LOG_EVERY_STEPS = 1;"
        f"trainer.Trainer(recipe.load_recipe({str(recipe)!r}), {str(tmp_path / 'killed')!r}).run()"
    )
    log, kills = tmp_path / "killed" / "log.jsonl", 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        lines_before = log.read_text().count("\n") if log.exists() else 0
        while process.poll() is None:
            if kills < 2 and log.exists() and log.read_text().count("\n") >= lines_before + 4:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills == 2
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    for name in ("last", "best"):
        whole, killed = weights(tmp_path / "whole" / name), weights(tmp_path / "killed" / name)
        assert all(torch.equal(killed[key], tensor) for key, tensor in whole.items())


def test_only_the_decoder_is_trained_and_tokens_stay(workplace, tmp_path):
    Trainer(recipe_of(workplace, **{"model.parts": ["decoder"]}), tmp_path).run()
    before, after = load_codec(workplace / "model"), load_codec(tmp_path / "last")
    card = (tmp_path / "last" / "README.md").read_text()
    assert f"\n# {tmp_path.name}\n" in card and "12 steps of 4 crops of 0.1 s" in card
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]) == (not name.startswith("decoder."))
    clip = read_audio(ENGLISH, 16000)
    assert np.array_equal(before.encode([clip])[0], after.encode([clip])[0])


def test_the_best_model_has_the_highest_score_and_word_errors_count(workplace, everything, tmp_path, monkeypatch):
    monkeypatch.setattr("fsqcodec.training.codec_training.compile_units", lambda model, in_bf16: True)
    Trainer(load_recipe(everything), tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for number, line in enumerate(lines):
        is_recognized = number % 2 == 0 or number == 11
        assert (line["dwer"] is not None) == (line["score"] is not None) == is_recognized
        assert line["wer"] is None  # the clips have no transcripts
        if is_recognized:
            expected = line["pesq_wb"] / 4.5 + line["stoi"] - line["mel_distance"] - line["dwer"]
            assert line["score"] == pytest.approx(expected)
    best = json.loads((tmp_path / "best" / "training.json").read_text())["step"]
    assert best == max((line for line in lines if line["score"] is not None), key=lambda line: line["score"])["step"]


def test_a_quantizer_can_come_later(workplace, tmp_path):
    phases = [{"steps": 2, "losses": {"waveform": 1}, "quantizer_dropout": 1.0}, {"steps": 2, "losses": {"mel": 1}}]
    trainer = Trainer(recipe_of(workplace, phases=phases), tmp_path)
    shares = []
    for batch in trainer.accelerator_batches():
        trainer.train_step(batch)
        trainer.step += 1
        shares.append(trainer.codec.quantizer.dropout_probability)
    assert shares == [1, 1, 0, 0]


def test_training_further_keeps_the_record_of_what_was_before(workplace, tmp_path):
    phases = [{"steps": 2, "losses": {"waveform": 1}}]
    Trainer(recipe_of(workplace, phases=phases), tmp_path / "first").run()
    model = {"folder": str(tmp_path / "first" / "last")}
    Trainer(recipe_of(workplace, phases=phases, model=model), tmp_path / "second").run()
    first, second = (json.loads((tmp_path / run / "last" / "training.json").read_text()) for run in ("first", "second"))
    assert first["earlier_training"] is None
    assert second["earlier_training"] == first
    card = (tmp_path / "second" / "last" / "README.md").read_text()
    assert "from the weights of another model" in card and "Before that: 2 steps, 0.0 hours" in card


def test_a_saved_model_stays_until_the_next_one_is_complete(workplace, tmp_path, monkeypatch):
    Trainer(recipe_of(workplace), tmp_path).run()
    before = {name: weights(tmp_path / name) for name in ("last", "best")}
    trainer = Trainer(recipe_of(workplace), tmp_path)
    trainer.validation.best = None
    for parameter in trainer.averaged.parameters():
        parameter.data.mul_(0.5)
    with monkeypatch.context() as broken:
        broken.setattr("fsqcodec.training.validation.model_card", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.validate()
    for name, kept in before.items():
        assert all(torch.equal(kept[key], value) for key, value in weights(tmp_path / name).items())
    trainer.validate()
    for name, kept in before.items():
        assert any(not torch.equal(kept[key], value) for key, value in weights(tmp_path / name).items())
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_was_killed_before_its_first_state_begins_its_log_anew(workplace, tmp_path):
    Trainer(recipe_of(workplace), tmp_path).run()
    (tmp_path / "state.pt").unlink()
    expected = logged(tmp_path), (tmp_path / "validation.jsonl").read_text().count("\n")
    Trainer(recipe_of(workplace), tmp_path).run()
    assert (logged(tmp_path), (tmp_path / "validation.jsonl").read_text().count("\n")) == expected


@pytest.mark.slow
def test_one_clip_is_learned(workplace, tmp_path):
    phases = [{"steps": 150, "losses": {"waveform": 10}}]
    replaced = {"phases": phases, "data.hold_out_speakers": 0, "data.train": [str(workplace / "lj0.wav")]}
    replaced |= {"digit_noise.probability": 0.0, "optimizer": {"learning_rate": 3e-3}, "data.crop_seconds": 0.5}
    Trainer(recipe_of(workplace, **replaced), tmp_path).run()
    first, last = (line["waveform"] for line in (logged(tmp_path)[0], logged(tmp_path)[-1]))
    assert last < 0.7 * first


def test_bf16_is_close_to_float32_and_muon_moves_every_weight(workplace, tmp_path, monkeypatch):
    """A preset's width, so that its units run in bf16; weights, output and statistics stay in float32."""
    monkeypatch.setattr("fsqcodec.training.trainer.is_bf16_fast", lambda device: True)
    replaced = {"model": {"preset": "speech-3kbps"}, "data.hold_out_speakers": 0, "optimizer": {"name": "muon"}}
    facts = {}
    for precision in ("float32", "bf16"):
        trainer = Trainer(recipe_of(workplace, precision=precision, **replaced), tmp_path / precision)
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
        facts[precision] = trainer.train_step(next(trainer.accelerator_batches()))
        for name, weight in trainer.model.named_parameters():
            assert weight.dtype == torch.float32 and not torch.equal(weight, before[name]), name
        assert sum(len(group["params"]) for each in trainer.optimizers for group in each.param_groups) == len(before)
    assert facts["bf16"]["waveform"] != facts["float32"]["waveform"]
    for name in ("waveform", "mel", "gradient_norm"):
        assert float(facts["bf16"][name]) == pytest.approx(float(facts["float32"][name]), rel=0.02)


def test_bf16_is_left_alone_where_it_is_slower(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    replaced = {"model": {"preset": "speech-3kbps"}, "data.hold_out_speakers": 0}
    whole = Trainer(recipe_of(workplace, **replaced), tmp_path / "float32")
    with pytest.warns(UserWarning, match="slower than float32 on this processor"):
        asked = Trainer(recipe_of(workplace, precision="bf16", **replaced), tmp_path / "bf16")
    batch = next(whole.accelerator_batches())
    assert asked.train_step(batch)["waveform"] == whole.train_step(batch)["waveform"]


def test_a_decoder_is_moved_to_constants_and_fine_tuned(workplace, tmp_path):
    """Before any step it computes nearly what it did, as its norms have the statistics of the training clips; tokens
    stay."""
    small_model("l3ac-coarse").save_pretrained(tmp_path / "clip")
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "clip")
    model = {"folder": str(tmp_path / "clip"), "parts": ["decoder"]}
    model["overrides"] = {"enhance_normalization": "running"}
    trainer = Trainer(recipe_of(workplace, model=model, **{"data.crop_seconds": 1.0}), tmp_path / "run")
    trainer.validate()
    clip = read_audio(ENGLISH, 16000)
    before, moved = load_codec(tmp_path / "clip"), load_codec(tmp_path / "run" / "last")
    assert before.model.config.normalizes_over_clip and not moved.model.config.normalizes_over_clip
    (codes,) = before.encode([clip])
    assert np.array_equal(codes, moved.encode([clip])[0])
    decoded, moved_decoded = (codec.decode([codes], [len(clip)])[0] for codec in (before, moved))
    difference = np.std(moved_decoded - decoded) / np.std(decoded)
    assert 0 < difference < 0.3
    trainer.run()
    assert np.array_equal(codes, load_codec(tmp_path / "run" / "last").encode([clip])[0])


def test_what_does_not_fit_is_not_moved(workplace, tmp_path):
    model = {"folder": str(workplace / "model"), "overrides": {"latent_dim": 5}}
    with pytest.raises(ValueError, match="has no place: train from a preset instead"):
        Trainer(recipe_of(workplace, model=model), tmp_path)


def test_trackers_get_what_is_logged(workplace, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("fsqcodec.training.trainer.LOG_EVERY_STEPS", 6)
    trainer = Trainer(recipe_of(workplace, trackers=["tensorboard"]), tmp_path)
    trainer.run()
    trainer.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "training")).Reload()
    assert [event.step for event in events.Scalars("mel")] == [6, 12]
    assert [event.value for event in events.Scalars("mel")] == pytest.approx([line["mel"] for line in logged(tmp_path)])
    assert events.Scalars("stoi")[0].step == 12


def test_parts_of_a_batch_add_up_to_the_whole(workplace, tmp_path):
    """Accumulated over four parts of clips of different lengths, the gradients are those of the whole batch."""
    gradients = {}
    for parts in (1, 4):
        recipe = recipe_of(workplace, accumulation_steps=parts, **{"model.parts": ["decoder"]})
        trainer = Trainer(recipe, tmp_path / str(parts), Accelerator())
        batch = next(trainer.accelerator_batches())
        batch["padding_mask"][1:, 900:] = 0
        trainer.optimizers[0].zero_grad = lambda: None
        trainer.train_step(batch)
        gradients[parts] = [parameter.grad.clone() for parameter in trainer.model.decoder.parameters()]
    for whole, accumulated in zip(gradients[1], gradients[4]):
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-6)


def test_a_folder_of_another_run_is_refused(workplace, tmp_path):
    Trainer(recipe_of(workplace), tmp_path)
    before = (tmp_path / "recipe.json").read_text()
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        Trainer(recipe_of(workplace, seed=1), tmp_path)
    assert (tmp_path / "recipe.json").read_text() == before


def test_an_evaluation_speaker_never_trains(workplace, tmp_path):
    trainer = Trainer(
        recipe_of(
            workplace,
            **{"data.evaluation": [f"{workplace / 'clips.jsonl'}:thorsten0"], "data.hold_out_speakers": 0},
        ),
        tmp_path,
    )
    assert {clip.speaker for clip in trainer.crops.clips} == {"lj"}


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"optimiser": {}}, "'optimiser', which is no field"),
        ({"model.preset": "l3ac-3kbps"}, "either a preset or a folder"),
        ({"model": {"preset": "speech"}}, "there is no preset 'speech'"),
        ({"phases": []}, "has no phases"),
        ({"phases": [{"steps": 1, "losses": {"mos": 1}}]}, "there is no loss 'mos'"),
        ({"phases": [{"steps": 1, "losses": {"perceptual": 1}}]}, "wants a perceptual_model"),
        ({"phases": [{"steps": 1, "losses": {"features": 1}}]}, "wants a perceptual_model"),
        ({"features": {"layer": 1}}, "features has 'layer', which is no field"),
        ({"consistency": {"noise_db": 30}}, "consistency, noise_db is 30: a list of 2 is wanted"),
        ({"batch_size": "many"}, "batch_size is 'many': int is wanted"),
        ({"ema_decay": "1e-3"}, "a number is wanted"),
        ({"precision": "fp8"}, "precision is 'fp8': one of float32, bf16 is wanted"),
        ({"model.parts": ["vocoder"]}, "model, parts is 'vocoder': one of encoder, quantizer, decoder is wanted"),
        ({"data.train": "clips.jsonl"}, "data, train is 'clips.jsonl': a list is wanted"),
        ({"data.train": [3]}, "data, train is 3: str is wanted"),
        ({"data.train": [{"path": "a", "wieght": 2}]}, "data, train has 'wieght', which is no field"),
        ({"data.train": [{"weight": 2}]}, "data, train: .*missing .* 'path'"),
        ({"data.train": [{"path": "a", "weight": "2"}]}, "data, train, weight is '2': a number is wanted"),
        ({"data.train": [{"path": "a", "speech": 0}]}, "data, train, speech is 0: bool is wanted"),
        ({"data.speed": 1.1}, "data, speed is 1.1: a list of 2 is wanted"),
        ({"data.speed": [0.9]}, r"data, speed is \[0.9\]: a list of 2 is wanted"),
        ({"data": None}, "data is None: fields are wanted"),
        ({"data": 3, "data.train": ["a"]}, "data is 3: fields are wanted"),
        ({"phases": 3}, "phases is 3: a list is wanted"),
        ({"phases": [3]}, "phases is 3: fields are wanted"),
        ({"phases": [{"steps": 1, "losses": ["mel"]}]}, r"losses is \['mel'\]: dict is wanted"),
        ({"phases": [{"steps": 1, "losses": {"mel": "high"}}]}, "losses, mel is 'high': a number is wanted"),
        ({"batch_size": True}, "batch_size is True: int is wanted"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(workplace, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        recipe_of(workplace, **change)


def test_sources_replace_those_of_an_empty_section(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "model: {preset: speech-3kbps}\ndata:\nphases: [{steps: 1, losses: {mel: 1}}]"
    )
    assert load_recipe(tmp_path / "recipe.yaml", **{"data.train": ["a"]}).data.train == ("a",)


def test_a_recipe_comes_back_as_it_was(workplace, tmp_path):
    sources = ["a", {"path": "b", "weight": 2}, {"path": "c", "speech": False}]
    recipe = recipe_of(workplace, **{"data.train": sources})
    assert recipe.data.train == ("a", Source("b", 2.0), Source("c", 1.0, speech=False))
    (tmp_path / "again.yaml").write_text(json.dumps(as_dict(recipe)))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_ready_recipes_load(name):
    recipe = load_recipe(recipe_path(name), **{"data.train": ["recordings"]})
    assert recipe.data.train == ("recordings",) and recipe.num_steps >= 1000
