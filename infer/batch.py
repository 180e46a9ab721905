"""Offline batch inference: thousands of prompts, many processes, each picture exactly once.

What is drawn together, a unit, is a function of the file of prompts and the settings alone, and unit k belongs to
process k mod ranks. So a run that was killed, or goes on with another number of processes, draws the same batches, and
a picture's bytes do not depend on it. A unit that is whole on the disk is noted in a journal, and not drawn again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

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

PLAN, ERRORS, JOURNAL = "run.json", "errors.jsonl", "journal-{rank}.jsonl"


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
    """All units, rows that cannot be drawn as (line, reason), and what tells this run from others."""

    units: tuple[Unit, ...]
    bad: tuple[tuple[int, str], ...]
    digest: str

    @property
    def pictures(self) -> int:
        """How many will have been drawn in the end."""
        return sum(unit.pictures for unit in self.units)


def make_plan(
    prompts: Path, defaults: Mapping[str, Any], models: BatchModels, batch: int, suffix: str, per_shard: Optional[int]
) -> Plan:
    """Read a file of prompts, leave out what `models` cannot draw, and put alike rows together.

    Raises:
        UserError: the file cannot be read, or an option is none.
    """
    if suffix not in FORMATS:
        raise UserError(f"format {suffix.lstrip('.')} is unknown; allowed: {', '.join(s.lstrip('.') for s in FORMATS)}")
    if batch < 1 or (per_shard is not None and per_shard < 1):
        raise UserError(f"batch {batch}, per shard {per_shard}: at least 1 is needed")
    alike: dict[tuple[Any, ...], list[Picture]] = {}
    bad: list[tuple[int, str]] = []
    taken: set[str] = set()
    read: dict[Path, str] = {}
    digest = hashlib.sha256(repr((models.model.digest, batch, suffix, per_shard)).encode())
    for line, row in read_rows(prompts, defaults):
        problem = row if isinstance(row, str) else _problem(row, line, models, suffix, taken)
        if isinstance(row, str) or problem:
            bad.append((line, problem))
            continue
        digest.update(repr((line, row, models.identity(row), _content(row, read))).encode())
        files = row.files(line, suffix)
        taken.update(map(_taken_as, files))
        alike.setdefault(row.shape, []).extend(Picture(line, row, index, file) for index, file in enumerate(files))
    batches = [tuple(one[i : i + batch]) for one in alike.values() for i in range(0, len(one), batch)]
    return Plan(tuple(_units(batches, per_shard)), tuple(bad), digest.hexdigest()[:16])


def _content(row: Row, read: dict[Path, str]) -> tuple[str, ...]:
    """What a row's pictures hold, so that another one of the same name is another run; `read`: those read before."""
    paths = [path for path in (row.init, row.mask, row.line) if path is not None]
    read.update({path: file_digest(path) for path in paths if path not in read})
    return tuple(read[path] for path in paths)


def _taken_as(file: str) -> str:
    """What names must differ in: not in case, as on some file systems, nor in dots, which shards write as _."""
    stem, _, suffix = file.casefold().rpartition(".")
    return f"{stem.replace('.', '_')}.{suffix}"


def _problem(row: Row, line: int, models: BatchModels, suffix: str, taken: set[str]) -> str:
    """Why a row cannot be drawn; "" where it can."""
    try:
        models.check([Picture(line, row, index, "") for index in range(row.n)])
    except UserError as error:
        return str(error)[:MAX_REASON]
    except Exception as error:  # one row is no reason to draw none, whatever library raised it
        return f"line {line}: {type(error).__name__}: {' '.join(str(error).split())}"[:MAX_REASON]
    again = [file for file in row.files(line, suffix) if _taken_as(file) in taken]
    return f"file {again[0]} is another row's already" if again else ""


def _units(batches: Sequence[tuple[Picture, ...]], per_shard: Optional[int]) -> Iterator[Unit]:
    if per_shard is None:
        yield from (Unit(number, (one,)) for number, one in enumerate(batches))
        return
    waiting: list[tuple[Picture, ...]] = []
    number = 0
    for i, one in enumerate(batches):
        waiting.append(one)
        if sum(map(len, waiting)) >= per_shard or i == len(batches) - 1:
            yield Unit(number, tuple(waiting), f"{number:05}.tar")
            waiting, number = [], number + 1


class Run:
    """A plan's work in a folder, for one of several processes."""

    def __init__(self, plan: Plan, out: Path, batch: int, ranks: Ranks) -> None:
        """Begin it, or go on.

        Raises:
            UserError: the folder holds another run, or cannot be written.
        """
        self.plan, self.out, self.batch, self.ranks = plan, out, batch, ranks
        known = out / PLAN
        if known.exists() and _digest_in(known) != plan.digest:
            raise UserError(f"{out}: holds a run of other prompts, settings or another model; choose another --out")
        if ranks.first:
            errors = [json.dumps({"line": line, "reason": why}, ensure_ascii=False) + "\n" for line, why in plan.bad]
            write_atomically(out / ERRORS, "".join(errors).encode())
            write_atomically(known, (json.dumps({"digest": plan.digest, "pictures": plan.pictures}) + "\n").encode())
        mine = [unit for unit in plan.units if unit.number % ranks.size == ranks.rank]
        done = finished(out)
        self.left = [unit for unit in mine if unit.number not in done or not whole(out, unit)]
        self.done = sum(unit.pictures for unit in mine) - sum(unit.pictures for unit in self.left)

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


def whole(out: Path, unit: Unit) -> bool:
    """Whether all that the unit leaves is there, and not empty."""
    return all((out / file).is_file() and (out / file).stat().st_size for file in unit.files)


def _digest_in(known: Path) -> str:
    """Of the run that a folder holds. Raises: UserError."""
    try:
        return str(json.loads(known.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, TypeError, LookupError):
        raise UserError(f"{known}: damaged, so whose pictures these are is unknown; choose another --out") from None


def finished(out: Path) -> set[int]:
    """The numbers of the units that any process has noted as finished; lines that are none are passed over."""
    done: set[int] = set()
    for journal in out.glob(JOURNAL.format(rank="*")):
        for line in whole_lines(journal):
            try:
                done.add(int(json.loads(line)["unit"]))
            except (ValueError, TypeError, LookupError, RecursionError):
                continue
    return done
