"""From the two released PanGu-Draw files to one model folder: every weight once, in safetensors, shard by shard."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.mindspore_ckpt import MindSporeCheckpoint
from mindpangu.checkpoint.release import BUFFERS, release_names
from mindpangu.checkpoint.store import (
    check_file,
    check_fit,
    file_digest,
    save_tensors,
    write_atomically,
    write_card,
)
from mindpangu.config import dump
from mindpangu.errors import UserError
from mindpangu.models.inventory import Shapes, parts
from mindpangu.models.spec import ModelSpec
from mindpangu.text.vocabularies import bert_wordpiece, clip_bpe

DTYPES = {"fp16": np.float16, "fp32": np.float32}
SHARED = ("vae", "text_a", "text_b")  # parts that both files hold
JOURNAL = "conversion.json"  # shards that are done, so that a second run writes only what is not there
NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.ckpt$")  # as in pangu_low_timestamp-127da122.ckpt

Said = Callable[[str], None]


@dataclass(frozen=True)
class Shard:
    """One file to write: the part's parameters `names`, read from `source` ("low" or "high")."""

    part: str
    file: str
    source: str
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
            source = "low" if part == "texture" else "high"
            shards.append(Shard(part, f"{part}{number}.safetensors", source, tuple(names)))
    return shards


def convert_release(
    low: Path,
    high: Path,
    spec: ModelSpec,
    out: Path,
    dtype: str,
    shard_bytes: int,
    vocabulary: Optional[Path] = None,
    said: Said = lambda line: None,
) -> None:
    """Write `out`, a model folder, from the files of the texture (`low`) and the structure generator (`high`).

    `vocabulary`: the Chinese tower's vocab.txt, which the files do not hold; without it tokenizer_a.json is left out.
    Shards that an earlier conversion of the same files has finished, interrupted or not, are checked and kept.

    Raises:
        UserError: a file is absent, truncated, not the one that its name says, or the two are swapped; a parameter is
            missing, unexpected or mis-shaped; the shared parts differ; the disk is too small.
    """
    refuse_swapped(low, high)
    tokenizers = {"tokenizer_b.json": clip_bpe()}
    if vocabulary is not None:
        tokenizers["tokenizer_a.json"] = bert_wordpiece(vocabulary)
    files = {"low": MindSporeCheckpoint(low), "high": MindSporeCheckpoint(high)}
    shapes = parts(spec)
    for which, unet in (("low", "texture"), ("high", "structure")):
        _check_names(files[which], {name: shapes[name] for name in (unet, *SHARED)})
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    _check_room(out, itemsize * sum(prod(shape) for part in shapes.values() for shape in part.values()))
    sources = {which: _checked_digest(file.path, said) for which, file in files.items()}
    journal = _Journal(out, {"sources": sources, "dtype": dtype, "shard_bytes": shard_bytes})
    shards = plan(shapes, itemsize, shard_bytes)
    for number, shard in enumerate(shards, start=1):
        said(f"{shard.file} ({number} of {len(shards)})")
        if not journal.holds(shard.file):
            journal.add(shard.file, save_tensors(out / shard.file, _read(shard, files, dtype)))
    for part in shapes:
        mine = {shard.file: journal.done[shard.file] for shard in shards if shard.part == part}
        whole = mine.get(f"{part}.safetensors")
        card = {"spec": asdict(getattr(spec, part)), "source": sources, **(whole or {"shards": mine})}
        write_card(out / f"{part}.safetensors", card)
    write_atomically(out / "model.json", (json.dumps(dump(spec.pangu), indent=2, ensure_ascii=False) + "\n").encode())
    for name, tokenizer in tokenizers.items():
        write_atomically(out / name, tokenizer.to_str().encode())


def refuse_swapped(low: Path, high: Path) -> None:
    """Raises: UserError where the names say that each file is the other one, or both are one file."""
    if low.resolve() == high.resolve():
        raise UserError(f"{low} was given twice; the files of the low and of the high time steps are needed")
    if "high" in low.name and "low" in high.name:
        raise UserError(
            f"the files are swapped: {low.name} was given as the low one and {high.name} as the high one; "
            "give the low one first"
        )


def _check_names(file: MindSporeCheckpoint, shapes: Mapping[str, Shapes]) -> None:
    wanted = {}
    for part, of_part in shapes.items():
        names = _stored_as(part, of_part)
        wanted.update({names[name]: shape for name, shape in of_part.items()})
    found = {plain(name): entry.shape for name, entry in file.entries.items()}
    check_fit(wanted, {name: shape for name, shape in found.items() if name not in BUFFERS}, str(file.path))


def _stored_as(part: str, names: Iterable[str]) -> dict[str, str]:
    """{ours: theirs}: either generator is its file's one UNet."""
    return release_names(part if part in SHARED else "unet", names)


def plain(name: str) -> str:
    """A released name without the infix that MindSpore's wrappers leave."""
    return name.replace("._backbone", "")


def _check_room(out: Path, needed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    free = shutil.disk_usage(out).free
    if free < needed - there:
        raise UserError(
            f"{out}: {(needed - there) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; choose another "
            "--out, or fp16"
        )


def _checked_digest(path: Path, said: Said) -> str:
    """SHA-256 of a source; a released file carries the beginning of its own in its name."""
    said(f"{path.name}: checking")
    digest, named = file_digest(path), NAMED_DIGEST.search(path.name)
    if named and not digest.startswith(named[1]):
        raise UserError(
            f"{path}: SHA-256 check failed: the name says {named[1]}…, the content is {digest[:8]}…; the file is "
            "corrupt or was renamed; fetch it again"
        )
    return digest


def _read(shard: Shard, files: Mapping[str, MindSporeCheckpoint], dtype: str) -> dict[str, np.ndarray]:
    """The tensors of a shard. Raises: UserError where a shared one differs between the files."""
    stored = {which: {plain(name): name for name in file.entries} for which, file in files.items()}
    tensors = {}
    for name, theirs in _stored_as(shard.part, shard.names).items():
        value = files[shard.source].read(stored[shard.source][theirs])
        if shard.part in SHARED:
            other = files["low"].read(stored["low"][theirs])
            if not np.array_equal(value, other):
                raise UserError(
                    f"{files['low'].path} and {files['high'].path} do not belong together: {theirs} differs by up to "
                    f"{np.abs(value - other).max():.3g}; both must hold the same autoencoder and text towers"
                )
        with np.errstate(over="ignore"):
            tensors[name] = value.astype(DTYPES[dtype])
        if not np.isfinite(tensors[name]).all():
            what = "is too large for fp16; convert to fp32" if np.isfinite(value).all() else "is not finite"
            raise UserError(f"{files[shard.source].path}: {theirs} {what}")
    return tensors


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
