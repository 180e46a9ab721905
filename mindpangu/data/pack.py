"""Shards from what one has: a folder of pictures with captions beside them, or scenes of the emoji data set."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from mindpangu.data import records, shards
from mindpangu.data.examples import Examples
from mindpangu.data.phrases import LANGUAGES
from mindpangu.data.shards import CAPTIONS, PICTURES
from mindpangu.errors import UserError

Sample = tuple[str, dict[str, bytes]]
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


def scenes(examples: Examples, count: int) -> Iterator[Sample]:
    """The first `count` scenes as PNG, each with a caption in every language."""
    for i in range(count):
        scene, file = examples.scene(i), io.BytesIO()
        Image.fromarray(examples.image(scene)).save(file, "PNG")
        fields = {f"{x}.txt": examples.caption(scene, i, x).encode() for x in LANGUAGES}
        yield f"{i:08}", {"png": file.getvalue(), **fields}


@dataclass(frozen=True)
class Captioned:
    """The pictures of a folder: `good` ones with their captions by field, those that have none, those not read."""

    good: dict[Path, dict[str, bytes]]
    silent: list[Path]
    unread: list[Path]


def captioned(folder: Path, otherwise: str = "") -> Captioned:
    """The pictures below `folder` with their captions: those of NAME.txt, NAME.caption, NAME.en.txt, …, in any case.

    `otherwise`: the caption of those that have none.

    Raises:
        UserError: no picture has one.
    """
    there = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(HIDDEN))
    by_name = {(path.parent, path.name.casefold()): path for path in there}
    pictures = [path for path in there if _kind(path) in PICTURES]
    default = {"txt": otherwise.encode()} if otherwise else {}
    beside = {path: _beside(path, by_name) or default for path in pictures}
    good = {path: captions for path, captions in beside.items() if captions}
    if not good:
        raise UserError(
            f"{folder}: {len(pictures)} pictures, none with a caption beside it (fox.jpg and fox.txt); --caption gives "
            "one to all"
        )
    silent = [path for path in pictures if path not in good]
    return Captioned(good, silent, [path for path in there if _kind(path) in UNREAD])


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _beside(path: Path, by_name: Mapping[tuple[Path, str], Path]) -> dict[str, bytes]:
    places = {field: by_name.get((path.parent, f"{path.stem}.{field}".casefold())) for field in (*CAPTIONS, KOHYA)}
    found = {field: place.read_bytes() for field, place in places.items() if place is not None}
    if KOHYA in found:
        found = {"txt": found.pop(KOHYA), **found}
    return found


def files(pictures: Mapping[Path, Mapping[str, bytes]]) -> Iterator[Sample]:
    """Pictures as they are, with their captions."""
    for i, (path, captions) in enumerate(pictures.items()):
        yield f"{i:08}", {_kind(path): path.read_bytes(), **captions}


FORMATS = {"tar": shards.write, "mindrecord": records.write}


def pack(
    samples: Iterator[Sample], out: Path, per_shard: int, progress: Callable[[int], object], form: str = "tar"
) -> int:
    """Write shards of `per_shard` samples in one of FORMATS, 00000.tar and on; how many. Raises: UserError."""
    number = 0
    while part := list(islice(samples, per_shard)):
        FORMATS[form](out / f"{number:05}.{form}", part)
        number += 1
        progress(len(part))
    return number


def left_over(out: Path, count: int, form: str) -> list[Path]:
    """Shards of an earlier, larger run, which the last one did not write over."""
    return sorted(path for path in out.glob(f"[0-9]*.{form}") if path.stem.isdecimal() and int(path.stem) >= count)
