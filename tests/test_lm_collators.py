"""Batches for `Trainer`: what is in them, which labels count, and that packing changes nothing for the model."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments, default_data_collator

from fsqcodec.lm import AudioCollator, AudioToTextCollator, AudioVocabulary, TextToAudioCollator
from small_language_model import SENTENCES, small_llama, text_tokenizer

TOKENIZER = text_tokenizer()
VOCABULARY = AudioVocabulary(len(TOKENIZER), (10, 20))
BEGIN, END = VOCABULARY.begin_of_audio_id, VOCABULARY.end_of_audio_id
EOS = TOKENIZER.eos_token_id
COLLATORS = {
    "audio": AudioCollator(VOCABULARY),
    "text-to-audio": TextToAudioCollator(VOCABULARY, TOKENIZER),
    "audio-to-text": AudioToTextCollator(VOCABULARY, TOKENIZER),
}


def row(num_frames: int, number: int = 0) -> dict:
    generator = torch.Generator().manual_seed(1000 * number + num_frames)
    codes = [torch.randint(size, (num_frames,), generator=generator).tolist() for size in (10, 20)]
    return {"audio_codes": codes, "text": SENTENCES[number % len(SENTENCES)], "id": number}


def rows(lengths) -> list[dict]:
    return [row(length, number) for number, length in enumerate(lengths)]


def parts(name: str, row: dict) -> tuple[list[int], list[int]]:
    """Prompt and target, put together by hand."""
    audio, text = VOCABULARY.codes_to_ids(row["audio_codes"]).tolist(), TOKENIZER(row["text"]).input_ids
    return {
        "audio": ([BEGIN], [*audio, END]),
        "text-to-audio": ([*text, BEGIN], [*audio, END]),
        "audio-to-text": ([BEGIN, *audio, END], [*text, EOS]),
    }[name]


@pytest.fixture(params=COLLATORS)
def name(request):
    return request.param


def test_prompt_and_target(name):
    for example in rows([3, 1, 0]):
        assert (COLLATORS[name].prompt(example), COLLATORS[name].target(example)) == parts(name, example)


def test_a_batch_is_padded_on_the_right_and_only_targets_count(name):
    examples = rows([3, 7, 1])
    batch = COLLATORS[name](examples)
    for number, example in enumerate(examples):
        prompt, target = parts(name, example)
        length = batch["attention_mask"][number].sum()
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert batch["input_ids"][number, :length].tolist() == prompt + target
        assert batch["labels"][number, :length].tolist() == [-100] * len(prompt) + target
        assert (batch["labels"][number, length:] == -100).all()


def test_the_prompt_can_be_learnt_too():
    collator = TextToAudioCollator(VOCABULARY, TOKENIZER, loss_on_prompt=True)
    batch = collator(rows([3, 7]))
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(2, 40), st.sampled_from(list(COLLATORS)))
def test_packing_loses_nothing(lengths, num_ids, name):
    examples = rows(lengths)
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    packed = COLLATORS[name].pack(columns, num_ids)
    assert {len(block) for blocks in packed.values() for block in blocks} == {num_ids}
    ids, labels, positions = (sum(packed[key], []) for key in ("input_ids", "labels", "position_ids"))
    sequences = [sum(parts(name, example), []) for example in examples]
    length = sum(map(len, sequences))
    assert ids[:length] == sum(sequences, []) and set(ids[length:]) <= {END}
    assert length <= len(ids) < length + num_ids
    assert positions[:length] == [position for sequence in sequences for position in range(len(sequence))]
    counted = [parts(name, example) for example in examples]
    wanted = [label for prompt, target in counted for label in [-100] * len(prompt) + target]
    wanted += [-100] * (len(ids) - length)
    for start in range(0, len(ids), num_ids):
        wanted[start] = -100
    assert labels == wanted


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_in_one_block_do_not_see_each_other(name, attention):
    examples = rows([3, 7, 5, 2])
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    lengths = [len(prompt) + len(target) for prompt, target in (parts(name, example) for example in examples)]
    model = small_llama(VOCABULARY.size, attn_implementation=attention)
    blocks = COLLATORS[name].pack(columns, sum(lengths) + 3)
    packed = model(
        **{key: torch.tensor(block) for key, block in blocks.items() if key != "labels"}, use_cache=False
    ).logits[0]
    for example, logits in zip(examples, packed[: sum(lengths)].split(lengths)):
        alone = model(COLLATORS[name]([example])["input_ids"]).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_block_is_that_of_its_rows():
    collator = TextToAudioCollator(VOCABULARY, TOKENIZER, loss_on_prompt=True)
    examples = rows([3, 7, 5])
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    model = small_llama(VOCABULARY.size)
    blocks = collator.pack(columns, 200)
    packed = model(**{key: torch.tensor(block) for key, block in blocks.items()}, use_cache=False).loss
    padded = model(**collator(examples)).loss
    torch.testing.assert_close(packed, padded)


@pytest.mark.parametrize("packed", [False, True])
def test_trainer_learns_a_data_set(name, packed, tmp_path):
    examples = Dataset.from_list(rows([6, 3, 5, 4]))
    collator = COLLATORS[name]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=30,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    if packed:
        examples = examples.map(
            collator.pack, batched=True, remove_columns=examples.column_names, fn_kwargs={"num_ids": 24}
        )
        collator = default_data_collator
    trainer = Trainer(small_llama(VOCABULARY.size), arguments, train_dataset=examples, data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_codes_of_the_only_codebook_may_be_flat():
    vocabulary = AudioVocabulary(0, (10,))
    flat, nested = ({"audio_codes": codes} for codes in ([1, 2, 3], [[1, 2, 3]]))
    assert AudioCollator(vocabulary)([flat])["input_ids"].tolist() == [[0, 3, 4, 5, 1]]
    assert AudioCollator(vocabulary)([nested])["input_ids"].tolist() == [[0, 3, 4, 5, 1]]


def test_wrong_rows_and_tokenizers():
    with pytest.raises(ValueError, match="a row has no audio_codes: it has text"):
        COLLATORS["audio"]([{"text": "a"}])
    with pytest.raises(ValueError, match="a row has no text"):
        COLLATORS["text-to-audio"]([{"audio_codes": [[1], [2]], "text": None}])
    with pytest.raises(ValueError, match="range from 20 to 20"):
        COLLATORS["audio"]([{"audio_codes": [[1], [20]]}])
    with pytest.raises(ValueError, match="num_ids is 1"):
        COLLATORS["audio"].pack({"audio_codes": [[[1], [2]]]}, 1)
    for collator in (TextToAudioCollator, AudioToTextCollator):
        with pytest.raises(ValueError, match="audio begins at 5"):
            collator(AudioVocabulary(5, (10,)), TOKENIZER)
    endless = text_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        AudioToTextCollator(VOCABULARY, endless)
