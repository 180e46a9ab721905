"""Writing a model folder from other people's weights: in safetensors, shard by shard, and going on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Optional

import numpy as np
from tokenizers import Tokenizer

from mindpangu import zoo
from mindpangu.checkpoint.name_map import Shapes
from mindpangu.checkpoint.store import check_file, save_tensors, write_atomically, write_card
from mindpangu.config import dump
from mindpangu.errors import UserError
from mindpangu.spec import ModelSpec

DTYPES = {"fp16": np.float16, "fp32": np.float32}
JOURNAL = "conversion.json"  # shards that are done, so that a second run writes only what is not there

Said = Callable[[str], None]


@dataclass(frozen=True)
class ConversionOptions:
    """How a model is written, the same for every family.

    `dtype`: fp16 or fp32. `shard_bytes`: the largest file. `vocabulary`: vocab.txt of a Chinese text encoder, where
    the source does not hold it.
    """

    dtype: str = "fp16"
    shard_bytes: int = 500_000_000
    vocabulary: Optional[Path] = None


@dataclass(frozen=True)
class Shard:
    """One file to write: the part's parameters `names`."""

    part: str
    file: str
    names: tuple[str, ...]


def plan(shapes: Mapping[str, Shapes], itemsize: int, shard_bytes: int) -> list[Shard]:
    """Every part in files of at most `shard_bytes` (or one parameter), in the order of its parameters."""
    shards = []
    for part, of_part in shapes.items():
        groups: list[list[str]] = [[]]
        room = shard_bytes
        for name, shape in of_part.items():
            size = prod(shape) * itemsize
            if groups[-1] and size > room:
                groups.append([])
                room = shard_bytes
            groups[-1].append(name)
            room -= size
        for i, names in enumerate(groups, start=1):
            number = f"-{i:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
            shards.append(Shard(part, f"{part}{number}.safetensors", tuple(names)))
    return shards


Read = Callable[[str, str], np.ndarray]  # (part, parameter) -> our array


def write_model(
    spec: ModelSpec,
    shapes: Mapping[str, Shapes],
    read: Read,
    sources: Mapping[str, str],
    out: Path,
    options: ConversionOptions,
    tokenizers: Mapping[str, Tokenizer],
    said: Said,
) -> None:
    """Write the model folder `out`, shard by shard. `sources`: {file or role: SHA-256} of what is converted.

    Shards that an earlier conversion of the same sources has finished, interrupted or not, are checked and kept.

    Raises:
        UserError: the disk is too small or cannot be written, or a number does not fit the dtype.
    """
    dtype, itemsize = options.dtype, np.dtype(DTYPES[options.dtype]).itemsize
    check_room(out, itemsize * sum(prod(shape) for part in shapes.values() for shape in part.values()))
    journal = _Journal(
        out,
        {"model": spec.pipeline.name, "sources": dict(sources), "dtype": dtype, "shard_bytes": options.shard_bytes},
    )
    shards = plan(shapes, itemsize, options.shard_bytes)
    for number, shard in enumerate(shards, start=1):
        said(f"{shard.file} ({number} of {len(shards)})")
        if not journal.holds(shard.file):
            tensors = {name: cast(read(shard.part, name), dtype, f"{shard.part}: {name}") for name in shard.names}
            journal.add(shard.file, save_tensors(out / shard.file, tensors))
    for part in shapes:
        mine = {shard.file: journal.done[shard.file] for shard in shards if shard.part == part}
        whole = mine.get(f"{part}.safetensors")
        card = {"spec": asdict(spec.parts[part]), "source": dict(sources), **(whole or {"shards": mine})}
        write_card(out / f"{part}.safetensors", card)
    described = json.dumps(dump(spec.pipeline), indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / zoo.DESCRIPTION, described.encode())
    for encoder, tokenizer in tokenizers.items():
        write_atomically(zoo.tokenizer_path(out, encoder), tokenizer.to_str().encode())


def cast(value: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """A weight in the dtype. Raises: UserError where it is not finite there."""
    with np.errstate(over="ignore"):
        stored = value.astype(DTYPES[dtype])
    if not np.isfinite(stored).all():
        what = "is too large for fp16; convert to fp32" if np.isfinite(value).all() else "is not finite"
        raise UserError(f"{name} {what}")
    return stored


def check_room(out: Path, needed: int) -> None:
    """Raises: UserError where the disk has not `needed` bytes, less those of earlier files that are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    free = shutil.disk_usage(out).free
    if free < needed - there:
        raise UserError(
            f"{out}: {(needed - there) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; choose another "
            "--out, or fp16"
        )


class _Journal:
    """Which shards are done and from what, kept in the folder."""

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self.path, self.job = out, out / JOURNAL, job
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                kept = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                kept = {}
            if kept.get("job") == job:
                self.done = kept["done"]

    def holds(self, file: str) -> bool:
        """Whether the file was written by this job and is still what was written."""
        if file not in self.done:
            return False
        try:
            check_file(self.out / file, self.done[file])
        except UserError:
            return False
        return True

    def add(self, file: str, described: dict[str, Any]) -> None:
        """Note a finished file."""
        self.done[file] = described
        write_atomically(self.path, json.dumps({"job": self.job, "done": self.done}, indent=1).encode())
