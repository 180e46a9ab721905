"""Shards from what one has: a folder of pictures with captions beside them, or scenes of the emoji data set."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Optional

from PIL import Image

from mindpangu.checkpoint.share import each_made
from mindpangu.checkpoint.store import card_of_whole, write_card
from mindpangu.data import records, shards
from mindpangu.data.examples import Examples
from mindpangu.data.phrases import LANGUAGES
from mindpangu.data.shards import CAPTIONS, PICTURES
from mindpangu.errors import UserError

HIDDEN = "._"  # what a Mac leaves beside files on other file systems
KOHYA = "caption"  # kohya's suffix of captions
UNREAD = (
    "heic",
    "heif",
    "jxl",
    "jp2",
    "psd",
    "svg",
    "tga",
    "ppm",
    "pgm",
    "exr",
    "hdr",
    "ico",
    "eps",
    "dng",
    "cr2",
    "nef",
)


@dataclass(frozen=True)
class Item:
    """A sample that is to be packed: its key, what it is made of, and what makes its fields."""

    key: str
    stamp: str
    fields: Callable[[], dict[str, bytes]]


def scenes(examples: Examples, count: int) -> Iterator[Item]:
    """The first `count` scenes as PNG, each with a caption in every language."""
    stamp = hashlib.sha256(f"{examples.seed} {examples.config} {examples.records}".encode()).hexdigest()

    def fields(i: int) -> dict[str, bytes]:
        scene, file = examples.scene(i), io.BytesIO()
        Image.fromarray(examples.image(scene)).save(file, "PNG")
        return {"png": file.getvalue(), **{f"{x}.txt": examples.caption(scene, i, x).encode() for x in LANGUAGES}}

    for i in range(count):
        yield Item(f"{i:08}", stamp, partial(fields, i))


class Captioned:
    """The pictures of a folder as they are, with the captions of NAME.txt, NAME.caption, NAME.en.txt, …, in any case.

    Folder by folder, the names of one of which are kept in memory. What is left out is counted on the way: `silent`
    pictures without a caption, of which `an_example` is one, and those `unread`, by their kind.
    """

    def __init__(self, folder: Path, otherwise: str = "") -> None:
        """`otherwise`: the caption of pictures that have none."""
        self.folder = folder
        self.default = {"txt": otherwise.encode()} if otherwise else {}
        self.silent, self.an_example = 0, folder
        self.unread: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Item]:
        """Raises: UserError at the end, where no picture had a caption."""
        number = 0
        for folder, inner, names in os.walk(self.folder):
            inner.sort()
            by_name = {name.casefold(): name for name in names if not name.startswith(HIDDEN)}
            for name in sorted(by_name.values()):
                path = Path(folder, name)
                if _kind(path) in UNREAD:
                    self.unread[_kind(path)] += 1
                if _kind(path) not in PICTURES:
                    continue
                captions = _beside(path, by_name)
                if not captions and not self.default:
                    self.silent, self.an_example = self.silent + 1, path
                    continue
                stamp = "\n".join(_stamp(one) for one in (path, *captions.values())) + repr(self.default)
                yield Item(f"{number:08}", stamp, partial(self._fields, path, captions))
                number += 1
        if not number:
            raise UserError(
                f"{self.folder}: {self.silent} pictures, none with a caption beside it (fox.jpg and fox.txt); "
                "--caption gives one to all"
            )

    def _fields(self, path: Path, captions: Mapping[str, Path]) -> dict[str, bytes]:
        found = {field: place.read_bytes() for field, place in captions.items()} or self.default
        return {_kind(path): path.read_bytes(), **found}


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _beside(path: Path, by_name: Mapping[str, str]) -> dict[str, Path]:
    """The files with captions of a picture, by their fields."""
    places = {field: by_name.get(f"{path.stem}.{field}".casefold()) for field in (*CAPTIONS, KOHYA)}
    found = {field: path.with_name(name) for field, name in places.items() if name is not None}
    if KOHYA in found:
        found = {"txt": found.pop(KOHYA), **found}
    return found


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


FORMATS = {"tar": shards.write, "mindrecord": records.write}


@dataclass(frozen=True)
class Job:
    """A shard that is to be written."""

    target: Path
    items: Sequence[Item]

    @property
    def card(self) -> dict[str, Any]:
        """Its sidecar: how many samples it has, and a digest of what they are made of."""
        made_of = "\n".join(f"{item.key} {item.stamp}" for item in self.items)
        return {
            "samples": len(self.items),
            "made_of": hashlib.sha256(made_of.encode(errors="surrogateescape")).hexdigest(),
        }

    def done(self) -> Optional[dict[str, Any]]:
        """The sidecar where the shard is there, made of the same."""
        card = card_of_whole(self.target)
        return card if card is not None and self.card.items() <= card.items() else None

    def write(self) -> dict[str, Any]:
        """Raises: UserError."""
        card = self.card
        FORMATS[self.target.suffix[1:]](self.target, [(item.key, item.fields()) for item in self.items])
        card["bytes"] = self.target.stat().st_size
        write_card(self.target, card)
        return card


def pack(
    items: Iterable[Item], out: Path, per_shard: int, progress: Callable[[int], object], form: str = "tar"
) -> tuple[int, int]:
    """Write shards of `per_shard` samples in one of FORMATS, 00000.tar and on; how many of either, shards first.

    Those that are there already, made of the same, are kept. Several processes may pack at once (`checkpoint.share`).

    Raises:
        UserError: see `FORMATS`; a folder without captions.
    """
    rest, samples, written = iter(items), 0, 0
    parts = iter(lambda: list(islice(rest, per_shard)), [])
    jobs = (Job(out / f"{number:05}.{form}", part) for number, part in enumerate(parts))
    for _, card in each_made(jobs, Job.done, Job.write):
        samples, written = samples + card["samples"], written + 1
        progress(card["samples"])
    return written, samples


def left_over(out: Path, count: int, form: str) -> list[Path]:
    """Shards of an earlier, larger run, which the last one did not write over."""
    return sorted(path for path in out.glob(f"[0-9]*.{form}") if path.stem.isdecimal() and int(path.stem) >= count)
