"""manifest.jsonl: one line a picture. The contract between `mindpangu data` and everything that reads pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from mindpangu.checkpoint.store import write_atomically
from mindpangu.errors import UserError

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Record:
    """One picture: a concept drawn in a style.

    `size` is the stored side in pixels; `native` the side of the original, 0 for a drawing (SVG) that has none.
    """

    file: str
    concept: str
    style: str
    name: dict[str, str]
    tags: dict[str, list[str]]
    group: str
    subgroup: str
    native: int
    size: int
    licence: str
    split: str


def write(records: Iterable[Record], path: Path) -> None:
    """Write the manifest, whole or not at all. Raises: UserError."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
    write_atomically(path, "".join(lines).encode())


def read(folder: Path, styles: Optional[Iterable[str]] = None, groups: Optional[Iterable[str]] = None) -> list[Record]:
    """The records of `folder`/manifest.jsonl, in file order, of the given styles and groups (None: all).

    Raises:
        UserError: no manifest, a damaged line (with its number), or nothing left after the filter.
    """
    path = folder / "manifest.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such file; build the data with `mindpangu data emoji --out {folder}`")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a manifest line ({error})") from None
    wanted = set(styles) if styles is not None else {r.style for r in records}
    allowed = set(groups) if groups is not None else {r.group for r in records}
    kept = [r for r in records if r.style in wanted and r.group in allowed]
    if not kept:
        have = ", ".join(sorted({r.style for r in records}))
        raise UserError(f"{path}: no picture of the styles and groups asked for; styles there: {have or 'none'}")
    return kept
