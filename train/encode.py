"""`mindpangu data encode`: pictures and captions of shards as the latents and features that a generator trains on.

One file for each shard. Its sidecar says by which encoder it was made, and of which content: what is of another one is
made again. A training refuses files of another encoder, and reads those of the last run alone, whose pictures the
sidecar of `empty.safetensors` counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import Tensor, mutable
from PIL import Image, ImageOps
from safetensors import safe_open

from mindpangu import zoo
from mindpangu.checkpoint.store import file_digest, read_card, save_checkpoint, verify, write_atomically
from mindpangu.data.records import opened
from mindpangu.data.shards import BadSampleError, check_share
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.models.loading import load_conditioner, load_tokenizers, load_vae
from mindpangu.spec import TEXT_ENCODERS
from mindpangu.train.latents import ENCODE_BATCH, encode_pictures

EMPTY = "empty.safetensors"  # features of the empty caption, for classifier-free guidance
BAD = "bad.jsonl"


@dataclass(frozen=True)
class EncodeConfig:
    """`sizes`: those of the model, in the order of their index; `used`: those that pictures are brought to.

    Pictures whose shorter side is below `min_side` pixels are left out; the others are enlarged where they must be.
    `max_bad_share`: of the samples may be unusable before it is an error.
    """

    vae: Path
    text: Path
    sizes: tuple[str, ...]
    size_dim: int
    used: tuple[str, ...]
    min_side: int = 0
    max_bad_share: float = 0.01


@dataclass
class Rows:
    """What has been read for one size: pictures, captions, and the number of each picture's first caption."""

    pictures: list[np.ndarray] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [0])

    def add(self, picture: np.ndarray, captions: Sequence[str]) -> None:
        """One sample more."""
        self.pictures.append(picture)
        self.captions += captions
        self.first.append(len(self.captions))


def encoder_key(vae: Path, text: Path, sizes: Sequence[str], size_dim: int) -> str:
    """What changes when an autoencoder, text encoder, tokenizer or the added conditioning does. Raises: UserError."""
    parts = {"vae": read_card(vae / "vae.safetensors").get("sha256"), "sizes": list(sizes), "size_dim": size_dim}
    for encoder in TEXT_ENCODERS:
        parts[encoder] = read_card(zoo.part_path(text, encoder)).get("sha256")
        try:
            parts[f"{encoder} tokenizer"] = file_digest(zoo.tokenizer_path(text, encoder))
        except OSError as error:
            raise UserError(f"{zoo.tokenizer_path(text, encoder)}: cannot be read ({error.strerror})") from None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def nearest_size(picture: tuple[int, int], sizes: Sequence[str]) -> str:
    """The size of the aspect nearest to a picture's (width, height); of several such the largest."""

    def distance(size: str) -> tuple[float, int]:
        width, height = parse_size(size)
        return round(abs(math.log(picture[0] * height / (picture[1] * width))), 6), -width * height

    return min(sizes, key=distance)


class Encoder:
    """The frozen autoencoder and text encoders of a config."""

    def __init__(self, config: EncodeConfig) -> None:
        """Raises: UserError."""
        unknown = [size for size in config.used if size not in config.sizes]
        if unknown:
            raise UserError(f"size {', '.join(unknown)} is not one of the model's: {', '.join(config.sizes)}")
        self.config = config
        self.key = encoder_key(config.vae, config.text, config.sizes, config.size_dim)
        self.vae = load_vae(config.vae / "vae.safetensors")
        self.conditioner = load_conditioner(config.text, TEXT_ENCODERS, config.size_dim)
        self.tokenizers = load_tokenizers(config.text, TEXT_ENCODERS)

    def latents(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(M, C, h, w) fp16 of M pictures of one size, (H, W, 3) uint8."""
        return encode_pictures(self.vae, pictures)

    def features(self, captions: Sequence[str], size: str) -> tuple[np.ndarray, np.ndarray]:
        """Context (R, L, K) and vector (R, V), fp16."""
        parts = []
        for start in range(0, len(captions), ENCODE_BATCH):
            part = list(captions[start : start + ENCODE_BATCH])
            padded = part + [""] * (ENCODE_BATCH - len(part))
            ids = tuple(Tensor(tokenizer(padded)) for tokenizer in self.tokenizers)
            index = np.full((ENCODE_BATCH, 1), self.config.sizes.index(size), np.float32)
            cond = self.conditioner(mutable(ids), Tensor(index))
            parts.append([one.asnumpy()[: len(part)] for one in cond])
        context, vector = (np.concatenate(one).astype(np.float16) for one in zip(*parts))
        return context, vector

    def ids(self, captions: Sequence[str]) -> list[np.ndarray]:
        """(R, L) int32 for each encoder."""
        return [tokenizer(captions) for tokenizer in self.tokenizers]

    def shard(self, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A shard's tensors, and what its sidecar says: how many samples were used, were too small, and bad ones."""
        shard = opened(path)
        rows: dict[str, Rows] = {}
        bad, small = [vars(one) for one in shard.bad], 0
        for entry in shard.entries:
            try:
                sample = shard.read(entry)
            except BadSampleError as error:
                bad.append({"sample": f"{path.name}/{entry.key}", "reason": str(error)})
                continue
            if min(sample.picture.size) < self.config.min_side:
                small += 1
                continue
            size = nearest_size(sample.picture.size, self.config.used)
            fitted = ImageOps.fit(sample.picture, parse_size(size), Image.Resampling.LANCZOS)
            rows.setdefault(size, Rows()).add(np.asarray(fitted), sample.captions)
        tensors = {}
        for size, one in rows.items():
            tensors[f"{size}.latents"] = self.latents(one.pictures)
            tensors[f"{size}.context"], tensors[f"{size}.vector"] = self.features(one.captions, size)
            for encoder, ids in zip(TEXT_ENCODERS, self.ids(one.captions)):
                tensors[f"{size}.ids.{encoder}"] = ids
            tensors[f"{size}.first"] = np.array(one.first, np.int64)
        used = sum(len(one.pictures) for one in rows.values())
        return tensors, {"used": used, "small": small, "bad": bad}

    @property
    def made_by(self) -> dict[str, object]:
        """The encoder, and how pictures were chosen and brought to size."""
        return {"encoder": self.key, "used": list(self.config.used), "min_side": self.config.min_side, "ids": True}


def encode(
    shards: Sequence[Path], config: EncodeConfig, out: Path, progress: Callable[[int], object]
) -> dict[str, int]:
    """Encode every shard that `out` does not hold yet; how many samples were used, too small and bad, in all.

    Raises:
        UserError: two shards of one name; the folder cannot be written; too many samples are bad.
    """
    if len({path.stem for path in shards}) < len(shards):
        raise UserError("two of the shards have the same name; their encodings would be written over each other")
    encoder = Encoder(config)
    totals = {"used": 0, "small": 0, "bad": 0}
    bad: list[dict[str, str]] = []
    for path in shards:
        target = out / f"{path.stem}.safetensors"
        made_by = {**encoder.made_by, "shard": file_digest(path)}
        card = _card_if_done(target, made_by)
        if card is None:
            tensors, card = encoder.shard(path)
            card = {**card, "key": made_by}
            save_checkpoint(target, tensors, card)
        bad += card["bad"]
        totals["used"] += card["used"]
        totals["small"] += card["small"]
        progress(1)
    totals["bad"] = len(bad)
    files = sorted(f"{path.stem}.safetensors" for path in shards)
    pictures = {name: _pictures(out / name) for name in files}
    if not (out / EMPTY).exists() or _said(out / EMPTY) != (encoder.key, pictures):
        cond = {size: encoder.features([""], size) for size in config.used}
        tensors = {
            f"{size}.{name}": one for size, pair in cond.items() for name, one in zip(("context", "vector"), pair)
        }
        save_checkpoint(out / EMPTY, tensors, {"key": encoder.key, "pictures": pictures})
    write_atomically(out / BAD, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in bad).encode())
    check_share(totals["used"] + totals["small"], len(bad), config.max_bad_share, out / BAD)
    return totals


def _said(empty: Path) -> tuple[Any, Any]:
    """By which encoder, of which files and of how many pictures the folder's data are."""
    card = read_card(empty)
    return card.get("key"), card.get("pictures")


def _pictures(path: Path) -> dict[str, int]:
    """How many pictures of each size a file holds."""
    with safe_open(path, "numpy") as file:
        names = [name for name in file.keys() if name.endswith(".latents")]  # noqa: SIM118 - not a dictionary
        return {name.partition(".")[0]: file.get_slice(name).get_shape()[0] for name in names}


def _card_if_done(target: Path, made_by: dict[str, object]) -> Optional[dict[str, Any]]:
    """The sidecar of a whole file that this encoder made, else None."""
    try:
        card = verify(target)
    except UserError:
        return None
    return card if card.get("key") == made_by else None
