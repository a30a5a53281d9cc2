"""Random crops of clips, in an order that a run can take up again anywhere; and who is kept out of training."""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch

from ..audio import resample
from ..data import Clip, find_clips
from .recipe import Source

FULL_SCALE = 2**15  # of the int16 that clips are held in
NORMAL_LEVEL = 0.75  # what the loudest samples of a clip are brought to, of full scale
LOUDEST_SHARE = 0.001  # which samples these are
ORDER_STREAM, BLOCK_STREAM = 0, 1  # of random numbers: one for each epoch of a source, one for each block of crops
BLOCK_CROPS = 1024  # whose random numbers are drawn together
NUM_KEPT_BLOCKS = 4
NUM_BATCHES_AHEAD = 4
NUM_THREADS = max(1, min(8, (os.cpu_count() or 1) // 2))  # that read clips and make crops

Item, Made = TypeVar("Item"), TypeVar("Made")


@dataclass(frozen=True)
class WeightedClips:
    """Clips that are mixed with others.

    Args:
        clips: of `fsqcodec.data.find_clips`.
        weight: how likely a crop is one of these clips, relative to the weights of the other sources, however long they
            are: of sources with the weights 3 and 1, three crops of four are from the first.
        speech: somebody speaks in these clips. Without, what they call speakers is not compared with those of an
            evaluation.
    """

    clips: Sequence[Clip]
    weight: float = 1.0
    speech: bool = True

    def without(self, excluded: Sequence[Clip]) -> "WeightedClips":
        """Leave out clips, and of speech their speakers; see the function `without`."""
        return replace(self, clips=without(self.clips, excluded, speech=self.speech))


@dataclass(frozen=True)
class Draws:
    """What is random about some crops, arrays of one entry a crop.

    Args:
        clips: int64, the number of the clip.
        starts: int64, the first sample in the clip.
        num_played: int64, samples of the clip from there on.
        played_rates: int64, Hz, the rate that these samples are taken to have.
        num_samples: int64, samples of audio that become of them at the crops' rate.
        gains: float32, negative for crops that are turned upside down.
    """

    clips: np.ndarray
    starts: np.ndarray
    num_played: np.ndarray
    played_rates: np.ndarray
    num_samples: np.ndarray
    gains: np.ndarray


class Crops:
    """An endless stream of random crops: `crops[k]` depends on the clips, the arguments and k alone, for any k from 0.

    A run that stopped is therefore resumed by its position, whatever was read before, in any number of threads and
    processes: see `crop_batches`.

    Crops are taken from the sources in proportion to their weights: of the first n crops, a source has its share of n,
    give or take the number of sources and what is left of a block of 1024, in which the order is random.

    Every clip is cut into pieces of about `crop_seconds`, at least one, and an epoch of a source goes through the
    pieces of all its clips once, in an order of its own. So within a source a clip is heard in proportion to its
    duration and in all its parts; where within its piece a crop begins is random.

    Clips are mixed to mono, or to the codec's two channels, resampled to `sampling_rate` and held as 16 bits (files of
    16 bits at this rate lose nothing). A clip is read as a whole: cut recordings of hours before.

    Args:
        sources: the clips and how they are mixed. The headers of all are read at once.
        sampling_rate: of the crops, Hz.
        crop_seconds: their length; shorter clips are padded with zeros on the right.
        seed: from 0.
        normalize_level: bring each clip to one level, as `level_normalized` does.
        gain_db: the lowest and highest gain, drawn uniformly for each crop; what exceeds full scale is clipped.
        flip_polarity: turn every other crop upside down, at random.
        speed: the lowest and highest tempo, drawn uniformly for each crop; resampling changes the pitch with it.
        num_channels: of the crops; a mono clip becomes two equal channels.
        cache_bytes: of decoded clips that a process keeps, two bytes a sample; further clips are read each time.

    Raises:
        ValueError: no clips, a clip in two sources, a weight, length or speed that is not positive, a range the wrong
            way round, a negative seed.
        FileNotFoundError, ValueError: a clip that can't be read, as `fsqcodec.audio.read_audio`.
    """

    def __init__(
        self,
        sources: Iterable[WeightedClips],
        sampling_rate: int,
        crop_seconds: float,
        seed: int,
        *,
        normalize_level: bool = False,
        gain_db: tuple[float, float] = (0.0, 0.0),
        flip_polarity: bool = False,
        speed: tuple[float, float] = (1.0, 1.0),
        num_channels: int = 1,
        cache_bytes: int = 2**30,
    ):
        self.sources = list(sources)
        self.clips = [clip for source in self.sources for clip in source.clips]
        self.sampling_rate = sampling_rate
        self.num_samples = round(crop_seconds * sampling_rate)
        self.seed = seed
        self.normalize_level = normalize_level
        self.gain_db = gain_db
        self.flip_polarity = flip_polarity
        self.speed = speed
        self.num_channels = num_channels
        self._check()
        seconds = np.array([clip.seconds for clip in self.clips])
        self.clip_lengths = np.maximum(1, np.rint(seconds * sampling_rate).astype(np.int64))  # samples
        self._num_pieces = np.maximum(1, np.rint(seconds / crop_seconds).astype(np.int64))
        self._clip_of_piece = np.repeat(np.arange(len(self.clips)), self._num_pieces)
        self._piece_in_clip = np.arange(len(self)) - np.repeat(
            np.cumsum(self._num_pieces) - self._num_pieces, self._num_pieces
        )
        clip_ends = np.cumsum([len(source.clips) for source in self.sources])
        self._source_ends = np.cumsum(self._num_pieces)[clip_ends - 1]  # in the pieces
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of each source: the epoch asked for last, its order
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._held: dict[int, np.ndarray] = {}
        self._free_bytes = cache_bytes
        self._lock = threading.Lock()  # of what is kept

    def __len__(self) -> int:
        """Pieces of all clips."""
        return len(self._clip_of_piece)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        """The k-th crop of the stream: float32 `(num_samples,)` in [-1, 1], of several channels `(num_channels,
        num_samples)`, and how many of its samples are audio."""
        batch = self.batch([k])
        crop = batch["input_values"][0]
        return crop[0] if self.num_channels == 1 else crop, int(batch["padding_mask"].sum())

    def batch(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """The crops at some positions of the stream as `CodecModel` takes them: `input_values` float32 `(batch,
        num_channels, num_samples)` and `padding_mask` int64 `(batch, num_samples)`, 1 for audio."""
        draws = self.draw(positions)
        input_values = np.zeros((len(draws.clips), self.num_channels, self.num_samples), dtype=np.float32)
        for row, clip, start, num_played, rate, length, gain in zip(
            input_values,
            draws.clips,
            draws.starts,
            draws.num_played,
            draws.played_rates,
            draws.num_samples,
            draws.gains,
        ):
            played = self._read(int(clip))[..., start : start + num_played].astype(np.float32) / FULL_SCALE
            crop = resample(played, int(rate), self.sampling_rate)[..., :length]
            row[:, : crop.shape[-1]] = np.clip(gain * crop, -1, 1)
        padding_mask = (np.arange(self.num_samples) < draws.num_samples[:, None]).astype(np.int64)
        return {"input_values": torch.from_numpy(input_values), "padding_mask": torch.from_numpy(padding_mask)}

    def batches(self, shares: Iterable[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """`batch` of each share, made ahead in threads; ready to be sent to a GPU if there is one."""
        return made_ahead(self._pinned_batch if torch.cuda.is_available() else self.batch, shares, NUM_BATCHES_AHEAD)

    def draw(self, positions: Sequence[int]) -> Draws:
        """What is random about the crops at some positions of the stream."""
        blocks, places = np.divmod(np.asarray(positions, dtype=np.int64), BLOCK_CROPS)
        pieces, uniforms = np.empty(len(places), dtype=np.int64), np.empty((len(places), 4))
        for block in np.unique(blocks).tolist():
            chosen = blocks == block
            block_pieces, block_uniforms = self._block(block)
            pieces[chosen], uniforms[chosen] = block_pieces[places[chosen]], block_uniforms[places[chosen]]
        speed, place, gain, polarity = uniforms.T
        clips = self._clip_of_piece[pieces]
        played_rates = np.rint(self.sampling_rate * _between(self.speed, speed)).astype(np.int64)
        num_played = -(-self.num_samples * played_rates // self.sampling_rate)  # rounded up
        last_starts = np.maximum(self.clip_lengths[clips] - num_played, 0)
        place = (self._piece_in_clip[pieces] + place) / self._num_pieces[clips]
        starts = np.minimum((place * (last_starts + 1)).astype(np.int64), last_starts)
        num_played = np.minimum(num_played, self.clip_lengths[clips])
        num_samples = (2 * num_played * self.sampling_rate + played_rates) // (2 * played_rates)  # rounded
        gains = 10 ** (_between(self.gain_db, gain) / 20)
        if self.flip_polarity:
            gains = np.where(polarity < 0.5, -gains, gains)
        return Draws(
            clips,
            starts,
            num_played,
            played_rates,
            np.clip(num_samples, 1, self.num_samples),
            gains.astype(np.float32),
        )

    def read_clip(self, number: int) -> np.ndarray:
        """A whole clip, int16 `(num_samples,)` or `(num_channels, num_samples)`, as long as its header says."""
        audio = resample(*self.clips[number].read("mix", self.num_channels), self.sampling_rate)
        if self.normalize_level:
            audio = level_normalized(audio)
        clip = np.zeros((*audio.shape[:-1], self.clip_lengths[number]), dtype=np.int16)
        audio = audio[..., : clip.shape[-1]]  # the resampler rounds up
        clip[..., : audio.shape[-1]] = np.clip(np.rint(audio * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
        return clip

    def _pinned_batch(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        return {name: tensor.pin_memory() for name, tensor in self.batch(positions).items()}

    def _check(self):
        if not self.sources or not all(source.clips for source in self.sources):
            raise ValueError("there are no clips to train on: name sources that hold some, or exclude fewer")
        of_other_sources: set = set()
        for source in self.sources:
            for clip in source.clips:
                if _identity(clip) in of_other_sources:
                    raise ValueError(f"expected each clip in one source, got {clip.name} in two: leave it out of one")
            of_other_sources.update(map(_identity, source.clips))
            if not 0 < source.weight < math.inf:
                raise ValueError(f"expected weights above 0, got {source.weight}: leave out the source instead")
        if self.num_samples < 1 or self.seed < 0:
            raise ValueError(
                f"crops have {self.num_samples} samples and the seed is {self.seed}: crop_seconds must make at least "
                "one sample, and the seed be 0 or more"
            )
        for name, (low, high) in (("gain_db", self.gain_db), ("speed", self.speed)):
            if not low <= high or name == "speed" and low <= 0:
                raise ValueError(f"{name} is {(low, high)}: the lowest comes first, and a speed is above 0")

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a block of crops: their pieces `(BLOCK_CROPS,)` and uniform random numbers `(BLOCK_CROPS, 4)`."""
        with self._lock:
            if block not in self._blocks:
                self._blocks[block] = self._drawn_block(block)
                if len(self._blocks) > NUM_KEPT_BLOCKS:
                    del self._blocks[next(iter(self._blocks))]
            return self._blocks[block]

    def _drawn_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng((self.seed, BLOCK_STREAM, block))
        weights = [source.weight for source in self.sources]
        firsts, ends = (split_by_weight(crops, weights) for crops in (block * BLOCK_CROPS, (block + 1) * BLOCK_CROPS))
        counts = np.subtract(ends, firsts)
        sources = generator.permutation(np.repeat(np.arange(len(counts)), counts))
        pieces = np.empty(BLOCK_CROPS, dtype=np.int64)
        for source, (first, count) in enumerate(zip(firsts, counts.tolist())):
            pieces[sources == source] = self._pieces(source, first, count)
        return pieces, generator.random((BLOCK_CROPS, 4))

    def _pieces(self, source: int, first: int, count: int) -> np.ndarray:
        """The `count` pieces of a source from its `first` crop on."""
        first_piece = self._source_ends[source - 1] if source else 0
        num_pieces = self._source_ends[source] - first_piece
        pieces = [np.empty(0, dtype=np.int64)]
        while count > 0:
            epoch, position = divmod(first, int(num_pieces))
            if self._orders.get(source, (None,))[0] != epoch:
                generator = np.random.default_rng((self.seed, ORDER_STREAM, source, epoch))
                self._orders[source] = epoch, first_piece + generator.permutation(num_pieces)
            pieces.append(self._orders[source][1][position : position + count])
            first, count = first + len(pieces[-1]), count - len(pieces[-1])
        return np.concatenate(pieces)

    def _read(self, number: int) -> np.ndarray:
        if number in self._held:
            return self._held[number]
        clip = self.read_clip(number)
        with self._lock:
            if number not in self._held and clip.nbytes <= self._free_bytes:
                self._held[number] = clip
                self._free_bytes -= clip.nbytes
        return clip


def level_normalized(audio: np.ndarray) -> np.ndarray:
    """Audio `(num_samples,)` or `(num_channels, num_samples)` with the mean of its loudest 0.1 % of absolute samples
    brought to 0.75, then clipped to [-1, 1], as https://github.com/zhai-lw/L3AC trains (branch `train`); digital
    silence as it is."""
    num_loudest = math.ceil(LOUDEST_SHARE * audio.size)
    level = np.partition(np.abs(audio), -num_loudest, axis=None)[-num_loudest:].mean(dtype=np.float64)
    return np.clip(audio * np.float32(NORMAL_LEVEL / level), -1, 1) if level else audio


def crop_batches(
    crops: Crops,
    batch_size: int,
    num_batches: int,
    *,
    first_batch: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches `first_batch` to `num_batches - 1` of the stream, each as `batch` makes it: this process's share of them.

    Batch i holds `crops[i * batch_size]` to `crops[(i + 1) * batch_size - 1]`, dealt out to the processes in turn. What
    starts at a later batch goes on exactly as one that was not interrupted, and the crops of a batch are the same on
    any number of processes. Torch's random numbers are left alone.

    Args:
        batch_size: crops of a batch, all processes together.

    Raises:
        ValueError: a batch that can't be dealt out evenly.
    """
    if batch_size < 1 or batch_size % num_processes:
        raise ValueError(
            f"a batch of {batch_size} crops can't be dealt out to {num_processes} processes evenly: choose a multiple"
        )
    return crops.batches(
        range(batch * batch_size + process_index, (batch + 1) * batch_size, num_processes)
        for batch in range(first_batch, num_batches)
    )


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item], num_ahead: int) -> Iterator[Made]:
    """`make` of each item, in their order; the next `num_ahead` are made in threads meanwhile.

    What `make` raises is raised where its result is due. When the iterator is closed, its threads have ended.
    """
    made: deque[Future] = deque()
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="made_ahead") as threads:
        try:
            for item in items:
                made.append(threads.submit(make, item))
                if len(made) > num_ahead:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            for unfinished in made:
                unfinished.cancel()


def split_by_weight(number: int, weights: Sequence[float]) -> list[int]:
    """Split a number into one count for each weight, in proportion. As the number grows no count gets smaller, and each
    is off its share by less than the number of weights."""
    counts, left = [], number
    for place, weight in enumerate(weights):
        counts.append(int(left * Fraction(weight) / sum(map(Fraction, weights[place:]))))
        left -= counts[-1]
    return counts


def training_sources(train: Iterable[str | Source], evaluation: Iterable[str]) -> list[WeightedClips]:
    """The clips of a recipe's `data.train`, without those of `data.evaluation` and their speakers. All paths without a
    weight are one source. Raises as `find_clips` and `without` do."""
    train, evaluation_clips = list(train), find_clips(evaluation)
    plain = [each for each in train if isinstance(each, str)]
    sources = [WeightedClips(find_clips(plain))] if plain else []
    sources += [
        WeightedClips(find_clips([each.path]), each.weight, each.speech) for each in train if isinstance(each, Source)
    ]
    return [source.without(evaluation_clips) for source in sources]


def hold_out(
    sources: Sequence[WeightedClips], num_speakers: int, num_clips: int, seed: int
) -> tuple[list[WeightedClips], list[Clip]]:
    """Cut off a validation set: (the sources without it, at most `num_clips` of clips).

    They are of `num_speakers` speakers of the first source of speech, who are left out of all sources; where its
    speakers are not known, clips are drawn as `hold_out_clips` does. With 0 of either nothing is held out.

    Raises `ValueError` as `hold_out_speakers` and `without` do.
    """
    clips = next((source.clips for source in sources if source.speech), [])
    held_out = validation = []
    if num_speakers and num_clips:
        if any(clip.speakers for clip in clips):
            _, held_out = hold_out_speakers(clips, num_speakers, seed)
            validation = held_out[:: max(1, len(held_out) // num_clips)][:num_clips]
        else:
            _, held_out = hold_out_clips(clips, num_clips, seed)
            validation = held_out
    return [source.without(held_out) for source in sources], validation


def _between(low_and_high: tuple[float, float], uniform: np.ndarray) -> np.ndarray:
    low, high = low_and_high
    return low + (high - low) * uniform


def without(clips: Iterable[Clip], evaluation_clips: Iterable[Clip], *, speech: bool = True) -> list[Clip]:
    """The clips that are not among the evaluation's, by file or name, and none of whose speakers speaks there; without
    `speech`, by file or name only.

    Raises `ValueError` where the evaluation has speakers, but one of these clips of speech does not tell its own.
    """
    evaluation_clips = list(evaluation_clips)
    identities = {_identity(clip) for clip in evaluation_clips}
    speakers = frozenset().union(*(clip.speakers for clip in evaluation_clips)) if speech else frozenset()
    left = [clip for clip in clips if not clip.speakers & speakers and _identity(clip) not in identities]
    if speakers:
        _check_speakers_are_known(left)
    return left


def hold_out_speakers(clips: Iterable[Clip], num_speakers: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Cut off a validation set: (the clips to train on, all clips of `num_speakers` speakers drawn by `seed`).

    Speakers who share a clip with others are not drawn. The draw depends on the speakers' names, not on the order of
    the clips. Raises `ValueError` where a clip does not tell its speaker, or no speaker would be left to train on.
    """
    clips = list(clips)
    _check_speakers_are_known(clips)
    everyone = frozenset().union(*(clip.speakers for clip in clips))
    speakers = sorted(everyone.difference(*(clip.speakers for clip in clips if len(clip.speakers) > 1)))
    if not 0 < num_speakers < len(everyone) or num_speakers > len(speakers):
        raise ValueError(
            f"{num_speakers} of {len(everyone)} speakers can't be held out: at least one, and one left to train on"
            + (f"; {len(speakers)} have clips of their own" if len(speakers) < len(everyone) else "")
        )
    held_out = set(np.random.default_rng(seed).choice(speakers, num_speakers, replace=False).tolist())
    return (
        [clip for clip in clips if not clip.speakers & held_out],
        [clip for clip in clips if clip.speakers & held_out],
    )


def hold_out_clips(clips: Iterable[Clip], num_clips: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Cut off a validation set where speakers are not known: (the clips to train on, at most `num_clips` and a tenth of
    all, drawn by `seed`). A speaker can be in both."""
    clips = list(clips)
    num_clips = min(num_clips, len(clips) // 10)
    held_out = set(np.random.default_rng(seed).choice(len(clips), num_clips, replace=False).tolist())
    return (
        [clip for number, clip in enumerate(clips) if number not in held_out],
        [clip for number, clip in enumerate(clips) if number in held_out],
    )


def corpora(clips: Iterable[Clip]) -> list[dict]:
    """What the clips are taken from, most first: `source` and `license` as the data tells them, or `None`, `num_clips`,
    `num_speakers` (known ones) and `hours` of each."""
    groups: dict[tuple, list[Clip]] = {}
    for clip in clips:
        groups.setdefault((clip.source, clip.license), []).append(clip)
    rows = [
        {
            "source": source,
            "license": license,
            "num_clips": len(group),
            "num_speakers": len(frozenset().union(*(clip.speakers for clip in group))),
            "hours": sum(clip.seconds for clip in group) / 3600,
        }
        for (source, license), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["hours"])


def _identity(clip: Clip):
    """The file, by whichever path it was found; the name of what lies in no file."""
    return clip.name if callable(clip.audio) else clip.audio.resolve()


def _check_speakers_are_known(clips: list[Clip]):
    unknown = [clip.name for clip in clips if not clip.speakers]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(clips)} clips tell no speaker, {unknown[0]} among them, so speakers can't be kept "
            "apart: name the clips in a manifest with a column speaker, or give a source without speech `speech: false`"
        )
