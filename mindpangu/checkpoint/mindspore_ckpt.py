"""MindSpore's .ckpt, read piece by piece: an index of the file first, then one parameter at a time.

The format is protobuf, Checkpoint {repeated Value value = 1} with Value {string tag = 1; TensorProto tensor = 2} and
TensorProto {repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3}. A large parameter is several
values of one tag, whose contents follow each other. MindSpore's own reader takes a whole file into memory; protobuf's
stops at 2 GiB.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from mindpangu.errors import UserError

TYPES = {
    "Float64": np.float64,
    "Float32": np.float32,
    "Float16": np.float16,
    "Int64": np.int64,
    "Int32": np.int32,
    "Int16": np.int16,
    "Int8": np.int8,
    "UInt8": np.uint8,
    "Bool": np.bool_,
}
VARINT, BYTES = 0, 2  # protobuf's wire types
CHECKSUM, CHECKSUM_BYTES = b"crc_num", 17  # an optional tail


@dataclass(frozen=True)
class Entry:
    """One parameter: its type and shape, and where its bytes lie: (offset, length) of each piece."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]


class MindSporeCheckpoint:
    """An index over a .ckpt file: `entries` by name in the file's order."""

    def __init__(self, path: Path) -> None:
        """Read the index; the tensors stay on the disk.

        Raises:
            UserError: absent, not such a file, or truncated.
        """
        self.path = path
        self.entries: dict[str, Entry] = {}
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._index(content)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:  # mmap's word for an empty file is ValueError
            raise UserError(f"{path}: not a MindSpore checkpoint ({error})") from None

    def read(self, name: str) -> np.ndarray:
        """The parameter, as stored.

        Raises:
            UserError: its type is not one we read, or the file has become shorter.
        """
        entry = self.entries[name]
        if entry.dtype not in TYPES:
            raise UserError(f"{self.path}: {name} has type {entry.dtype}; {', '.join(TYPES)} can be read")
        data = bytearray()
        with self.path.open("rb") as file:
            for offset, length in entry.pieces:
                file.seek(offset)
                data += file.read(length)
        values = np.frombuffer(data, TYPES[entry.dtype])
        if values.size != prod(entry.shape):
            raise UserError(f"{self.path}: {name} has {values.size} numbers for the shape {list(entry.shape)}")
        return values.reshape(entry.shape)

    def _index(self, content: mmap.mmap) -> None:
        end = len(content)
        if content[end - CHECKSUM_BYTES : end - CHECKSUM_BYTES + len(CHECKSUM)] == CHECKSUM:
            end -= CHECKSUM_BYTES
        fields = _Fields(content, self.path)
        for number, start, stop in fields.within(0, end):
            if number == 1:
                self._value(fields, start, stop)

    def _value(self, fields: _Fields, start: int, stop: int) -> None:
        name, dtype, shape, piece = "", "", [], (0, 0)
        for number, a, b in fields.within(start, stop):
            if number == 1:
                name = fields.text(a, b)
            elif number == 2:
                for inner, c, d in fields.within(a, b):
                    if inner == 1:
                        shape += fields.numbers(c, d)
                    elif inner == 2:
                        dtype = fields.text(c, d)
                    elif inner == 3:
                        piece = (c, d - c)
        before = self.entries.get(name)
        pieces = before.pieces if before else ()
        self.entries[name] = Entry(dtype, tuple(shape), (*pieces, piece))


class _Fields:
    """Walks protobuf messages by their wire format."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self.content, self.path = content, path

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(field number, start, stop) of each field's payload."""
        while start < stop:
            key, payload = self._varint(start, stop)
            number, kind = key >> 3, key & 7
            if kind == BYTES:
                length, payload = self._varint(payload, stop)
                end = payload + length
            elif kind == VARINT:
                _, end = self._varint(payload, stop)
            else:
                raise UserError(f"{self.path}: not a MindSpore checkpoint (wire type {kind} at byte {start})")
            if end > stop:
                raise UserError(
                    f"{self.path}: truncated or corrupt: what starts at byte {start} should end at byte {end}, and the "
                    f"file has {len(self.content)}; fetch it again"
                )
            yield number, payload, end
            start = end

    def numbers(self, start: int, stop: int) -> list[int]:
        """The varints of a payload."""
        found = []
        while start < stop:
            value, start = self._varint(start, stop)
            found.append(value)
        return found

    def text(self, start: int, stop: int) -> str:
        """A string's payload."""
        try:
            return self.content[start:stop].decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: not a MindSpore checkpoint (no text at byte {start})") from None

    def _varint(self, start: int, stop: int) -> tuple[int, int]:
        value, shift = 0, 0
        while start < stop and shift < 64:
            byte = self.content[start]
            value |= (byte & 0x7F) << shift
            start, shift = start + 1, shift + 7
            if byte < 0x80:
                return value, start
        raise UserError(f"{self.path}: truncated or not a MindSpore checkpoint (at byte {start}); fetch it again")
