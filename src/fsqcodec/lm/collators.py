"""Rows of tokenized audio, and of text, to batches that `transformers.Trainer` trains on.

A row is a dict with `audio_codes`, `(num_codebooks, num_frames)` or `(num_frames,)` of the only codebook, and `text`
where text is asked for. It becomes a prompt, which is given, and a target, which is to be learnt:

    AudioCollator                begin                    audio end
    TextToAudioCollator          text begin               audio end
    AudioToTextCollator          begin audio end          text end-of-text

`Trainer` must be told to leave the rows their columns: `TrainingArguments(remove_unused_columns=False)`.
"""

from abc import ABC, abstractmethod

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from .vocabulary import AudioVocabulary

IGNORED = -100  # what the losses of Transformers leave out


class Collator(ABC):
    """A list of rows to `input_ids`, `attention_mask` and `labels`, int64 `(batch, num_ids)`, padded on the right.

    Args:
        vocabulary: of the codec that made the codes.
        loss_on_prompt: whether the prompt is to be learnt too. Labels of padding are always left out.
    """

    def __init__(self, vocabulary: AudioVocabulary, loss_on_prompt: bool = False):
        self.vocabulary, self.loss_on_prompt = vocabulary, loss_on_prompt

    @abstractmethod
    def prompt(self, row: dict) -> list[int]:
        """The ids that a language model trained on such rows is given to generate from; of `row` it needs what comes
        before the target."""

    @abstractmethod
    def target(self, row: dict) -> list[int]:
        """The ids that follow."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        sequences = [self._ids_and_labels(row) for row in rows]
        ids, labels = ([torch.tensor(numbers) for numbers in column] for column in zip(*sequences))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.vocabulary.end_of_audio_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def pack(self, columns: dict[str, list], num_ids: int) -> dict[str, list[list[int]]]:
        """Rows one behind the other, cut into blocks of exactly `num_ids`: a function of `datasets.map`,

            rows.map(collator.pack, batched=True, remove_columns=rows.column_names, fn_kwargs={"num_ids": 2048})

        What is cut goes on in the next block; the last block of a call is padded. `position_ids` start from 0 in each
        row, by which Transformers keeps the attention of rows apart where no `attention_mask` is given and no cache is
        in use, as in `Trainer`: batch the blocks with `transformers.default_data_collator`. The first id of each piece
        has no label, as nothing comes before it. Raises `ValueError` for blocks of less than 2 ids.
        """
        if num_ids < 2:
            raise ValueError(f"num_ids is {num_ids}: a block needs 2 or more")
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        packed = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            ids, labels = self._ids_and_labels(row)
            packed["input_ids"] += ids
            packed["labels"] += [IGNORED] + labels[1:]
            packed["position_ids"] += range(len(ids))
        num_padding = -len(packed["input_ids"]) % num_ids
        packed["input_ids"] += [self.vocabulary.end_of_audio_id] * num_padding
        packed["labels"] += [IGNORED] * num_padding
        packed["position_ids"] += range(num_padding)
        for start in range(0, len(packed["labels"]), num_ids):
            packed["labels"][start] = IGNORED
        return {
            name: [numbers[start : start + num_ids] for start in range(0, len(numbers), num_ids)]
            for name, numbers in packed.items()
        }

    def _ids_and_labels(self, row: dict) -> tuple[list[int], list[int]]:
        prompt, target = self.prompt(row), self.target(row)
        return prompt + target, (prompt if self.loss_on_prompt else [IGNORED] * len(prompt)) + target

    def _audio_and_end(self, row: dict) -> list[int]:
        return [*self.vocabulary.codes_to_ids(_column(row, "audio_codes")).tolist(), self.vocabulary.end_of_audio_id]


class AudioCollator(Collator):
    """Audio alone, for a model that continues it."""

    def prompt(self, row: dict) -> list[int]:
        return [self.vocabulary.begin_of_audio_id]

    def target(self, row: dict) -> list[int]:
        return self._audio_and_end(row)


class TextToAudioCollator(Collator):
    """Text, then its audio: speech synthesis.

    Args:
        tokenizer: the text tokenizer that `vocabulary` lies behind. It begins the text as it is set up to.

    Raises `ValueError` for a tokenizer whose ids reach into the audio's.
    """

    def __init__(self, vocabulary: AudioVocabulary, tokenizer: PreTrainedTokenizerBase, loss_on_prompt: bool = False):
        super().__init__(vocabulary, loss_on_prompt)
        self.tokenizer = _checked(tokenizer, vocabulary)

    def prompt(self, row: dict) -> list[int]:
        return [*self.tokenizer(_column(row, "text")).input_ids, self.vocabulary.begin_of_audio_id]

    def target(self, row: dict) -> list[int]:
        return self._audio_and_end(row)


class AudioToTextCollator(Collator):
    """Audio, then its text: speech recognition.

    Args:
        tokenizer: the text tokenizer that `vocabulary` lies behind, with an end-of-text token.

    Raises `ValueError` for a tokenizer whose ids reach into the audio's, or without an end.
    """

    def __init__(self, vocabulary: AudioVocabulary, tokenizer: PreTrainedTokenizerBase, loss_on_prompt: bool = False):
        super().__init__(vocabulary, loss_on_prompt)
        self.tokenizer = _checked(tokenizer, vocabulary)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token: text after audio needs one to end with")

    def prompt(self, row: dict) -> list[int]:
        return [self.vocabulary.begin_of_audio_id, *self._audio_and_end(row)]

    def target(self, row: dict) -> list[int]:
        text = self.tokenizer(_column(row, "text"), add_special_tokens=False).input_ids
        return [*text, self.tokenizer.eos_token_id]


def _checked(tokenizer: PreTrainedTokenizerBase, vocabulary: AudioVocabulary) -> PreTrainedTokenizerBase:
    if len(tokenizer) > vocabulary.first_id:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} ids, audio begins at {vocabulary.first_id}: make the vocabulary for "
            "this tokenizer, after tokens are added to it"
        )
    return tokenizer


def _column(row: dict, name: str):
    if row.get(name) is None:
        raise ValueError(f"a row has no {name}: it has {', '.join(row)}")
    return row[name]
