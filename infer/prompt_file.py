"""Files of prompts: a line of text, a row of a table or a JSON object a picture, each with options of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Optional

import yaml

from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.infer.image_file import FORMATS
from mindpangu.infer.request import OPTION_NAMES, SamplingOptions

# Columns of a table that are text whatever they look like.
WORDS = ("prompt", "negative", "file", "init", "mask", "coop", "line")
OF_ALL = ("steps", "sampler", "sigmas")  # options that a recipe's members have in common
OF_MEMBERS = ("init", *(name for name in OPTION_NAMES if name not in OF_ALL))  # what a recipe says itself
MAX_N, MAX_NAME = 10_000, 200
KINDS = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True)
class Row(SamplingOptions):
    """What a row asks for; the options are `generate`'s.

    `file`: where its picture goes, below the output folder; `coop`: a recipe of several models (configs/infer/), which
    then says what the members are asked for; `line`: the picture that their ControlNets look at.
    """

    prompt: str = ""
    file: Optional[str] = None
    n: int = 1
    seed: int = 0
    init: Optional[Path] = None
    mask: Optional[Path] = None
    coop: Optional[Path] = None
    line: Optional[Path] = None

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_N:
            raise ValueError(f"n is {self.n}; 1 to {MAX_N} is allowed")
        for key in ("prompt", "negative", "file"):
            try:
                (getattr(self, key) or "").encode()
            except UnicodeEncodeError:
                raise ValueError(f"{key} holds half a character (a lone surrogate)") from None
        if self.file is not None:
            place = self.place
            if place.is_absolute() or ".." in place.parts or not place.name or ":" in self.file or "\0" in self.file:
                raise ValueError(f"file {self.file!r} leaves the output folder, or names none")
            if any(len(part.encode()) > MAX_NAME for part in place.parts):
                raise ValueError(f"file: a name of more than {MAX_NAME} bytes")
            if any(part.lower().endswith(tuple(FORMATS)) for part in place.parts[:-1]):
                raise ValueError(f"file {self.file!r}: a folder is named like a picture")
        if self.mask is not None and self.init is None:
            raise ValueError("mask needs init, the picture that it belongs to")
        if self.line is not None and self.coop is None:
            raise ValueError("line needs coop, the recipe whose members look at it")
        theirs = [key for key in OF_MEMBERS if self.coop is not None and getattr(self, key) != getattr(Row, key)]
        if theirs:
            raise ValueError(f"{theirs[0]} does not go with coop; the recipe says what its members are asked for")

    @property
    def place(self) -> PurePosixPath:
        """`file`, with one kind of slash."""
        return PurePosixPath((self.file or "").replace("\\", "/"))

    @property
    def shape(self) -> tuple[Any, ...]:
        """What rows that are drawn together have in common: everything but prompt, file, n, seed and line."""
        own = ("prompt", "file", "n", "seed", "line")
        return tuple(sorted((key, repr(value)) for key, value in vars(self).items() if key not in own))

    def files(self, line: int, suffix: str) -> list[str]:
        """The names of its pictures, by default its line's number."""
        stem = f"{line:07}" if self.file is None else str(self.place.with_suffix(""))
        return [f"{stem}{suffix}"] if self.n == 1 else [f"{stem}-{index:03}{suffix}" for index in range(self.n)]


def read_rows(path: Path, defaults: Mapping[str, Any]) -> Iterator[tuple[int, Row | str]]:
    """Line number and row, or why it is none, of a .txt (a prompt a line), .csv (with a head) or .jsonl.

    `defaults`: options of rows that do not say. Empty lines are no rows.

    Raises:
        UserError: no such file, of another kind, not UTF-8, or a table without a column "prompt".
    """
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: a file of prompts ends in {', '.join(KINDS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    for line, values in _values(path, text):
        if isinstance(values, str):
            yield line, values
            continue
        if "prompt" not in {**defaults, **values}:
            yield line, f"line {line}: prompt: missing; say what to draw"
            continue
        try:
            yield line, parse({**defaults, **values}, Row, f"line {line}")
        except UserError as error:
            yield line, str(error)


def _values(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    kind = path.suffix.lower()
    if kind == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        if "prompt" not in (reader.fieldnames or ()):
            raise UserError(f"{path}: the first line names the columns, and one of them is prompt")
        rows = iter(reader)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, f"line {reader.line_num}: not a row of a table ({error})"
                continue
            yield reader.line_num, _cells(row, reader.line_num)
    for line, one in enumerate(text.split("\n"), start=1):
        if not one.strip():
            continue
        if kind == ".txt":
            yield line, {"prompt": one.strip()}
            continue
        try:
            values = json.loads(one)
        except (ValueError, RecursionError):
            yield line, f"line {line}: not JSON"
            continue
        yield line, values if isinstance(values, dict) else f"line {line}: not an object with a prompt"


def _cells(row: Mapping[Any, Any], line: int) -> dict[str, Any] | str:
    """A table's cells as values; empty ones do not say."""
    if None in row:
        return f"line {line}: more cells than columns; put a cell with commas into quotation marks"
    found: dict[str, Any] = {}
    for key, cell in row.items():
        if cell is None or not cell.strip():
            continue
        try:
            found[key] = cell.strip() if key in WORDS else yaml.safe_load(cell)
        except yaml.YAMLError:
            return f"line {line}: {key}: {cell!r} is not a value"
    return found
