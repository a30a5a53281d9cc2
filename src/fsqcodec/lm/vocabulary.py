"""Where the codes of a codec lie among the ids of a language model.

The ids, in this order:

    0 ... first_id - 1      the text tokenizer's, left as they are
    first_id                begin of audio
    first_id + 1            end of audio
    first_id + 2 ...        audio, one range of ids after the other

Audio is a frame after the other, and in each frame one id of each range in their order. With `view="codes"` a range is
a codebook. With `view="digits"` it is an FSQ digit, in the order of `fsqcodec.models.quantization`: 6 small ids for a
frame of 250,047 codes, for models that can't afford so large a softmax.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..atomic import atomic_path
from ..codecs import Codec
from ..models.pretrained import PreTrainedCodec
from ..models.quantization import digits_to_indices, indices_to_digits
from ..packing import token_digest

VOCABULARY_NAME = "audio_vocabulary.json"
VIEWS = ("codes", "digits")


@dataclass(frozen=True)
class AudioVocabulary:
    """Codes of a codec <-> ids of a language model. `for_codec` makes one; it is saved beside the language model.

    Args:
        first_id: ids of the text tokenizer, which come before; 0 for a model of audio alone.
        codebook_sizes: codes of each of the codec's codebooks.
        quantization_levels: levels of each FSQ digit, the same in every codebook; `None` for a codec without FSQ.
        view: `"codes"`, an id for each code, or `"digits"`, an id for each FSQ digit of it.
        codec: the codec's name.
        token_digest: what tells its tokens from another codec's; `None` is not compared.

    Raises `ValueError` for fields that contradict each other.
    """

    first_id: int
    codebook_sizes: tuple[int, ...]
    quantization_levels: tuple[int, ...] | None = None
    view: str = "codes"
    codec: str | None = None
    token_digest: str | None = None

    def __post_init__(self):
        for name in ("codebook_sizes", "quantization_levels"):
            numbers = getattr(self, name)
            if numbers is not None:
                object.__setattr__(self, name, tuple(numbers))
                if not numbers or min(numbers) < 1:
                    raise ValueError(f"{name} is {tuple(numbers)}: at least one number is wanted, none below 1")
        if self.first_id < 0:
            raise ValueError(f"first_id is {self.first_id}: the number of ids before the audio's is wanted")
        if self.view not in VIEWS:
            raise ValueError(f"view is {self.view!r}: {' or '.join(map(repr, VIEWS))} is wanted")
        if self.quantization_levels is None:
            if self.view == "digits":
                raise ValueError("view is 'digits', quantization_levels is None: only codes of FSQ have digits")
        elif {math.prod(self.quantization_levels)} != set(self.codebook_sizes):
            raise ValueError(
                f"quantization_levels {self.quantization_levels} make {math.prod(self.quantization_levels)} codes, "
                f"codebook_sizes is {self.codebook_sizes}: they must be equal in every codebook"
            )

    @classmethod
    def for_codec(
        cls, codec: Codec, tokenizer: PreTrainedTokenizerBase | None = None, view: str = "codes"
    ) -> "AudioVocabulary":
        """The ids of `codec` (of `fsqcodec.codecs.load_codec`) behind those of `tokenizer`, or alone.

        The tokenizer is not changed. Tokens that are added to it later would take the audio's ids: add them before.
        Raises `ValueError` for a classical codec, which has no tokens, and for digits of a codec without FSQ.
        """
        if not codec.codebook_sizes:
            raise ValueError(f"{codec.name} is a classical codec: it has no tokens for a language model")
        first_id = 0 if tokenizer is None else len(tokenizer)
        return cls(first_id, codec.codebook_sizes, codec.quantization_levels, view, codec.name, _token_digest(codec))

    @property
    def begin_of_audio_id(self) -> int:
        return self.first_id

    @property
    def end_of_audio_id(self) -> int:
        return self.first_id + 1

    @property
    def range_sizes(self) -> tuple[int, ...]:
        """Ids of each range: codebooks, or the digits of each codebook in turn."""
        if self.view == "codes":
            return self.codebook_sizes
        return self.quantization_levels * len(self.codebook_sizes)

    @property
    def range_starts(self) -> tuple[int, ...]:
        """The first id of each range."""
        return tuple(accumulate(self.range_sizes[:-1], initial=self.first_id + 2))

    @property
    def num_ids_per_frame(self) -> int:
        return len(self.range_sizes)

    @property
    def size(self) -> int:
        """Ids in all, text included."""
        return self.first_id + 2 + sum(self.range_sizes)

    def codes_to_ids(self, audio_codes) -> torch.Tensor:
        """Codes `(num_codebooks, num_frames)`, or `(num_frames,)` of the only codebook, to ids
        `(num_frames * num_ids_per_frame,)`, int64, without begin and end. Raises as `codes_to_rows`."""
        return self.codes_to_rows(audio_codes).T.flatten()

    def codes_to_rows(self, audio_codes) -> torch.Tensor:
        """As `codes_to_ids`, not flattened: ids `(num_ids_per_frame, num_frames)`, a row for each range.

        Takes tensors, arrays and lists. Raises `ValueError` for another shape, no integers, and codes out of range.
        """
        codes = _integers(audio_codes, "audio_codes")
        codes = codes[None] if codes.ndim == 1 else codes
        if codes.ndim != 2 or len(codes) != len(self.codebook_sizes):
            raise ValueError(
                f"audio_codes have shape {tuple(codes.shape)}: ({len(self.codebook_sizes)}, num_frames) is wanted, one "
                "clip"
            )
        for number, (stream, size) in enumerate(zip(codes, self.codebook_sizes)):
            if stream.numel() and not 0 <= stream.min() <= stream.max() < size:
                raise ValueError(
                    f"audio_codes of codebook {number} range from {stream.min()} to {stream.max()}: this codec's are 0 "
                    f"to {size - 1}"
                )
        if self.view == "digits":
            codes = indices_to_digits(codes, self.quantization_levels).transpose(1, 2).flatten(0, 1)
        return codes + self._starts_column()

    def ids_to_codes(self, ids) -> torch.Tensor:
        """Ids of `codes_to_ids` or of `codes_to_rows` back to codes `(num_codebooks, num_frames)`, int64.

        Raises `ValueError` for another shape, a frame that is not whole, and an id outside the range of its place.
        """
        rows = _integers(ids, "ids")
        if rows.ndim == 1:
            if len(rows) % self.num_ids_per_frame:
                raise ValueError(f"{len(rows)} ids are no whole number of frames of {self.num_ids_per_frame} ids")
            rows = rows.reshape(-1, self.num_ids_per_frame).T
        if rows.ndim != 2 or len(rows) != self.num_ids_per_frame:
            raise ValueError(f"ids have shape {tuple(rows.shape)}: ({self.num_ids_per_frame}, num_frames) is wanted")
        symbols = rows - self._starts_column()
        wrong = (symbols < 0) | (symbols >= torch.tensor(self.range_sizes)[:, None])
        if wrong.any():
            frame, place = wrong.T.nonzero()[0].tolist()
            start, size = self.range_starts[place], self.range_sizes[place]
            raise ValueError(
                f"id {rows[place, frame]} of frame {frame} is outside {start} to {start + size - 1}, the ids of "
                f"{'codebook' if self.view == 'codes' else 'digit'} {place}: generate with AudioLogitsProcessor"
            )
        if self.view == "digits":
            digits = symbols.unflatten(0, (len(self.codebook_sizes), -1)).transpose(1, 2)
            return digits_to_indices(digits, self.quantization_levels)
        return symbols

    def find_audio(self, ids) -> list[torch.Tensor]:
        """The codes `(num_codebooks, num_frames)` of each span of audio in one sequence of ids `(num_ids,)`, as a
        language model generates it: between begin and end, or to the end of the sequence, where a last frame that is
        not whole is left out. Raises `ValueError` as `ids_to_codes`."""
        ids = _integers(ids, "ids")
        if ids.ndim != 1:
            raise ValueError(f"ids have shape {tuple(ids.shape)}: (num_ids,) is wanted, one sequence")
        ends = (ids == self.end_of_audio_id).nonzero().flatten().tolist() + [len(ids)]
        spans = []
        for begin in (ids == self.begin_of_audio_id).nonzero().flatten().tolist():
            span = ids[begin + 1 : next(end for end in ends if end > begin)]
            spans.append(self.ids_to_codes(span[: len(span) - len(span) % self.num_ids_per_frame]))
        return spans

    def check_codec(self, codec: Codec):
        """Raise `ValueError` if the tokens of `codec` are not this vocabulary's."""
        if tuple(codec.codebook_sizes) != self.codebook_sizes:
            raise ValueError(
                f"{codec.name} has codebooks of {tuple(codec.codebook_sizes)} codes, the vocabulary "
                f"{self.codebook_sizes}: another codec's"
            )
        if self.token_digest is not None and _token_digest(codec) != self.token_digest:
            raise ValueError(
                f"{codec.name} has the token digest {_token_digest(codec)}, the vocabulary is of {self.codec} with "
                f"{self.token_digest}: its tokens mean something else"
            )

    def save_pretrained(self, folder: str | os.PathLike):
        """Write `audio_vocabulary.json` to `folder`, beside the language model."""
        with atomic_path(Path(folder) / VOCABULARY_NAME) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "AudioVocabulary":
        """Read it from a folder or Hub id. Raises `OSError` where it is not, `ValueError` for a damaged file."""
        path = cached_file(os.fspath(folder), VOCABULARY_NAME)
        try:
            facts = json.loads(Path(path).read_text())
            if not isinstance(facts, dict) or facts.keys() != {field.name for field in fields(cls)}:
                raise ValueError(f"the fields of an {cls.__name__} are wanted")
            return cls(**facts)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged or another file: {error}") from error

    def _starts_column(self) -> torch.Tensor:
        return torch.tensor(self.range_starts)[:, None]


def _integers(numbers, name: str) -> torch.Tensor:
    """Tensor, array or list as int64 on the CPU; nothing at all counts as integers."""
    tensor = torch.as_tensor(numbers).cpu()
    if tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise ValueError(f"{name} are {tensor.dtype}: integers are wanted")
    return tensor.to(torch.int64)


def _token_digest(codec: Codec) -> str:
    """Ours may change their decoder, which leaves the tokens what they are; of others all weights count."""
    return token_digest(codec.model) if isinstance(codec.model, PreTrainedCodec) else codec.digest
