"""Model cards: every figure follows from the model, nothing is claimed that is not known, and what is known is kept."""

import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import fsqcodec
from clips import ENGLISH, speech
from fsqcodec import CodecConfig, CodecFeatureExtractor, CodecModel
from fsqcodec.codecs import model_digest
from fsqcodec.conversion.originals import OriginalCodec
from fsqcodec.hub.cards import ORIGINS, model_card, write_all_cards
from small_configs import small_config, small_model

CARDS = Path(__file__).parent.parent / "model_cards"
WRITE_CARDS = """python -c 'from fsqcodec.hub.cards import write_all_cards; write_all_cards("model_cards")'"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of unknown provenance."""
    small_model("l3ac-coarse").save_pretrained(tmp_path / "my-codec")
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "my-codec")
    return tmp_path / "my-codec"


def table(card: str) -> dict[str, list[str]]:
    """Values by label of all tables of a card."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {label: values for label, *values in lines}


def summary_of(folder: Path, **changes) -> dict:
    """What `fsqcodec evaluate` writes about a model and about Opus."""
    model = CodecModel.from_pretrained(folder)
    entry = {
        "model": str(folder),
        "revision": None,
        "digest": model_digest(model),
        "sampling_rate": model.config.sampling_rate,
        "frame_rate": model.config.frame_rate,
        "codebook_sizes": [model.config.codebook_size],
        "nominal_bitrate": model.config.bitrate,
        "measured_bitrate": 6100.25,
        "warnings": ["In 2 clips decoded audio exceeds full scale."],
        "num_clips": 39,
        "metrics": {
            "pesq_wb": {"mean": 1.23456, "standard_error": 0.0123, "num_clips": 37, "num_failed": 2},
            "si_sdr_db": {"mean": None, "standard_error": None, "num_clips": 0, "num_failed": 39},
        },
        "tokens": None,
    }
    opus = {**entry, "model": "opus:6", "digest": None, "frame_rate": None, "codebook_sizes": []}
    return {
        "fsqcodec_version": "0.9.9",
        "command": "fsqcodec evaluate recordings --model my-codec",
        "data": {"sources": ["recordings"], "num_clips": 39, "seconds": 300.0, "digest": "0123abcd"},
        "codecs": {"ours": {**entry, **changes}, "opus": opus},
    }


def test_the_cards_of_presets_and_families_are_current(tmp_path):
    if (CARDS / "evaluation").is_dir():
        shutil.copytree(CARDS / "evaluation", tmp_path / "evaluation")
    expected = {path.name: path.read_text() for path in write_all_cards(tmp_path)}
    assert {path.name: path.read_text() for path in CARDS.glob("*.md")} == expected, f"run: {WRITE_CARDS}"


@pytest.mark.parametrize("family", ["l3ac", "sqcodec"])
def test_a_familys_card_has_the_figures_of_its_presets(family):
    figures = table((CARDS / f"{family}.md").read_text())
    for column, preset in enumerate(fsqcodec.list_presets(family)):
        for label in ("bits per second", "parameters", "multiply-accumulates to decode 10 s"):
            assert table((CARDS / f"{preset}.md").read_text())[label] == [figures[label][column]]


@pytest.mark.parametrize("preset", [preset for family in ORIGINS for preset in fsqcodec.list_presets(family)])
def test_the_rates_of_a_preset_are_exact_to_the_last_digit(preset):
    config, facts = CodecConfig.from_preset(preset), table((CARDS / f"{preset}.md").read_text())
    assert facts["sampling rate"] == [f"{config.sampling_rate} Hz"]
    assert facts["samples per token"] == [str(config.hop_length)]
    assert abs(float(facts["tokens per second"][0]) - config.sampling_rate / config.hop_length) <= 0.005
    assert abs(float(facts["bits per second"][0]) - config.bitrate) <= 0.05
    assert facts["codebook"][0].split()[0] == str(config.codebook_size)
    for part in ("encoder", "decoder"):
        samples = getattr(config, f"{part}_lookahead_samples")
        assert facts[f"{part} look-ahead"] == [f"{samples} samples ({1000 * samples / config.sampling_rate:.1f} ms)"]


@pytest.mark.parametrize("origin", ["l3ac", "sqcodec"])
def test_the_card_of_a_converted_folder_is_made_again_as_the_conversion_wrote_it(origin, tmp_path):
    pytest.importorskip("l3ac", reason="the original package l3ac is not installed: pip install fsqcodec[originals]")
    config = small_config(f"{origin}-coarse")
    original = OriginalCodec(origin, config)
    original.randomize(seed=0, clip=speech()[:20000])
    original.save(tmp_path / "original")
    for verify in (False, True):
        folder = fsqcodec.convert_checkpoint(
            origin, tmp_path / "original", tmp_path / f"model-{verify}", config=config, verify=verify
        )
        card = (folder / "README.md").read_text()
        assert ("tokens equal" in card) == verify
        assert model_card(folder) == card
        assert ModelCard(card).data.license is None  # who converts weights of their own says under what licence


def test_a_converted_preset_is_described_as_the_preset_is(tmp_path):
    pytest.importorskip("l3ac", reason="the original package l3ac is not installed: pip install fsqcodec[originals]")
    preset = "l3ac-3kbps"
    OriginalCodec("l3ac", CodecConfig.from_preset(preset)).save(tmp_path / "original")
    folder = fsqcodec.convert_checkpoint("l3ac", tmp_path / "original", tmp_path / "model", preset=preset)
    card = (folder / "README.md").read_text()
    assert model_card(folder) == card
    assert "Verification against the original package: not run." in card
    described, expected = table(card), table(model_card(preset))
    assert described == expected and "authors' own figures" in card
    assert ModelCard(card).data.to_dict() == ModelCard(model_card(preset)).data.to_dict()


def test_nothing_is_claimed_about_weights_of_unknown_provenance(folder):
    card = model_card(folder)
    assert card.splitlines()[card.splitlines().index("---", 1) + 1] == "# my-codec"
    assert not {"license", "base_model", "model-index"} & set(ModelCard(card).data.to_dict())
    assert not re.search(r"MIT|zhai-lw|LibriSpeech|PESQ|authors", card)
    assert "is not recorded" in card


def test_what_a_folders_card_states_is_kept(folder):
    stated = "---\nlicense: cc-by-4.0\ndatasets: [org/speech]\nlanguage: de\n---\n# German codec\n"
    (folder / "README.md").write_text(stated)
    (folder / "README.md").write_text(model_card(folder))
    card = ModelCard(model_card(folder))
    assert (card.data.license, card.data.datasets, card.data.language) == ("cc-by-4.0", ["org/speech"], "de")
    assert card.text.lstrip().startswith("# German codec\n")
    assert "No licence is stated" not in card.text


def test_the_lines_of_use_run(folder):
    (code,) = re.findall(r"```python\n(.*?)```", model_card(folder), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    names = {}
    exec(code.replace("path/of/this/folder", str(folder)).replace("speech.flac", str(ENGLISH)), names)
    assert names["audio_values"].shape == (1, 1, len(names["audio"]))
    assert int(re.search(r"from 0 to (\d+)", code)[1]) == names["model"].config.codebook_size - 1


def test_an_evaluation_fills_card_and_model_index(folder):
    summary = summary_of(folder)
    card = ModelCard(model_card(folder, summary))
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("pesq_wb", 1.23456)
    assert result.dataset_name == "recordings"
    facts = table(card.text)
    assert facts["pesq_wb"] == ["1.235", "0.012", "37", "2"]
    assert facts["si_sdr_db"] == ["not measured", "-", "0", "39"]
    for stated in (
        summary["command"],
        "39 clips, 5.0 minutes, of recordings (0123abcd)",
        "6100.2 bit/s",
        "full scale",
    ):
        assert stated in card.text
    assert model_card(folder, summary, codec="ours") == str(card)
    wer, dwer = ({"rate": rate, "interval": [rate - 0.05, rate + 0.05], "num_clips": 28} for rate in (0.279, 0.2))
    summary["codecs"]["ours"]["recognition"] = {"wer": wer, "dwer": dwer}
    summary["recognition"] = {"model": "openai/whisper-base", "original": {"wer": {**wer, "rate": 0.086}}}
    card = ModelCard(model_card(folder, summary))
    assert "openai/whisper-base recognises 27.9 % (95 % interval 22.9 to 32.9) of the words of 28" in card.text
    assert "8.6 % in the recordings" in card.text
    assert {result.metric_type: result.metric_value for result in card.data.eval_results}["wer"] == 27.9
    summary["codecs"]["ours"]["recognition"]["wer"] = None
    assert "20.0 % (95 % interval 15.0 to 25.0) of what it recognises in 28" in model_card(folder, summary)
    del summary["codecs"]["ours"]["metrics"]["pesq_wb"]
    assert "model-index" not in ModelCard(model_card(folder, summary)).data.to_dict()


def test_an_evaluation_of_something_else_is_refused(folder):
    with pytest.raises(ValueError, match="no codec of the evaluation has the digest"):
        model_card(folder, summary_of(folder, digest="0" * 16))
    with pytest.raises(ValueError, match="no codec of the evaluation has the digest"):
        model_card(folder, summary_of(folder), codec="opus")
    with pytest.raises(ValueError, match="it is another codec"):
        model_card(folder, summary_of(folder, frame_rate=16000 / 19))
    with pytest.raises(ValueError, match="no codec 'theirs'; it has: ours, opus"):
        model_card(folder, summary_of(folder), codec="theirs")
    twice = summary_of(folder)
    twice["codecs"]["again"] = twice["codecs"]["ours"]
    with pytest.raises(ValueError, match="several codecs .* ours, again"):
        model_card(folder, twice)
    with pytest.raises(ValueError, match="lacks codecs"):
        model_card(folder, {})
    with pytest.raises(ValueError, match="of one model"):
        model_card("l3ac", twice)
    with pytest.raises(ValueError, match="no codec of the evaluation has the name l3ac-1kbps"):
        model_card("l3ac-1kbps", twice)


def test_the_evaluation_of_a_preset_is_found_by_its_name(folder):
    config = CodecConfig.from_preset("l3ac-1kbps")
    facts = {"frame_rate": config.frame_rate, "codebook_sizes": [config.codebook_size]}
    card = model_card("l3ac-1kbps", summary_of(folder, model="models/l3ac-1kbps", **facts))
    assert table(card)["pesq_wb"][0] == "1.235"
    with pytest.raises(ValueError, match="it is another codec"):
        model_card("l3ac-3kbps", summary_of(folder, model="models/l3ac-3kbps", **facts))


def test_what_has_no_card_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="l3ac-2kbps is no preset .* no family .* and no folder"):
        model_card("l3ac-2kbps")
    (tmp_path / "config.json").write_text('{"model_type": "dac"}')
    with pytest.raises(ValueError, match="a model of type 'dac'"):
        model_card(tmp_path)
