"""Random crops of clips, in an order that a run can take up again anywhere; and who is kept out of training."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..audio import resample
from ..data import Clip

FULL_SCALE = 2**15  # of the int16 that clips are held in
NORMAL_LEVEL = 0.75  # what the loudest samples of a clip are brought to, of full scale
LOUDEST_SHARE = 0.001  # which samples these are
ORDER_STREAM, CROP_STREAM = 0, 1  # of random numbers: one for each epoch, one for each crop


class Crops(Dataset):
    """An endless stream of random crops: `crops[k]` depends on the clips, the arguments and k alone, for any k from 0.

    A run that stopped is therefore resumed by its position, whatever was read before, by however many workers and
    processes: see `crop_batches`.

    Every clip is cut into pieces of about `crop_seconds`, at least one, and an epoch goes through the pieces of all
    clips once, in an order of its own. So a clip is heard in proportion to its duration and in all its parts; where
    within its piece a crop begins is random.

    Clips are mixed to mono, or to the codec's two channels, resampled to `sampling_rate` and held as 16 bits (files of
    16 bits at this rate lose nothing). A clip is read as a whole: cut recordings of hours before.

    Args:
        clips: of `fsqcodec.data.find_clips`. The headers of all are read at once.
        sampling_rate: of the crops, Hz.
        crop_seconds: their length; shorter clips are padded with zeros on the right.
        seed: from 0.
        normalize_level: bring each clip to one level, as `level_normalized` does.
        gain_db: the lowest and highest gain, drawn uniformly for each crop; what exceeds full scale is clipped.
        flip_polarity: turn every other crop upside down, at random.
        speed: the lowest and highest tempo, drawn uniformly for each crop; resampling changes the pitch with it.
        num_channels: of the crops; a mono clip becomes two equal channels.
        cache_bytes: of decoded clips that each process or worker keeps, two bytes a sample; further clips are read
            each time.

    Raises:
        ValueError: no clips, a length or speed that is not positive, a range the wrong way round, a negative seed.
        FileNotFoundError, ValueError: a clip that can't be read, as `fsqcodec.audio.read_audio`.
    """

    def __init__(
        self,
        clips: Iterable[Clip],
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
        self.clips = list(clips)
        self.sampling_rate = sampling_rate
        self.num_samples = round(crop_seconds * sampling_rate)
        self.seed = seed
        self.normalize_level = normalize_level
        self.gain_db = gain_db
        self.flip_polarity = flip_polarity
        self.speed = speed
        self.num_channels = num_channels
        self._check()
        self._num_pieces = np.array([max(1, round(clip.seconds / crop_seconds)) for clip in self.clips])
        self._first_pieces = np.cumsum(self._num_pieces) - self._num_pieces
        self._clip_numbers = np.repeat(np.arange(len(self.clips)), self._num_pieces)  # of the pieces of all clips
        self._epoch_and_order = None
        self._held: dict[int, np.ndarray] = {}
        self._free_bytes = cache_bytes

    def __len__(self) -> int:
        """Crops of one epoch."""
        return len(self._clip_numbers)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        """The k-th crop of the stream: float32 `(num_samples,)` in [-1, 1], of several channels `(num_channels,
        num_samples)`, and how many of its samples are audio."""
        epoch, position = divmod(k, len(self))
        piece = self._order(epoch)[position]
        number = int(self._clip_numbers[piece])
        clip = self._read(number)
        generator = np.random.default_rng((self.seed, CROP_STREAM, k))
        played_rate = round(self.sampling_rate * generator.uniform(*self.speed))
        num_played = math.ceil(self.num_samples * played_rate / self.sampling_rate)
        place = (piece - self._first_pieces[number] + generator.uniform()) / self._num_pieces[number]
        start = int(place * (max(clip.shape[-1] - num_played, 0) + 1))
        crop = clip[..., start : start + num_played].astype(np.float32) / FULL_SCALE
        crop = resample(crop, played_rate, self.sampling_rate)[..., : self.num_samples]
        gain = 10 ** (generator.uniform(*self.gain_db) / 20)
        if self.flip_polarity and generator.uniform() < 0.5:
            gain = -gain
        padded = np.zeros((*crop.shape[:-1], self.num_samples), dtype=np.float32)
        padded[..., : crop.shape[-1]] = np.clip(gain * crop, -1, 1)
        return torch.from_numpy(padded), crop.shape[-1]

    def read_ahead(self):
        """Read the clips that fit into the cache: worker processes forked afterwards share them."""
        sizes = [2 * self.num_channels * math.ceil(clip.seconds * self.sampling_rate) for clip in self.clips]
        for number in np.flatnonzero(np.cumsum(sizes) <= self._free_bytes).tolist():
            self._read(number)

    def _check(self):
        if not self.clips:
            raise ValueError("there are no clips to train on: name sources that hold some, or exclude fewer")
        if self.num_samples < 1 or self.seed < 0:
            raise ValueError(
                f"crops have {self.num_samples} samples and the seed is {self.seed}: crop_seconds must make at least "
                "one sample, and the seed be 0 or more"
            )
        for name, (low, high) in (("gain_db", self.gain_db), ("speed", self.speed)):
            if not low <= high or name == "speed" and low <= 0:
                raise ValueError(f"{name} is {(low, high)}: the lowest comes first, and a speed is above 0")

    def _order(self, epoch: int) -> np.ndarray:
        """The order of the pieces; that of the epoch asked for last is kept."""
        if self._epoch_and_order is None or self._epoch_and_order[0] != epoch:
            generator = np.random.default_rng((self.seed, ORDER_STREAM, epoch))
            self._epoch_and_order = epoch, generator.permutation(len(self))
        return self._epoch_and_order[1]

    def _read(self, number: int) -> np.ndarray:
        """A whole clip, int16, of the shape of its crops."""
        if number in self._held:
            return self._held[number]
        audio = resample(*self.clips[number].read("mix", self.num_channels), self.sampling_rate)
        if self.normalize_level:
            audio = level_normalized(audio)
        clip = np.clip(np.rint(audio * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        if clip.nbytes <= self._free_bytes:
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
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> DataLoader:
    """Batches `first_batch` to `num_batches - 1` of the stream, each made by `collate`: this process's share of them.

    Batch i holds `crops[i * batch_size]` to `crops[(i + 1) * batch_size - 1]`, dealt out to the processes in turn. A
    loader that starts at a later batch goes on exactly as one that was not interrupted, and the crops of a batch are
    the same on any number of processes. The loader leaves torch's random numbers alone.

    Args:
        batch_size: crops of a batch, all processes together.
        num_workers: processes that make crops ahead, of clips read before; with 0 all is done when it is asked for.

    Raises:
        ValueError: a batch that can't be dealt out evenly.
    """
    if batch_size < 1 or batch_size % num_processes:
        raise ValueError(
            f"a batch of {batch_size} crops can't be dealt out to {num_processes} processes evenly: choose a multiple"
        )
    if num_workers:
        crops.read_ahead()
    return DataLoader(
        crops,
        batch_size // num_processes,
        sampler=range(first_batch * batch_size + process_index, num_batches * batch_size, num_processes),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def collate(crops: Sequence[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Crops and their lengths to what `CodecModel` takes: `input_values` float32 `(batch, num_channels,
    num_samples)` and `padding_mask` int64 `(batch, num_samples)`, 1 for audio."""
    audio, lengths = zip(*crops)
    input_values = torch.stack([torch.atleast_2d(crop) for crop in audio])
    is_audio = torch.arange(input_values.shape[-1]) < torch.tensor(lengths)[:, None]
    return {"input_values": input_values, "padding_mask": is_audio.to(torch.int64)}


def without(clips: Iterable[Clip], evaluation_clips: Iterable[Clip]) -> list[Clip]:
    """The clips that are not among the evaluation's, by file or name, and whose speaker is not heard there.

    Raises `ValueError` where the evaluation has speakers, but one of these clips does not tell its own.
    """
    evaluation_clips = list(evaluation_clips)
    identities = {_identity(clip) for clip in evaluation_clips}
    speakers = {clip.speaker for clip in evaluation_clips} - {None}
    left = [clip for clip in clips if clip.speaker not in speakers and _identity(clip) not in identities]
    if speakers:
        _check_speakers_are_known(left)
    return left


def hold_out_speakers(clips: Iterable[Clip], num_speakers: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Cut off a validation set: (the clips to train on, all clips of `num_speakers` speakers drawn by `seed`).

    The draw depends on the speakers' names, not on the order of the clips. Raises `ValueError` where a clip does not
    tell its speaker, or no speaker would be left to train on.
    """
    clips = list(clips)
    _check_speakers_are_known(clips)
    speakers = sorted({clip.speaker for clip in clips})
    if not 0 < num_speakers < len(speakers):
        raise ValueError(
            f"{num_speakers} of {len(speakers)} speakers can't be held out: at least one, and one left to train on"
        )
    held_out = set(np.random.default_rng(seed).choice(speakers, num_speakers, replace=False).tolist())
    return (
        [clip for clip in clips if clip.speaker not in held_out],
        [clip for clip in clips if clip.speaker in held_out],
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
            "num_speakers": len({clip.speaker for clip in group} - {None}),
            "hours": sum(clip.seconds for clip in group) / 3600,
        }
        for (source, license), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["hours"])


def _identity(clip: Clip):
    """The file, by whichever path it was found; the name of what lies in no file."""
    return clip.name if callable(clip.audio) else clip.audio.resolve()


def _check_speakers_are_known(clips: list[Clip]):
    unknown = [clip.name for clip in clips if clip.speaker is None]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(clips)} clips tell no speaker, {unknown[0]} among them, so speakers can't be kept "
            "apart: name the clips in a manifest with a column speaker"
        )
