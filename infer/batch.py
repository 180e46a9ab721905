"""Offline batch inference: thousands of prompts, many processes, each picture exactly once.

What is drawn together, a unit, is a function of the file of prompts and the settings alone, and unit k belongs to
process k mod ranks. So a run that was killed, or goes on with another number of processes, draws the same batches, and
a picture's bytes do not depend on it. A unit that is whole on the disk is noted in a journal, and not drawn again.
Rows are planned in blocks, one after the other: so the first pictures come at once, and memory does not depend on how
many rows there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.store import file_digest, whole_lines, write_atomically
from mindpangu.config import load
from mindpangu.data.shards import write as write_shard
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.drawing import Drawing
from mindpangu.infer.image_file import FORMATS, encoded
from mindpangu.infer.init_image import InitImage
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.prompt_file import MAX_REASON, Row, read_rows
from mindpangu.infer.request import Request, check, request_for
from mindpangu.parallel.ranks import Ranks

RUN, MANIFEST, ERRORS, JOURNAL = "run.json", "manifest.jsonl", "errors.jsonl", "journal-{rank}.jsonl"
BLOCK = 20_000  # rows that are planned together


@dataclass(frozen=True)
class Picture:
    """Picture `index` of the row on a line, and the file that it goes to."""

    line: int
    row: Row
    index: int
    file: str


class BatchModels:
    """The run's model, and the recipes that rows ask for; each model is loaded once."""

    def __init__(self, model: PanGuDraw, name: str, device: str = "auto") -> None:
        """`name`: what recipes call the run's model, a zoo name or a folder."""
        self.model, self.device = model, device
        self._models = {name: model}
        self._recipes: dict[Path, CoopDraw] = {}

    def identity(self, row: Row) -> str:
        """What tells apart who draws. Raises: UserError where a recipe is none."""
        return self.model.digest if row.coop is None else self._recipe(row, row.coop).digest

    def check(self, pictures: Sequence[Picture]) -> None:
        """Raises: UserError where pictures of alike rows cannot be drawn."""
        row = pictures[0].row
        if row.coop is None:
            check(self._request(pictures), self.model.spec)
        else:
            together = self._recipe(row, row.coop)
            together.asked(**_asked(pictures[:1]))
            together.looking_at(_lines(pictures[:1]), 1)

    def draw(self, pictures: Sequence[Picture]) -> list[Drawing]:
        """Pictures of alike rows, drawn together."""
        row = pictures[0].row
        if row.coop is None:
            return list(self.model.draw(self._request(pictures)))
        return self._recipe(row, row.coop)(**_asked(pictures), lines=_lines(pictures))

    def graph_key(self, pictures: Sequence[Picture]) -> tuple[Any, ...]:
        """What the graphs of pictures of alike rows depend on."""
        row = pictures[0].row
        if row.coop is None:
            return self.model.digest, self._request(pictures).graph_key
        together = self._recipe(row, row.coop)
        return together.digest, together.asked(**_asked(pictures)).graph_key

    def _request(self, pictures: Sequence[Picture]) -> Request:
        row, spec = pictures[0].row, self.model.spec
        size = row.size or spec.default_size
        init_image = None
        if row.init is not None:
            try:
                init_image = InitImage.open(row.init, row.mask, parse_size(size))
            except ValueError as error:
                raise UserError(str(error)) from None
        return request_for(spec, **{**row.options, **_asked(pictures)}, init_image=init_image)

    def _recipe(self, row: Row, recipe: Path) -> CoopDraw:
        if recipe not in self._recipes:
            self._recipes[recipe] = CoopDraw(load(recipe, CoopConfig), self.device, self._models)
        return self._recipes[recipe]


def _lines(pictures: Sequence[Picture]) -> list[Path]:
    return [picture.row.line for picture in pictures if picture.row.line is not None]


def _asked(pictures: Sequence[Picture]) -> dict[str, Any]:
    """What alike rows' pictures are asked for, but for what a recipe says."""
    row = pictures[0].row
    return {
        "prompts": tuple(picture.row.prompt for picture in pictures),
        "seed": tuple(picture.row.seed + picture.index for picture in pictures),
        "steps": row.steps,
        "sampler": row.sampler,
        "sigmas": row.sigmas,
        "batch": len(pictures),
    }


@dataclass(frozen=True)
class Unit:
    """Pictures that are finished together: batches, each drawn at once; one, or as many as fill a shard."""

    number: int
    batches: tuple[tuple[Picture, ...], ...]
    shard: Optional[str] = None

    @property
    def pictures(self) -> int:
        """How many."""
        return sum(map(len, self.batches))

    @property
    def files(self) -> list[str]:
        """What it leaves."""
        return [self.shard] if self.shard else [picture.file for batch in self.batches for picture in batch]


@dataclass(frozen=True)
class Plan:
    """A block of rows: its units, rows that cannot be drawn as (line, reason), and what tells this run from others.

    `digest` is of this block and all before it; `last`: no block follows.
    """

    number: int
    units: tuple[Unit, ...]
    bad: tuple[tuple[int, str], ...]
    digest: str
    last: bool

    @property
    def pictures(self) -> int:
        """How many will have been drawn in the end."""
        return sum(unit.pictures for unit in self.units)


class Names:
    """The names that pictures have been given, on the disk where they are many."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("")  # a file of SQLite's own, which goes with the connection
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def take(self, files: Sequence[str]) -> Optional[str]:
        """The first that is taken already; where none is, all are from now on."""
        names = [(_taken_as(file),) for file in files]
        for file, name in zip(files, names):
            if self._table.execute("SELECT 1 FROM names WHERE name = ?", name).fetchone():
                return file
        self._table.executemany("INSERT OR IGNORE INTO names VALUES (?)", names)
        return None


def make_plans(
    prompts: Path, defaults: Mapping[str, Any], models: BatchModels, batch: int, suffix: str, per_shard: Optional[int]
) -> Iterator[Plan]:
    """Read a file of prompts in blocks, leave out what `models` cannot draw, and put alike rows of a block together.

    Raises:
        UserError: the file cannot be read, or an option is none.
    """
    if suffix not in FORMATS:
        raise UserError(f"format {suffix.lstrip('.')} is unknown; allowed: {', '.join(s.lstrip('.') for s in FORMATS)}")
    if batch < 1 or (per_shard is not None and per_shard < 1):
        raise UserError(f"batch {batch}, per shard {per_shard}: at least 1 is needed")
    rows, names, content = read_rows(prompts, defaults), Names(), lru_cache(maxsize=BLOCK)(file_digest)
    digest = hashlib.sha256(repr((models.model.digest, batch, suffix, per_shard)).encode())
    block, number, units = list(islice(rows, BLOCK)), 0, 0
    while True:
        following = list(islice(rows, BLOCK))
        alike: dict[tuple[Any, ...], list[Picture]] = {}
        bad: list[tuple[int, str]] = []
        for line, row in block:
            problem = row if isinstance(row, str) else _problem(row, line, models, suffix, names)
            if isinstance(row, str) or problem:
                bad.append((line, problem))
                continue
            held = tuple(content(path) for path in (row.init, row.mask, row.line) if path is not None)
            digest.update(repr((line, row, models.identity(row), held)).encode())
            pictures = (Picture(line, row, index, file) for index, file in enumerate(row.files(line, suffix)))
            alike.setdefault(row.shape, []).extend(pictures)
        batches = [tuple(one[i : i + batch]) for one in alike.values() for i in range(0, len(one), batch)]
        plan = Plan(
            number, tuple(_units(batches, per_shard, units)), tuple(bad), digest.hexdigest()[:16], not following
        )
        yield plan
        if plan.last:
            return
        block, number, units = following, number + 1, units + len(plan.units)


def _taken_as(file: str) -> str:
    """What names must differ in: not in case, as on some file systems, nor in dots, which shards write as _."""
    stem, _, suffix = file.casefold().rpartition(".")
    return f"{stem.replace('.', '_')}.{suffix}"


def _problem(row: Row, line: int, models: BatchModels, suffix: str, names: Names) -> str:
    """Why a row cannot be drawn; "" where it can, and its pictures have their names."""
    try:
        models.check([Picture(line, row, index, "") for index in range(row.n)])
    except UserError as error:
        return str(error)[:MAX_REASON]
    except Exception as error:  # one row is no reason to draw none, whatever library raised it
        return f"line {line}: {type(error).__name__}: {' '.join(str(error).split())}"[:MAX_REASON]
    taken = names.take(row.files(line, suffix))
    return f"file {taken} is another row's already" if taken else ""


def _units(batches: Sequence[tuple[Picture, ...]], per_shard: Optional[int], number: int) -> Iterator[Unit]:
    """Numbered from `number` on; of shards the last one may be smaller."""
    if per_shard is None:
        yield from (Unit(number + i, (one,)) for i, one in enumerate(batches))
        return
    waiting: list[tuple[Picture, ...]] = []
    for i, one in enumerate(batches):
        waiting.append(one)
        if sum(map(len, waiting)) >= per_shard or i == len(batches) - 1:
            yield Unit(number, tuple(waiting), f"{number:05}.tar")
            waiting, number = [], number + 1


class Run:
    """A plan's work in a folder, for one of several processes."""

    def __init__(self, plan: Plan, out: Path, batch: int, ranks: Ranks, done: Optional[np.ndarray] = None) -> None:
        """Begin it, or go on. `done`: what `finished` says of the folder, if it has been asked.

        Raises:
            UserError: the folder holds another run, or cannot be written.
        """
        self.plan, self.out, self.batch, self.ranks = plan, out, batch, ranks
        known = _digests_in(out / RUN)
        if known[plan.number : plan.number + 1] not in ([], [plan.digest]):
            raise UserError(f"{out}: holds a run of other prompts, settings or another model; choose another --out")
        if ranks.first:
            self._note([*known[: plan.number], plan.digest, *known[plan.number + 1 :]])
        mine = [unit for unit in plan.units if unit.number % ranks.size == ranks.rank]
        done = finished(out) if done is None else done
        noted = np.isin([unit.number for unit in mine], done)
        self.left = [unit for unit, is_noted in zip(mine, noted) if not is_noted or not whole(out, unit)]
        self.done = sum(unit.pictures for unit in mine) - sum(unit.pictures for unit in self.left)

    def _note(self, digests: Sequence[str]) -> None:
        """Say what is drawn and what cannot be; a run that goes on says it again from the first block on."""
        self.out.mkdir(parents=True, exist_ok=True)
        how = "a" if self.plan.number else "w"
        with (self.out / ERRORS).open(how, encoding="utf-8") as errors:
            errors.writelines(_line({"line": line, "reason": why}) for line, why in self.plan.bad)
        with (self.out / MANIFEST).open(how, encoding="utf-8") as manifest:
            manifest.writelines(
                _line({"file": picture.file, "line": picture.line, **_said(picture), "shard": unit.shard})
                for unit in self.plan.units
                for batch in unit.batches
                for picture in batch
            )
        write_atomically(self.out / RUN, _line({"digests": digests}).encode())

    def __call__(self, models: BatchModels) -> Iterator[int]:
        """Draw what is left; yields how many pictures each unit has, as it is finished."""
        journal = self.out / JOURNAL.format(rank=self.ranks.rank)
        if journal.exists():  # a line that was being written when the process ended goes
            write_atomically(journal, "".join(whole_lines(journal)).encode())
        with journal.open("a", encoding="utf-8") as noted:
            for unit in self.left:
                self._finish(unit, [self._draw(models, pictures) for pictures in unit.batches])
                noted.write(json.dumps({"unit": unit.number, "pictures": unit.pictures}) + "\n")
                noted.flush()
                os.fsync(noted.fileno())
                yield unit.pictures

    def graph_key(self, models: BatchModels) -> tuple[Any, ...]:
        """What the graphs of what is left depend on, in their order; for `runtime.kept_graphs`."""
        first: dict[Any, Sequence[Picture]] = {}
        for unit in self.left:
            for pictures in unit.batches:
                first.setdefault(pictures[0].row.shape, pictures)
        return tuple(models.graph_key(self._filled(pictures)) for pictures in first.values())

    def _filled(self, pictures: Sequence[Picture]) -> list[Picture]:
        """A batch filled up to the others' size, so that nothing is compiled for it."""
        return [*pictures, *[pictures[-1]] * (self.batch - len(pictures))]

    def _draw(self, models: BatchModels, pictures: Sequence[Picture]) -> list[Drawing]:
        """The drawings of a batch."""
        return models.draw(self._filled(pictures))[: len(pictures)]

    def _finish(self, unit: Unit, drawn: Sequence[Sequence[Drawing]]) -> None:
        pairs = [pair for pictures, drawings in zip(unit.batches, drawn) for pair in zip(pictures, drawings)]
        if unit.shard is None:
            for picture, drawing in pairs:
                write_atomically(self.out / picture.file, encoded(drawing, Path(picture.file).suffix))
            return
        samples = []
        for picture, drawing in pairs:
            stem, _, suffix = picture.file.rpartition(".")
            settings = json.dumps(drawing.settings, ensure_ascii=False).encode()
            fields = {suffix: encoded(drawing, f".{suffix}"), "txt": drawing.prompt.encode(), "settings": settings}
            samples.append((stem.replace(".", "_"), fields))
        write_shard(self.out / unit.shard, samples)


def _said(picture: Picture) -> dict[str, Any]:
    return {"prompt": picture.row.prompt, "seed": picture.row.seed + picture.index}


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def whole(out: Path, unit: Unit) -> bool:
    """Whether all that the unit leaves is there, and not empty."""
    return all(_is_there(out / file) for file in unit.files)


def gone(out: Path) -> int:
    """How many of the pictures that the folder's manifest lists are not there."""
    is_there = lru_cache(maxsize=1)(lambda file: _is_there(out / file))  # a shard's pictures stand together
    listed = (json.loads(line) for line in whole_lines(out / MANIFEST))
    return sum(not is_there(one["shard"] or one["file"]) for one in listed)


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _digests_in(known: Path) -> list[str]:
    """Of the blocks of the run that a folder holds, none where it holds none. Raises: UserError."""
    try:
        return list(map(str, json.loads(known.read_text(encoding="utf-8"))["digests"]))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError):
        raise UserError(f"{known}: damaged, so whose pictures these are is unknown; choose another --out") from None


def finished(out: Path) -> np.ndarray:
    """The numbers of the units that any process has noted as finished, int64; lines that are none are passed over."""
    done = array("q")
    for journal in out.glob(JOURNAL.format(rank="*")):
        for line in whole_lines(journal):
            try:
                done.append(int(json.loads(line)["unit"]))
            except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
                continue
    return np.unique(np.array(done, np.int64))
