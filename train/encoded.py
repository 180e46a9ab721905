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


class EncodedLoss(DiffusionLoss):
    """construct(latents, noise, alpha, sigma (N, 1, 1, 1), t (N,), context (N, L, K), vector (N, V)) -> scalar."""

    def predict(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """The net's output."""
        return self.unet(x, t, cond[0], cond[1])


class EncodedData:
    """The rows of a folder's files, by size. They stay on the disk; what a batch takes is read."""

    def __init__(self, folder: Path, key: str, sizes: tuple[str, ...]) -> None:
        """Raises: UserError where there is nothing, or it was made by another encoder."""
        self.files: dict[str, list[Path]] = {}
        self.rows: dict[str, np.ndarray] = {}  # (M, 2): a file's number and a row of it
        empty = folder / EMPTY
        if not empty.exists():
            raise UserError(f"{folder}: no encoded data; make it with `mindpangu data encode --out {folder}`")
        card = read_card(empty)
        if card.get("key") != key:
            raise UserError(f"{folder}: encoded by other models than diffusion.vae and diffusion.text; encode it again")
        found: dict[str, list[np.ndarray]] = {}
        files = card.get("files") or [one.name for one in sorted(folder.glob("*.safetensors"))]
        for path in (folder / name for name in files if name != EMPTY):
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    size, _, kind = name.partition(".")
                    if kind == "latents" and size in sizes:
                        number = len(self.files.setdefault(size, []))
                        self.files[size].append(path)
                        count = file.get_slice(name).get_shape()[0]
                        rows = np.stack([np.full(count, number), np.arange(count)], 1)
                        found.setdefault(size, []).append(rows)
        self.rows = {size: np.concatenate(found[size]) for size in sizes if size in found}
        if not self.rows:
            raise UserError(f"{folder}: no pictures of the sizes {', '.join(sizes)}")
        with safe_open(empty, "numpy") as file:
            self.empty = {
                size: tuple(file.get_tensor(f"{size}.{name}")[0] for name in ("context", "vector"))
                for size in self.rows
            }

    def latents(self, size: str, row: int) -> np.ndarray:
        """(C, h, w) fp16 of picture `row` of a size."""
        number, place = self.rows[size][row]
        return opened(self.files[size][number]).get_slice(f"{size}.latents")[int(place)]

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
                    raise UserError(
                        f"{path}: holds features alone, and text encoders that learn need words; encode it again"
                    )

    def _of_caption(self, size: str, row: int, choose: float, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
        number, place = self.rows[size][row]
        file = opened(self.files[size][number])
        first, end = (int(i) for i in file.get_slice(f"{size}.first")[int(place) : int(place) + 2])
        caption = first + int(choose * (end - first))
        return tuple(file.get_slice(f"{size}.{name}")[caption] for name in names)


@lru_cache(maxsize=256)
def opened(path: Path) -> safe_open:
    """A file, mapped into memory once."""
    return safe_open(path, "numpy")


class Epochs:
    """Every picture once an epoch, in batches of one size, in an order that (seed, epoch) fixes.

    What a size's last batch lacks is taken from its beginning. So batch number b is a function of (seed, b), however
    many processes share it and whenever the training was resumed.
    """

    def __init__(self, counts: dict[str, int], batch_size: int, seed: int) -> None:
        self.counts, self.batch_size, self.seed = counts, batch_size, seed
        self.length = sum(-(-count // batch_size) for count in counts.values())
        self._plans: dict[int, list[tuple[str, np.ndarray]]] = {}

    def batch(self, number: int) -> tuple[str, np.ndarray]:
        """The size of a batch, and its rows."""
        epoch, place = divmod(number, self.length)
        if epoch not in self._plans:
            self._plans = {epoch: self._plan(epoch)}
        return self._plans[epoch][place]

    def _plan(self, epoch: int) -> list[tuple[str, np.ndarray]]:
        rng = np.random.default_rng([self.seed, epoch, Stream.ENCODED])
        batches = []
        for size, count in self.counts.items():
            rows = rng.permutation(count)
            rows = np.resize(rows, -(-count // self.batch_size) * self.batch_size)
            batches += [(size, part) for part in rows.reshape(-1, self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


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
        if self.task.lora is not None and self.task.lora.changes_text_encoders:
            self.open_text_encoders(self.task.text)
            for one in self.sets:
                one.check_ids()
        self.epochs = [
            Epochs({size: len(rows) for size, rows in one.rows.items()}, config.runner_config.batch_size, self.seed)
            for one in self.sets
        ]

    def build(self) -> None:
        """The net that learns, within its loss, and one to show what it has learned."""
        loss = EncodedLoss if self.conditioner is None else DiffusionLoss
        self.loss_net = loss(self.unet(), self.conditioner, self.task.prediction)
        self._shown = self.unet()

    def pick(self, rng: np.random.Generator, nimg: int, count: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """The epoch's next latents, and one of each one's captions, or the empty one."""
        which, number = turn(nimg // count, self.prior_share)
        data = self.sets[which]
        size, rows = self.epochs[which].batch(number)
        latents = np.stack([data.latents(size, row) for row in rows]).astype(np.float32)
        empty, choose = rng.random(count) < self.task.caption_dropout, rng.random(count)
        return latents, self._cond(data, size, [(row, choose[i], bool(empty[i])) for i, row in enumerate(rows)])

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
        size, rows = next(iter(self.data.rows.items()))
        count = min(SHOWN, len(rows))
        x0 = np.stack([self.data.latents(size, row) for row in range(count)]).astype(np.float32)
        captions = [(row, 0.0, empty) for empty in (True, False) for row in range(count)]
        cond = tuple(Tensor(one) for one in self._cond(self.data, size, captions))
        return x0, cond if self.conditioner is None else self.conditioner(mutable(cond[:2]), cond[2])
