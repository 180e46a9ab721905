"""`mindpangu bench`: speed beside the PyTorch peers, in one alternating run."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from mindpangu.cli.generate import DEFAULT_MODEL
from mindpangu.errors import UserError

app = typer.Typer(help="Measure speed beside diffusers on PyTorch.", no_args_is_help=True)

MODEL = typer.Option(DEFAULT_MODEL, help="Zoo name or model folder, whose weights both sides use.")
TURNS = typer.Option(15, min=3, help="Runs of every contender, alternating.")
ONLY = typer.Option(None, help="Only cases whose name contains this.")
REPORT = typer.Option(None, help="Also write every time to this JSON file.")


@app.callback()
def bench() -> None:
    """Measure speed beside diffusers on PyTorch (`bench` extra)."""


@app.command()
def draw(model: str = MODEL, turns: int = TURNS, only: Optional[str] = ONLY, report: Optional[Path] = REPORT) -> None:
    """UNet forward, autoencoder, and pictures end to end."""
    _run("draw", model, turns, only, report)


@app.command()
def train(model: str = MODEL, turns: int = TURNS, only: Optional[str] = ONLY, report: Optional[Path] = REPORT) -> None:
    """A training step of the structure generator."""
    _run("train", model, turns, only, report)


def _run(kind: str, model: str, turns: int, only: Optional[str], report: Optional[Path]) -> None:
    from mindpangu import zoo
    from mindpangu.bench.alternate import Measured, measure
    from mindpangu.bench.cases import CASES
    from mindpangu.bench.worker import CONTENDERS

    for package in ("torch", "diffusers"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed; install the peers: pip install 'mindpangu[bench]'")
    folder, console = zoo.find(model), Console(stderr=True)
    found: dict[str, dict[str, Measured]] = {}
    with console.status("starting") as status:
        for number, case in enumerate(CASES[kind]):
            if only is None or only in case.name:
                found[case.name] = measure(kind, number, tuple(CONTENDERS), folder, turns, status.update)
    if not found:
        raise UserError(f"no case of bench {kind} contains '{only}'; cases: {'; '.join(c.name for c in CASES[kind])}")
    Console(width=180).print(_table(found))
    if report is not None:
        from mindpangu.checkpoint.store import write_atomically

        plain = {case: {name: vars(one) for name, one in times.items()} for case, times in found.items()}
        write_atomically(report, (json.dumps(plain, indent=1) + "\n").encode())


def _table(found: dict[str, Any]) -> Table:
    """Medians in ms, then our best's ratio to the peer's fp32 and to the peer's best, with quartiles."""
    from mindpangu.bench.alternate import ratios
    from mindpangu.bench.worker import CONTENDERS

    mine = [name for name, (is_ours, _) in CONTENDERS.items() if is_ours]
    peers = [name for name in CONTENDERS if name not in mine]
    table = Table(title="milliseconds, median; ratio below 1: we are faster (quartiles of the ratio turn by turn)")
    for heading in ("case", *CONTENDERS, "to PyTorch fp32", "to PyTorch's best"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case, times in found.items():
        ours = min((times[name] for name in mine), key=lambda one: one.median)
        best = min((times[name] for name in peers), key=lambda one: one.median)
        shown = []
        for other in (times[peers[0]], best):
            low, middle, high = ratios(ours, other)
            shown.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        table.add_row(case, *(f"{times[name].median:.1f}" for name in CONTENDERS), *shown)
    return table
