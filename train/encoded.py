"""The generators' task on data that `mindpangu data encode` has made: latents and features are read, not computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Optional

import numpy as np
from mindspore import Tensor, mutable
from safetensors import safe_open

from mindpangu.checkpoint.store import read_card
from mindpangu.data.examples import Stream
from mindpangu.errors import UserError
from mindpangu.spec import TEXT_ENCODERS
from mindpangu.train.config import TrainConfig
from mindpangu.train.diffusion import SHOWN, DiffusionLoss, TrainDiffusion
from mindpangu.train.encode import EMPTY, encoder_key
from mindpangu.train.rows import ALL, Rows

RUN = 64  # pictures that a row takes one after the other, where there are
RUNS = 32  # turns of runs in an epoch before runs grow longer than one picture


class EncodedLoss(DiffusionLoss):
    """construct(latents, noise, alpha, sigma (N, 1, 1, 1), t (N,), context (N, L, K), vector (N, V)) -> scalar."""

    def predict(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """The net's output."""
        return self.unet(x, t, cond[0], cond[1])


class EncodedData:
    """The rows of a folder's files, by size. They stay on the disk; what a batch takes is read."""

    def __init__(self, folder: Path, key: str, sizes: tuple[str, ...]) -> None:
        """Raises: UserError where there is nothing, or it was made by another encoder or before files were counted."""
        again = f"run `mindpangu data encode --out {folder}` again"
        empty = folder / EMPTY
        if not empty.exists():
            raise UserError(f"{folder}: no encoded data; make it with `mindpangu data encode --out {folder}`")
        card = read_card(empty)
        if card.get("key") != key:
            raise UserError(f"{folder}: encoded by other models than diffusion.vae and diffusion.text; {again}")
        if not isinstance(card.get("pictures"), dict):
            raise UserError(f"{folder}: does not say how many pictures each file has; {again}, which keeps the files")
        self.files: dict[str, list[Path]] = {}
        self.ends: dict[str, np.ndarray] = {}  # of each file's rows, counted through all files of the size
        for size in sizes:
            counts = {name: count[size] for name, count in card["pictures"].items() if count.get(size)}
            if counts:
                self.files[size] = [folder / name for name in counts]
                self.ends[size] = np.cumsum(list(counts.values()))
        if not self.files:
            raise UserError(f"{folder}: no pictures of the sizes {', '.join(sizes)}")
        self.has_features = bool(card.get("features", True))
        self.empty: dict[str, tuple[np.ndarray, ...]] = {}
        if self.has_features:
            with safe_open(empty, "numpy") as file:
                self.empty = {
                    size: tuple(file.get_tensor(f"{size}.{name}")[0] for name in ("context", "vector"))
                    for size in self.files
                }

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures there are of each size."""
        return {size: int(ends[-1]) for size, ends in self.ends.items()}

    def where(self, size: str, row: int) -> tuple[Path, int]:
        """The file of a row, and which of its rows that is."""
        number = int(np.searchsorted(self.ends[size], row, "right"))
        return self.files[size][number], int(row - (self.ends[size][number - 1] if number else 0))

    def _place(self, size: str, row: int) -> tuple[safe_open, int]:
        path, place = self.where(size, row)
        return opened(path), place

    def latents(self, size: str, row: int) -> np.ndarray:
        """(C, h, w) fp16 of picture `row` of a size."""
        file, place = self._place(size, row)
        return file.get_slice(f"{size}.latents")[place]

    def cond(self, size: str, row: int, choose: float) -> tuple[np.ndarray, ...]:
        """Context (L, K) and vector (V,) fp16 of one of the picture's captions, which `choose` in [0, 1) picks."""
        return self._of_caption(size, row, choose, ("context", "vector"))

    def ids(self, size: str, row: int, choose: float) -> tuple[np.ndarray, ...]:
        """(L,) int32 for each encoder, of that caption."""
        return self._of_caption(size, row, choose, tuple(f"ids.{encoder}" for encoder in TEXT_ENCODERS))

    def check_ids(self) -> None:
        """Raises: UserError where a file was made before files held ids."""
        for size, paths in self.files.items():
            for path in paths:
                if f"{size}.ids.{TEXT_ENCODERS[0]}" not in opened(path).keys():  # noqa: SIM118 - not a dictionary
                    raise UserError(f"{path}: holds features alone, and words are needed; encode it again")

    def _of_caption(self, size: str, row: int, choose: float, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
        file, place = self._place(size, row)
        first, end = (int(i) for i in file.get_slice(f"{size}.first")[place : place + 2])
        caption = first + int(choose * (end - first))
        return tuple(file.get_slice(f"{size}.{name}")[caption] for name in names)


@lru_cache(maxsize=1024)  # a process has a file for each of its rows, and 256 of them have few rows each
def opened(path: Path) -> safe_open:
    """A file, mapped into memory once."""
    return safe_open(path, "numpy")


def shuffled(numbers: np.ndarray, count: int, key: Sequence[int]) -> np.ndarray:
    """Where a shuffle of 0 … count puts `numbers`: computed, not stored, a function of `key`.

    Four Feistel rounds on the smallest even number of bits that holds `count`, again for what lands beyond it
    (Black and Rogaway, Ciphers with arbitrary finite domains, 2002).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.default_rng(key).integers(1 << 63, size=4).astype(np.uint64)
    found = numbers.astype(np.uint64)
    todo = np.ones(len(found), bool)
    while todo.any():
        left, right = found[todo] >> half, found[todo] & mask
        for one in keys:
            mixed = (right ^ one) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64's constants
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        found[todo] = (left << half) | right
        todo = found >= count
    return found.astype(np.int64)


class Epochs:
    """Every picture once an epoch, in batches of one size, in an order that (seed, epoch) fixes.

    Row j of the batches of a size goes through the data in runs of neighbours, which lie one behind the other on the
    disk, and the runs are shuffled: so a process reads its own rows alone and those in long stretches, a batch has
    pictures from everywhere, and batch number b is a function of (seed, b), however many processes share it and
    whenever the training was resumed. What the last batches lack is shown twice. Nothing is stored for each picture.
    """

    def __init__(self, counts: Mapping[str, int], batch_size: int, seed: int) -> None:
        self.counts, self.batch_size, self.seed = counts, batch_size, seed
        self.run = {size: min(RUN, max(1, count // (batch_size * RUNS))) for size, count in counts.items()}
        self.turns = {size: -(-count // (self.run[size] * batch_size)) for size, count in counts.items()}
        self._of_size = np.array([self.turns[size] * self.run[size] for size in counts])  # batches
        self.length = int(self._of_size.sum())
        self._plan: tuple[int, np.ndarray, np.ndarray] = (-1, np.zeros(0), np.zeros(0))

    def batch(self, number: int, part: slice = ALL) -> tuple[str, np.ndarray]:
        """The size of a batch, and its rows, or `part` of them."""
        epoch, place = divmod(number, self.length)
        if self._plan[0] != epoch:
            self._plan = epoch, *self._sizes(epoch)
        _, sizes, nth = self._plan
        number_of_size = int(sizes[place])
        size = list(self.counts)[number_of_size]
        lap, offset = divmod(int(nth[place]), self.run[size])
        own = np.arange(self.batch_size)[part] + lap * self.batch_size
        runs = shuffled(own, self.turns[size] * self.batch_size, [self.seed, epoch, number_of_size, Stream.ENCODED])
        return size, (runs * self.run[size] + offset) % self.counts[size]

    def _sizes(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which size each batch of an epoch has, and which of that size's batches it is."""
        sizes = np.repeat(np.arange(len(self._of_size), dtype=np.int16), self._of_size)
        sizes = np.random.default_rng([self.seed, epoch, Stream.ENCODED]).permutation(sizes)
        nth = np.empty(self.length, np.int32)
        for i, count in enumerate(self._of_size):
            nth[sizes == i] = np.arange(count)
        return sizes, nth


def turn(batch: int, prior_share: float) -> tuple[int, int]:
    """Whose turn it is, the data's (0) or the prior's (1), and which of its own batches is next."""
    before, after = int(batch * prior_share), int((batch + 1) * prior_share)
    return (1, before) if after > before else (0, batch - before)


class TrainEncoded(TrainDiffusion):
    """The `loop.Task` for a generator on encoded data."""

    def open(self, config: TrainConfig) -> None:
        """Raises: UserError where the data is missing, or made by other encoders than the config names."""
        assert self.task.encoded is not None
        assert self.task.text is not None
        key = encoder_key(self.task.vae, self.task.text, self.task.sizes, self.task.size_dim)
        prior = self.task.prior
        folders = [self.task.encoded] if prior is None else [self.task.encoded, prior.encoded]
        self.sets = [EncodedData(folder, key, self.task.sizes) for folder in folders]
        self.data, self.prior_share = self.sets[0], 0.0 if prior is None else prior.share
        self.conditioner = None
        learning = self.task.lora is not None and self.task.lora.changes_text_encoders
        if learning or not all(one.has_features for one in self.sets):
            self.open_text_encoders(self.task.text)
            for one in self.sets:
                one.check_ids()
        self.epochs = [Epochs(one.counts, config.runner_config.batch_size, self.seed) for one in self.sets]

    def build(self) -> None:
        """The net that learns, within its loss, and one to show what it has learned."""
        loss = EncodedLoss if self.conditioner is None else DiffusionLoss
        self.loss_net = loss(self.unet(), self.conditioner, self.task.prediction)
        self._shown = self.unet()

    def pick(
        self, rows: Rows, common: np.random.Generator, each: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """The epoch's next latents, and one of each one's captions, or the empty one."""
        which, number = turn(rows.nimg // rows.count, self.prior_share)
        data = self.sets[which]
        size, mine = self.epochs[which].batch(number, rows.part)
        latents = np.stack([data.latents(size, row) for row in mine]).astype(np.float32)
        captions = [(row, rng.random(), rng.random() < self.task.caption_dropout) for row, rng in zip(mine, each)]
        return latents, self._cond(data, size, captions)

    def source(self, nimg: int, count: int, row: int) -> str:
        """The file that a row of a batch is from, and its place there."""
        which, number = turn(nimg // count, self.prior_share)
        size, (place,) = self.epochs[which].batch(number, slice(row, row + 1))
        path, place = self.sets[which].where(size, place)
        return f"{path}: {size}.latents[{place}]"

    def _cond(
        self, data: EncodedData, size: str, captions: Sequence[tuple[int, float, bool]]
    ) -> tuple[np.ndarray, ...]:
        """The conditioning of (row, which caption, whether the empty one instead): features, or ids and size."""
        if self.conditioner is None:
            cond = [data.empty[size] if empty else data.cond(size, row, choose) for row, choose, empty in captions]
            return tuple(np.stack(one).astype(np.float32) for one in zip(*cond))
        nothing = tuple(tokenizer([""])[0] for tokenizer in self.tokenizers)
        ids = [nothing if empty else data.ids(size, row, choose) for row, choose, empty in captions]
        index = np.full((len(captions), 1), self.task.sizes.index(size), np.float32)
        return (*(np.stack(one) for one in zip(*ids)), index)

    def by_noise_level(self, weights: Mapping[str, np.ndarray]) -> dict[str, list[Optional[float]]]:
        """Not measured: nothing of encoded data is held out."""
        return {}

    def shown(self) -> tuple[np.ndarray, tuple[Tensor, ...]]:
        """The first latents of a size; context and vector of as many empty captions and of their first ones."""
        size, count = next(iter(self.data.counts.items()))
        count = min(SHOWN, count)
        x0 = np.stack([self.data.latents(size, row) for row in range(count)]).astype(np.float32)
        captions = [(row, 0.0, empty) for empty in (True, False) for row in range(count)]
        cond = tuple(Tensor(one) for one in self._cond(self.data, size, captions))
        return x0, cond if self.conditioner is None else self.conditioner(mutable(cond[:2]), cond[2])
