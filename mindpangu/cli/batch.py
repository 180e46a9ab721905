"""`mindpangu batch`: thousands of prompts from a file, each drawn exactly once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tqdm import tqdm

from mindpangu import runtime
from mindpangu.cli.generate import DEFAULT_MODEL, check_writable
from mindpangu.config import put
from mindpangu.errors import UserError

if TYPE_CHECKING:
    from mindpangu.infer.batch import BatchModels, Plan
    from mindpangu.parallel.ranks import Ranks

BAD_ROWS = 3  # exit code: everything is drawn but what errors.jsonl lists


def batch(
    prompts: Path = typer.Argument(
        ..., help=".txt (a prompt a line), .csv or .jsonl with options a row; docs/batch.md."
    ),
    out: Path = typer.Option(..., help="Folder to write; a second run goes on where the first one stopped."),
    set_: list[str] = typer.Option([], "--set", help="key=value for rows that do not say, for example steps=20."),
    batch_size: int = typer.Option(8, "--batch", help="Pictures drawn together."),
    form: str = typer.Option("png", "--format", help="png, webp (lossless) or jpg."),
    shards: bool = typer.Option(False, "--shards", help="Tar files in WebDataset's layout instead of single pictures."),
    per_shard: int = typer.Option(1000, help="Pictures a shard, at least."),
    model: str = typer.Option(DEFAULT_MODEL, help="Zoo name or model folder."),
    device: str = typer.Option("auto", help="auto, CPU or Ascend."),
) -> None:
    """Draw a file of prompts; under msrun, by several processes. Exit code 3: some rows could not be drawn."""
    from mindpangu.checkpoint.store import only_writer
    from mindpangu.infer.batch import BatchModels, make_plans
    from mindpangu.infer.pipeline import PanGuDraw
    from mindpangu.parallel.ranks import join

    check_writable(out)
    defaults: dict[str, Any] = {}
    for text in set_:
        put(defaults, text)
    models = BatchModels(PanGuDraw.from_pretrained(model, device), model, device)
    ranks = join()
    plans = make_plans(prompts, defaults, models, batch_size, f".{form}", per_shard if shards else None)
    first = next(plans)  # what is wrong with the whole file is said before anything is written
    with prompts.open("rb") as lines:
        expected = sum(1 for _ in lines)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out) if ranks.first else nullcontext():
        bad = _draw(chain([first], plans), expected, out, batch_size, models, ranks)
    if bad:
        raise typer.Exit(BAD_ROWS)


def _draw(plans: Iterable[Plan], expected: int, out: Path, batch_size: int, models: BatchModels, ranks: Ranks) -> int:
    """Draw what is left, with progress, and write the summary; the number of rows that could not be drawn.

    `expected`: how many pictures, as far as it is known before the rows are read.
    """
    from mindpangu.checkpoint.store import write_atomically
    from mindpangu.infer.batch import ERRORS, Run, finished, gone

    ranks.wait()
    started, done = time.monotonic(), finished(out)
    pictures = bad = found = drawn = 0
    digest = ""
    with ExitStack() as stack, tqdm(total=expected, unit="picture", disable=not ranks.first) as bar:
        for plan in plans:
            run = Run(plan, out, batch_size, ranks, done)
            if run.left and not drawn:  # where more blocks follow, what they compile is known by the run alone
                stack.enter_context(runtime.kept_graphs(run.graph_key(models), plan.last or (plan.number, plan.digest)))
            pictures, bad, found, digest = pictures + plan.pictures, bad + len(plan.bad), found + run.done, plan.digest
            if plan.last:
                bar.total = found + drawn + sum(unit.pictures for unit in run.left)
            bar.set_postfix(bad_rows=bad)
            bar.update(run.done)
            for count in run(models):
                drawn += count
                bar.update(count)
    ranks.wait()
    if ranks.first:
        seconds = time.monotonic() - started
        summary = {
            "pictures": pictures,
            "bad_rows": bad,
            "found_finished": found,
            "drawn_by_first_process": drawn,
            "processes": ranks.size,
            "seconds": round(seconds, 1),
            "pictures_per_second": round(ranks.size * drawn / seconds, 2) if drawn else None,
            "digest": digest,
        }
        write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        missing = gone(out)
        if missing:
            raise UserError(f"{out}: {missing} of {pictures} pictures are gone since they were drawn; run it again")
        print(f"{pictures} pictures in {out}", end="")
        print(f"; {bad} rows could not be drawn: {out / ERRORS}" if bad else "")
    return bad
