"""MindRecord files as shards: MindSpore's own format, with a row a sample.

Columns: key (string), image (bytes: JPEG, PNG or WebP), caption, caption_en, caption_zh (string; empty: none). Others
are ignored. What is wrong with a sample is said, never fatal: it is left out and listed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

from mindpangu.data.shards import (
    CAPTION_KEYS,
    CAPTIONS,
    PICTURES,
    Bad,
    BadSampleError,
    Sample,
    Shard,
    captions_of,
    picture_of,
    text_of,
)
from mindpangu.errors import UserError

SUFFIX = ".mindrecord"
INDEX = ".db"  # what MindSpore writes beside a file, and needs
TEXT, BYTES = {"type": "string"}, {"type": "bytes"}


@dataclass(frozen=True)
class Row:
    """A sample of a file, by its place."""

    key: str
    number: int


class Records:
    """One file: its samples in order, and what is wrong with the others. It is read forward; going back begins anew."""

    def __init__(self, path: Path) -> None:
        """Raises: UserError where there is no such file."""
        if not path.exists():
            raise UserError(f"{path}: no such file")
        self.path = path
        self.bad: list[Bad] = []
        self.entries: list[Row] = []
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._next = 0
        try:
            columns = self._columns()
            # Without the pictures, which `read` takes one by one.
            for number, row in enumerate(self._all([name for name in columns if name in ("key", *CAPTION_KEYS)])):
                key = str(row.get("key") or number)
                captions = any(str(row.get(name) or "").strip() for name in CAPTION_KEYS)
                reason = ("" if "image" in columns else "no picture") or ("" if captions else "no caption")
                if reason:
                    self.bad.append(Bad(f"{path.name}/{key}", reason))
                else:
                    self.entries.append(Row(key, number))
        except (RuntimeError, ValueError) as error:
            self.bad.append(Bad(path.name, f"not a whole MindRecord file ({str(error).splitlines()[0]})"))

    def _columns(self) -> list[str]:
        from mindspore.mindrecord import FileReader

        reader = FileReader(str(self.path))
        try:
            return list(reader.schema())
        finally:
            reader.close()

    def _all(self, columns: Optional[list[str]] = None) -> Iterator[dict[str, Any]]:
        from mindspore.mindrecord import FileReader

        reader = FileReader(str(self.path), columns=columns or None)
        try:
            yield from reader.get_next()
        finally:
            reader.close()

    def read(self, entry: Row) -> Sample:
        """Raises: BadSampleError."""
        if entry.number < self._next or self._next == 0:
            self._rows, self._next = self._all(), 0
        row: dict[str, Any] = {}
        try:
            while self._next <= entry.number:
                row, self._next = next(self._rows), self._next + 1
        except (RuntimeError, ValueError, StopIteration) as error:
            self._next = 0  # the next one begins anew
            raise BadSampleError(f"not a whole MindRecord file ({' '.join(str(error).split())})") from None
        captions = [text_of(name, str(row[name]).encode()) for name in CAPTION_KEYS if str(row.get(name) or "").strip()]
        return Sample(picture_of(bytes(row["image"])), tuple(captions))


class Archive(Protocol):
    """A shard of either format: `read` takes one of its `entries`."""

    bad: list[Bad]
    entries: list[Any]

    def read(self, entry: Any) -> Sample:
        """Raises: BadSampleError."""


def opened(path: Path) -> Archive:
    """A shard of either format, told by its name. Raises: UserError where there is no such file."""
    return Records(path) if path.suffix == SUFFIX else Shard(path)


def write(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    """A whole file of samples, each a key and {field: content} as in a tar file.

    Raises:
        UserError: a sample has no picture, which a row needs, or a caption that is none; it cannot be written; nothing
            is left.
    """
    from mindspore.mindrecord import FileWriter

    rows = []
    for key, fields in samples:
        picture = next((content for field, content in fields.items() if field in PICTURES and content), None)
        if picture is None:
            raise UserError(f"{path}: sample {key} has no picture, and a row of a MindRecord file needs one")
        texts: dict[str, str] = {}
        for field in fields:
            if field in CAPTIONS:
                try:
                    texts.update(captions_of(field, fields[field]))
                except BadSampleError as error:
                    raise UserError(f"{path}: sample {key}: {error}") from None
        rows.append({"key": key, "image": picture, **{name: texts.get(name, "") for name in CAPTION_KEYS}})
    path.parent.mkdir(parents=True, exist_ok=True)
    # MindSpore notes a file's name in its index, so it is written under that name, in another folder.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            writer = FileWriter(str(made))
            writer.add_schema({"key": TEXT, "image": BYTES, **dict.fromkeys(CAPTION_KEYS, TEXT)}, "captioned pictures")
            writer.write_raw_data(rows)
            writer.commit()
            made.with_name(made.name + INDEX).replace(path.with_name(path.name + INDEX))
            made.replace(path)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None
