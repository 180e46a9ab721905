"""`mindpangu bench`: speed beside the PyTorch peers, in one alternating run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
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


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    chip: Optional[str] = typer.Option(None, help="Compute (not run) the 5B model's roofline on Ascend: 910b or 910a."),
) -> None:
    """Measure speed beside diffusers on PyTorch (`bench` extra)."""
    if chip is not None:
        _roofline(chip)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def draw(model: str = MODEL, turns: int = TURNS, only: Optional[str] = ONLY, report: Optional[Path] = REPORT) -> None:
    """UNet forward, autoencoder, and pictures end to end."""
    _beside_peers("draw", model, turns, only, report)


@app.command()
def train(model: str = MODEL, turns: int = TURNS, only: Optional[str] = ONLY, report: Optional[Path] = REPORT) -> None:
    """A training step of the structure generator."""
    _beside_peers("train", model, turns, only, report)


@app.command()
def loader(
    config: Path = typer.Option(..., help="A training file."),
    batches: int = typer.Option(200, min=1),
    set_: list[str] = typer.Option([], "--set", help="key=value over the file; may be repeated."),
) -> None:
    """Images a second that a training's data could feed, its batches made without a net."""
    from mindpangu import runtime
    from mindpangu.config import load
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import make_task

    trained = load(config, TrainConfig, set_)
    runtime.start(trained.context.device_target)
    task, size = make_task(trained), trained.runner_config.batch_size
    task.batch(0, size)
    started = time.monotonic()
    for number in range(1, batches + 1):
        task.batch(number * size, size)
    print(f"{batches * size / (time.monotonic() - started):.0f} img/s in batches of {size}, one thread, no net")


@app.command()
def operators(
    model: str = MODEL, turns: int = TURNS, only: Optional[str] = ONLY, report: Optional[Path] = REPORT
) -> None:
    """What each of our CPU operators is worth: drawing and training with all of them, then without one."""
    from mindpangu.bench.worker import EACH_OPERATOR

    Console(width=180).print(_worth(_measure("operators", EACH_OPERATOR, model, turns, only, report)))


@app.command()
def coop(
    config: Path = typer.Option(..., help="Who draws together: see configs/infer/."),
    line: Optional[Path] = typer.Option(None, help="A picture for the members' ControlNets to look at."),
    steps: int = typer.Option(30, min=2),
    turns: int = TURNS,
    set_: list[str] = typer.Option([], "--set", help="key=value over the file; may be repeated."),
) -> None:
    """A step of models that draw together, beside the same models' steps alone."""
    import numpy as np

    from mindpangu.bench.alternate import quartiles
    from mindpangu.bench.cases import PROMPTS
    from mindpangu.bench.coop import TOGETHER, measure

    with Console(stderr=True).status("starting") as status:
        found = measure(config, set_, line, steps, turns, status.update)
    alone = np.sum([times for name, times in found.items() if name != TOGETHER], axis=0)
    low, middle, high = quartiles(found[TOGETHER], alone)
    shown = ", ".join(f"{name} {np.median(times):.1f}" for name, times in found.items())
    print(f"ms a step of {len(PROMPTS)} pictures, medians of {turns} turns: {shown}")
    print(f"together over the sum of each alone, turn by turn: {middle:.2f} ({low:.2f}-{high:.2f})")


@app.command()
def attention(
    chip: Optional[str] = typer.Option(None, help="Compute (not run) our Ascend kernels' tiles and times: 910b."),
    turns: int = TURNS,
) -> None:
    """Attention alone: our CPU operator beside composed ones, or the kernels for Ascend on paper."""
    if chip is None:
        _attention_here(turns)
    elif chip == "910b":
        _attention_on_paper()
    else:
        raise UserError(f"chip {chip} is unknown here; allowed: 910b (no times are computed of our 910A kernels)")


def _attention_here(turns: int) -> None:
    import numpy as np

    from mindpangu import runtime
    from mindpangu.bench import attention as bench
    from mindpangu.bench.alternate import quartiles

    runtime.start("CPU")
    if runtime.cpu_operators() == "off":
        raise UserError("MINDPANGU_CPU_OPS=off: there is no operator to compare; unset it")
    table = Table(title="attention on this CPU: milliseconds, medians; ratio: composed over operator, turn by turn")
    for heading in ("batch, heads, length, width", "pass", bench.OPERATOR, bench.COMPOSED, "ratio (quartiles)"):
        table.add_column(heading, justify="left" if heading == "pass" else "right")
    with Console(stderr=True).status("measuring") as status:
        for shape in bench.SHAPES:
            times = bench.measure(shape, turns)
            for name in bench.PASSES:
                one, other = (times[way, name] for way in (bench.OPERATOR, bench.COMPOSED))
                low, middle, high = quartiles(other, one)
                shown = f"{np.median(one):.2f}", f"{np.median(other):.2f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"
                table.add_row(", ".join(map(str, shape)), name, *shown)
        growth = {}
        for length in (1024, 2048, 4096):
            status.update(f"memory at length {length}")
            growth[length] = bench.memory(length)
    console = Console(width=140)
    console.print(table)
    for length, megabytes in growth.items():
        each = ", ".join(f"{way} {value:.1f} MB" for way, value in megabytes.items())
        console.print(f"forward and backward at length {length} (batch, heads, width {bench.MEMORY_SHAPE}): {each}")


def _attention_on_paper() -> None:
    from dataclasses import replace

    from mindpangu.ascend_kernels.tiling import ASCEND_910B
    from mindpangu.bench import attention as bench

    console, chip = Console(width=170), ASCEND_910B
    chips = [replace(chip, cache=cache) for cache in bench.CACHES]
    for pixels in (512, 1024):
        table = Table(
            title=f"COMPUTED, never run: our kernels, one UNet of PanGu-Draw 3.0, {pixels} x {pixels}, {chip.name}"
        )
        headings = ["layers", "heads", "S", "T", "D", "kernel", "tile", "us", "bound", "cube", "vector", "exchange"]
        for heading in headings:
            table.add_column(heading, justify="left" if heading in ("kernel", "bound") else "right", no_wrap=True)
        for cache in bench.CACHES:
            table.add_column(f"of peak, L2 {cache / 1e12:g} TB/s", justify="right")
        for case in bench.cases(pixels // 8):
            _, heads, queries, keys, width = case.shape
            of_caches = [case.kernels(one) for one in chips]
            for name, (tile, e) in of_caches[0].items():
                parts = (f"{1e6 * part:.1f}" for part in (e.cube, e.vector, e.exchange))
                layer = (str(n) for n in (case.count, heads, queries, keys, width))
                shares = (f"{kernels[name][1].share:.0%}" for kernels in of_caches)
                cut = " x ".join(map(str, tile[:2])) + (f" x {tile[2]}" if len(tile) > 2 else "")
                table.add_row(*layer, name, cut, f"{1e6 * e.seconds:.1f}", e.bound, *parts, *shares)
        console.print(table)
    console.print(
        f"{chip.cube} cube and {chip.vector} vector cores at {chip.clock / 1e9:.1f} GHz, memory "
        f"{chip.memory / 1e12:.1f} TB/s, L2 cache, through which the cores exchange tiles, 7 TB/s (CANN's guide; the "
        "times are for this) or 4.4 TB/s (as published kernels suggest); the parts overlap wholly, waiting and "
        "starting cost nothing; the last word of a kernel is the type of its scores"
    )


def _beside_peers(kind: str, model: str, turns: int, only: Optional[str], report: Optional[Path]) -> None:
    from mindpangu.bench.worker import CONTENDERS

    for package in ("torch", "diffusers"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed; install the peers: pip install 'mindpangu[bench]'")
    Console(width=180).print(_table(_measure(kind, CONTENDERS, model, turns, only, report)))


def _measure(
    kind: str, contenders: Iterable[str], model: str, turns: int, only: Optional[str], report: Optional[Path]
) -> dict[str, dict[str, Any]]:
    """{case: {contender: Measured}}, also as JSON in `report`, which is written again after every case."""
    from mindpangu import zoo
    from mindpangu.bench.alternate import Measured, measure
    from mindpangu.bench.cases import CASES

    folder, console = zoo.find(model), Console(stderr=True)
    found: dict[str, dict[str, Measured]] = {}
    with console.status("starting") as status:
        for number, case in enumerate(CASES[kind]):
            if only is None or only in case.name:
                found[case.name] = measure(kind, number, tuple(contenders), folder, turns, status.update)
                if report is not None:
                    _write(report, found)
    if not found:
        raise UserError(f"no case of bench {kind} contains '{only}'; cases: {'; '.join(c.name for c in CASES[kind])}")
    return found


def _write(report: Path, found: dict[str, dict[str, Any]]) -> None:
    from mindpangu.checkpoint.store import write_atomically

    plain = {case: {name: vars(one) for name, one in times.items()} for case, times in found.items()}
    write_atomically(report, (json.dumps(plain, indent=1) + "\n").encode())


def _roofline(name: str) -> None:
    """The layers' bounds, then predictions beside the published times of SDXL, whose UNet has the same shape."""
    from mindpangu.bench import roofline

    if name not in roofline.CHIPS:
        raise UserError(f"chip {name} is unknown; allowed: {', '.join(roofline.CHIPS)}")
    chip = roofline.CHIPS[name]
    layers = list(roofline.unet_layers(roofline.PANGU, 1, roofline.SIDE, roofline.SIDE, roofline.TOKENS))
    table = Table(title=f"COMPUTED, never run: one UNet of PanGu-Draw 3.0 at 1024 x 1024, batch 1, fp16, {chip.name}")
    for heading in ("layers like", "count", "kind", "GFLOP each", "MB each", "bound", "ms in all", "of cube peak"):
        table.add_column(heading, justify="left" if heading in ("layers like", "kind", "bound") else "right")
    for g in roofline.groups(layers, chip):
        like = g.example
        numbers = f"{like.flops / 1e9:.2f}", f"{like.numbers * roofline.BYTES / 1e6:.1f}"
        table.add_row(
            like.name, str(g.count), like.kind, *numbers, g.bound, f"{1e3 * g.seconds:.3f}", f"{g.share_of_peak:.0%}"
        )
    console = Console(width=140)
    console.print(table)
    steps, batch = roofline.PUBLISHED_STEPS, roofline.PUBLISHED_TRAIN_BATCH
    sdxl = steps * roofline.forward_seconds(roofline.SDXL, 2, chip)
    pangu = {rows: steps * roofline.forward_seconds(roofline.PANGU, rows, chip) for rows in (2, 3)}
    step = roofline.train_step_seconds(roofline.SDXL, batch, chip)
    console.print(
        f"peaks: cube {chip.cube / 1e12:.0f} TFLOP/s, vector {chip.vector / 1e12:.1f} TFLOP/s, memory "
        f"{chip.memory / 1e12:.2f} TB/s; every layer at its bound, no overlap, no text encoders, no autoencoder\n"
        f"FLOPs of a forward pass: {sum(layer.flops for layer in layers) / 1e12:.2f} T\n"
        f"SDXL, {steps} Euler steps, guidance (2 rows): least {sdxl:.2f} s/img; published on a 910B: "
        f"{roofline.PUBLISHED_IMAGE} s/img\n"
        f"SDXL, training step, batch {batch} a card: least {step:.2f} s; published on 8 x 910B: "
        f"{roofline.PUBLISHED_TRAIN_STEP} s\n"
        f"PanGu-Draw 3.0, {steps} steps, least: {pangu[2]:.2f} s/img with guidance, {pangu[3]:.2f} s/img with a style "
        "row besides (its default)"
    )
    if name == "910b":
        drawn, trained = sdxl / roofline.PUBLISHED_IMAGE, step / roofline.PUBLISHED_TRAIN_STEP
        console.print(
            f"if it kept the published runs' share of the roofline ({drawn:.0%} drawing, {trained:.0%} training): "
            f"PanGu-Draw 3.0 {pangu[2] / drawn:.1f} s/img, {pangu[3] / drawn:.1f} with a style row; "
            f"{roofline.train_step_seconds(roofline.PANGU, batch, chip) / trained:.2f} s a training step"
        )


def _table(found: dict[str, Any]) -> Table:
    """Medians in ms, then our best's ratio to the peer's fp32 and to the peer's best, with quartiles."""
    from mindpangu.bench.alternate import ratios
    from mindpangu.bench.worker import CONTENDERS

    mine = [name for name, contender in CONTENDERS.items() if contender.is_ours]
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


def _worth(found: dict[str, Any]) -> Table:
    """Medians in ms, and the time without an operator over the time with all of them."""
    from mindpangu.bench.alternate import ratios

    table = Table(title="what an operator is worth: time without it over time with all (quartiles, turn by turn)")
    for heading in ("case", "contender", "ms", "ratio"):
        table.add_column(heading, justify="left" if heading in ("case", "contender") else "right")
    for case, times in found.items():
        for name, one in times.items():
            low, middle, high = ratios(one, times["all"])
            table.add_row(case, name, f"{one.median:.1f}", f"{middle:.2f} ({low:.2f}-{high:.2f})")
        table.add_section()
    return table
