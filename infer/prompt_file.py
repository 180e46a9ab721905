"""Files of prompts: a line of text, a row of a table or a JSON object a picture, each with options of its own."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from mindpangu.config import is_text, open_text, parse
from mindpangu.errors import UserError
from mindpangu.infer.image_file import FORMATS
from mindpangu.infer.request import OPTION_NAMES, SamplingOptions

# Columns of a table that are text whatever they look like.
WORDS = ("prompt", "negative", "file", "init", "mask", "coop", "line")
OF_ALL = ("steps", "sampler", "sigmas")  # options that a recipe's members have in common
OF_MEMBERS = ("init", *(name for name in OPTION_NAMES if name not in OF_ALL))  # what a recipe says itself
MAX_N, MAX_NAME = 10_000, 200
MAX_REASON = 500  # characters of what is wrong with a row
KINDS = (".txt", ".csv", ".jsonl")
PAIR = r"""["']?(\w+)["']?\s*[=:]\s*(-?\d{1,9}(?:\.\d{1,9})?)"""  # of a cell such as noto=2


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
            if not is_text(getattr(self, key) or ""):
                raise ValueError(f"{key} holds half a character (a lone surrogate)")
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
        place = self.place
        if place.suffix.lower() in FORMATS:  # any other suffix is part of the name
            place = place.with_suffix("")
        stem = f"{line:07}" if self.file is None else str(place)
        return [f"{stem}{suffix}"] if self.n == 1 else [f"{stem}-{index:03}{suffix}" for index in range(self.n)]


def read_rows(path: Path, defaults: Mapping[str, Any]) -> Iterator[tuple[int, Row | str]]:
    """Line number and row, or why it is none, of a .txt (a prompt a line), .csv (with a head) or .jsonl.

    `defaults`: options of rows that do not say. Empty lines are no rows.

    Raises:
        UserError: no such file, of another kind, not UTF-8, or a table without a column "prompt".
    """
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: a file of prompts ends in {', '.join(KINDS)}")
    with open_text(path) as lines:
        for line, values in _values(path, lines):
            if isinstance(values, str):
                yield line, values
                continue
            if "prompt" not in {**defaults, **values}:
                yield line, f"line {line}: prompt: missing; say what to draw"
                continue
            try:
                yield line, parse({**defaults, **values}, Row, f"line {line}")
            except UserError as error:
                yield line, str(error)[:MAX_REASON]


def _values(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    kind = path.suffix.lower()
    if kind == ".csv":
        reader = csv.DictReader(lines)
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
    for line, one in enumerate(lines, start=1):
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
    cells = {key: cell.strip() for key, cell in row.items() if cell is not None and cell.strip()}
    return {key: cell if key in WORDS else _value(cell) for key, cell in cells.items()}


def _value(cell: str) -> Any:
    """A number, true or false, {"noto": 2} or noto=2, fluent_3d=1, or else text."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    pairs = [re.fullmatch(PAIR, one.strip()) for one in cell.strip("{} ").split(",")]
    if all(pairs):
        return {pair[1]: float(pair[2]) for pair in pairs if pair}
    return {"true": True, "false": False}.get(cell.lower(), cell)
