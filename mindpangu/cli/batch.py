"""`mindpangu batch`: thousands of prompts from a file, each drawn exactly once."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tqdm import tqdm

from mindpangu import runtime
from mindpangu.cli.generate import DEFAULT_MODEL, check_writable
from mindpangu.config import put
from mindpangu.errors import UserError

if TYPE_CHECKING:
    from mindpangu.infer.batch import BatchModels, Run

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
    from mindpangu.infer.batch import BatchModels, Run, make_plan
    from mindpangu.infer.pipeline import PanGuDraw
    from mindpangu.parallel.ranks import join

    check_writable(out)
    defaults: dict[str, Any] = {}
    for text in set_:
        put(defaults, text)
    models = BatchModels(PanGuDraw.from_pretrained(model, device), model, device)
    ranks = join()
    plan = make_plan(prompts, defaults, models, batch_size, f".{form}", per_shard if shards else None)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out) if ranks.first else nullcontext():
        _draw(Run(plan, out, batch_size, ranks), models)
    if plan.bad:
        raise typer.Exit(BAD_ROWS)


def _draw(run: Run, models: BatchModels) -> None:
    """Draw what is left, with progress, and write the summary."""
    from mindpangu.checkpoint.store import write_atomically
    from mindpangu.infer.batch import ERRORS, whole

    plan, out, ranks = run.plan, run.out, run.ranks
    ranks.wait()
    started, mine = time.monotonic(), sum(unit.pictures for unit in run.left)
    shown: dict[str, Any] = {"total": run.done + mine, "initial": run.done, "unit": "picture"}
    with runtime.kept_graphs(run.graph_key(models)), tqdm(**shown, disable=not ranks.first) as bar:
        bar.set_postfix(bad_rows=len(plan.bad))
        for count in run(models):
            bar.update(count)
    ranks.wait()
    if ranks.first:
        seconds = time.monotonic() - started
        summary = {
            "pictures": plan.pictures,
            "bad_rows": len(plan.bad),
            "found_finished": run.done,
            "drawn_by_first_process": mine,
            "processes": ranks.size,
            "seconds": round(seconds, 1),
            "pictures_per_second": round(ranks.size * mine / seconds, 2) if mine else None,
            "digest": plan.digest,
        }
        write_atomically(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        gone = sum(unit.pictures for unit in plan.units if not whole(out, unit))
        if gone:
            raise UserError(f"{out}: {gone} of {plan.pictures} pictures are gone since they were drawn; run it again")
        print(f"{plan.pictures} pictures in {out}", end="")
        print(f"; {len(plan.bad)} rows could not be drawn: {out / ERRORS}" if plan.bad else "")
