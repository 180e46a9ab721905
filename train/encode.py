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

from mindpangu import zoo
from mindpangu.checkpoint.share import each_made
from mindpangu.checkpoint.store import card_of_whole, file_digest, read_card, save_checkpoint, write_atomically
from mindpangu.data.records import opened
from mindpangu.data.shards import BadSampleError, check_share
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.models.loading import load_conditioner, load_tokenizers, load_vae
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import TEXT_ENCODERS
from mindpangu.train.latents import ENCODE_BATCH, encode_batch

EMPTY = "empty.safetensors"  # features of the empty caption, for classifier-free guidance
BAD = "bad.jsonl"


@dataclass(frozen=True)
class EncodeConfig:
    """`sizes`: those of the model, in the order of their index; `used`: those that pictures are brought to.

    Pictures whose shorter side is below `min_side` pixels are left out; the others are enlarged where they must be.
    `max_bad_share`: of the samples may be unusable before it is an error. Without `features` captions are kept as ids
    alone, and the text encoders run in training.
    """

    vae: Path
    text: Path
    sizes: tuple[str, ...]
    size_dim: int
    used: tuple[str, ...]
    min_side: int = 0
    max_bad_share: float = 0.01
    features: bool = True


@dataclass
class Rows:
    """What a shard has of one size: latents, captions, the number of each picture's first one, pictures to encode."""

    latents: list[np.ndarray] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [0])
    waiting: list[np.ndarray] = field(default_factory=list)

    def add(self, picture: np.ndarray, captions: Sequence[str]) -> None:
        """One sample more."""
        self.waiting.append(picture)
        self.captions += captions
        self.first.append(len(self.captions))

    def encode(self, vae: AutoencoderKL) -> None:
        """The pictures that wait become latents, (M, C, h, w) fp16."""
        if self.waiting:
            self.latents.append(encode_batch(vae, self.waiting))
            self.waiting = []


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


@dataclass(frozen=True)
class Job:
    """A shard that is to be encoded."""

    shard: Path
    out: Path

    @property
    def target(self) -> Path:
        """The file of its encoding."""
        return self.out / f"{self.shard.stem}.safetensors"

    @property
    def stat(self) -> list[int]:
        """Bytes and time of change, in ns: while these are the same a shard is not read to see whether it is."""
        found = self.shard.stat()
        return [found.st_size, found.st_mtime_ns]


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
            of_size = rows.setdefault(size, Rows())
            of_size.add(np.asarray(fitted), sample.captions)
            if len(of_size.waiting) == ENCODE_BATCH:
                of_size.encode(self.vae)
        tensors = {}
        for size, one in rows.items():
            one.encode(self.vae)
            tensors[f"{size}.latents"] = np.concatenate(one.latents)
            if self.config.features:
                tensors[f"{size}.context"], tensors[f"{size}.vector"] = self.features(one.captions, size)
            for encoder, ids in zip(TEXT_ENCODERS, self.ids(one.captions)):
                tensors[f"{size}.ids.{encoder}"] = ids
            tensors[f"{size}.first"] = np.array(one.first, np.int64)
        pictures = {size: len(one.first) - 1 for size, one in rows.items()}
        return tensors, {"used": sum(pictures.values()), "pictures": pictures, "small": small, "bad": bad}

    @property
    def made_by(self) -> dict[str, object]:
        """The encoder, what is kept, and how pictures were chosen and brought to size."""
        config = self.config
        return {
            "encoder": self.key,
            "used": list(config.used),
            "min_side": config.min_side,
            "ids": True,
            "features": config.features,
        }

    def done(self, job: Job) -> Optional[dict[str, Any]]:
        """The sidecar of a whole file that this encoder made of this shard. Sizes are compared, not contents."""
        card = card_of_whole(job.target)
        if card is None or card.get("key") != self.made_by:
            return None
        shard = card["shard"]
        return card if shard["stat"] == job.stat or shard["sha256"] == file_digest(job.shard) else None

    def make(self, job: Job) -> dict[str, Any]:
        """Encode a shard; the sidecar of its file. Raises: UserError where it cannot be written."""
        shard = {"stat": job.stat, "sha256": file_digest(job.shard)}
        tensors, card = self.shard(job.shard)
        card = {**card, "key": self.made_by, "shard": shard}
        save_checkpoint(job.target, tensors, card)
        return card

    def empty(self) -> dict[str, np.ndarray]:
        """Features of the empty caption for each size, where features are kept."""
        if not self.config.features:
            return {}
        cond = {size: self.features([""], size) for size in self.config.used}
        return {f"{size}.{name}": one for size, pair in cond.items() for name, one in zip(("context", "vector"), pair)}


def encode(
    shards: Sequence[Path], config: EncodeConfig, out: Path, progress: Callable[[int], object]
) -> dict[str, int]:
    """Encode every shard that `out` does not hold yet; how many samples were used, too small and bad, in all.

    Several processes may do so at once (`checkpoint.share`).

    Raises:
        UserError: two shards of one name; the folder cannot be written; too many samples are bad.
    """
    if len({path.stem for path in shards}) < len(shards):
        raise UserError("two of the shards have the same name; their encodings would be written over each other")
    encoder = Encoder(config)
    cards: dict[Path, dict[str, Any]] = {}
    for job, card in each_made([Job(path, out) for path in shards], encoder.done, encoder.make):
        cards[job.shard] = card
        progress(1)
    bad = [one for path in shards for one in cards[path]["bad"]]
    totals = {key: sum(card[key] for card in cards.values()) for key in ("used", "small")}
    totals["bad"] = len(bad)
    pictures = {f"{path.stem}.safetensors": cards[path]["pictures"] for path in sorted(shards)}
    said = {"key": encoder.key, "features": config.features, "pictures": pictures}
    if not (out / EMPTY).exists() or {key: read_card(out / EMPTY).get(key) for key in said} != said:
        save_checkpoint(out / EMPTY, encoder.empty(), said)
    write_atomically(out / BAD, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in bad).encode())
    check_share(totals["used"] + totals["small"], len(bad), config.max_bad_share, out / BAD)
    return totals
