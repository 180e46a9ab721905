"""Shards from what one has: a folder of pictures with captions beside them, or scenes of the emoji data set."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from PIL import Image

from mindpangu.data import records, shards
from mindpangu.data.examples import Examples
from mindpangu.data.phrases import LANGUAGES
from mindpangu.data.shards import CAPTIONS, PICTURES
from mindpangu.errors import UserError

Sample = tuple[str, dict[str, bytes]]


def scenes(examples: Examples, count: int) -> Iterator[Sample]:
    """The first `count` scenes as PNG, each with a caption in every language."""
    for i in range(count):
        scene, file = examples.scene(i), io.BytesIO()
        Image.fromarray(examples.image(scene)).save(file, "PNG")
        fields = {f"{x}.txt": examples.caption(scene, i, x).encode() for x in LANGUAGES}
        yield f"{i:08}", {"png": file.getvalue(), **fields}


def captioned(folder: Path, otherwise: str = "") -> tuple[dict[Path, dict[str, bytes]], list[Path]]:
    """The pictures below `folder` with their captions, those of NAME.txt, NAME.en.txt, …, and those that have none.

    `otherwise`: the caption of those.

    Raises:
        UserError: no picture has one.
    """
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in PICTURES)
    default = {"txt": otherwise.encode()} if otherwise else {}
    beside = {path: _beside(path) or default for path in pictures}
    good = {path: captions for path, captions in beside.items() if captions}
    if not good:
        raise UserError(
            f"{folder}: {len(pictures)} pictures, none with a caption beside it (fox.jpg and fox.txt); --caption gives "
            "one to all"
        )
    return good, [path for path in pictures if path not in good]


def _beside(path: Path) -> dict[str, bytes]:
    places = {field: path.with_name(f"{path.stem}.{field}") for field in CAPTIONS}
    return {field: place.read_bytes() for field, place in places.items() if place.is_file()}


def files(pictures: Mapping[Path, Mapping[str, bytes]]) -> Iterator[Sample]:
    """Pictures as they are, with their captions."""
    for i, (path, captions) in enumerate(pictures.items()):
        yield f"{i:08}", {path.suffix.lower().lstrip("."): path.read_bytes(), **captions}


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
