"""Shards from what one has: a folder of pictures with captions beside them, or scenes of the emoji data set."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from mindpangu.data.captions import LANGUAGES
from mindpangu.data.examples import Examples
from mindpangu.data.shards import CAPTIONS, PICTURES, write
from mindpangu.errors import UserError

Sample = tuple[str, dict[str, bytes]]


def scenes(examples: Examples, count: int) -> Iterator[Sample]:
    """The first `count` scenes as PNG, each with a caption in every language."""
    for i in range(count):
        scene, file = examples.scene(i), io.BytesIO()
        Image.fromarray(examples.image(scene)).save(file, "PNG")
        fields = {f"{x}.txt": examples.caption(scene, i, x).encode() for x in LANGUAGES}
        yield f"{i:08}", {"png": file.getvalue(), **fields}


def captioned(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures below `folder` that have a caption (NAME.txt, NAME.en.txt, NAME.zh.txt, NAME.json), and the others.

    Raises:
        UserError: no picture has one.
    """
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in PICTURES)
    good = [path for path in pictures if _beside(path)]
    if not good:
        raise UserError(f"{folder}: {len(pictures)} pictures, none with a caption beside it (fox.jpg and fox.txt)")
    return good, [path for path in pictures if path not in set(good)]


def files(folder: Path, pictures: Iterable[Path]) -> Iterator[Sample]:
    """Pictures as they are, with their captions."""
    for i, path in enumerate(pictures):
        fields = {path.suffix.lower().lstrip("."): path.read_bytes()}
        yield f"{i:08}", {**fields, **{field: beside.read_bytes() for field, beside in _beside(path).items()}}


def _beside(path: Path) -> dict[str, Path]:
    places = {field: path.with_name(f"{path.stem}.{field}") for field in (*CAPTIONS, "json")}
    return {field: place for field, place in places.items() if place.is_file()}


def pack(samples: Iterator[Sample], out: Path, per_shard: int, progress: Callable[[int], object]) -> int:
    """Write shards of `per_shard` samples, 00000.tar and on; how many there are. Raises: UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    number = 0
    while part := list(islice(samples, per_shard)):
        write(out / f"{number:05}.tar", part)
        number += 1
        progress(len(part))
    return number
