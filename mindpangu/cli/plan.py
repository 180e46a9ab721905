"""`mindpangu plan`: what a way of training needs, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table


def plan(
    data: Path = typer.Option(..., help="manifest.jsonl, or a histogram of sizes (configs/train/histogram.yaml)."),
    parallel: Path = typer.Option(..., help="A cluster and how to spread over it: see configs/parallel/."),
    regime: str = typer.Option("time_decoupled", help="cascaded, resolution_boost, time_decoupled, or all."),
    model: str = typer.Option("pangu_draw_v3", help="A name in configs/model, a .yaml file, or a model folder."),
    images: int = typer.Option(100_000_000, min=1, help="Pictures that each stage sees."),
    override: list[str] = typer.Option([], "--set", help="key=value over the cluster's file."),
) -> None:
    """Data, FLOPs, device-hours and memory of a training: computed from the specs, never run on an NPU."""
    from mindpangu import runtime
    from mindpangu.config import load
    from mindpangu.errors import UserError, nearest
    from mindpangu.models.inventory import find_spec
    from mindpangu.parallel.config import ClusterConfig
    from mindpangu.train.plan import ASSUMPTIONS, GIB, Plan, read_histogram
    from mindpangu.train.plan import plan as planned
    from mindpangu.train.regimes import REGIMES

    runtime.start()
    if regime != "all" and regime not in REGIMES:
        raise UserError(f"regime '{regime}' is unknown; {', '.join(REGIMES)} and all are{nearest(regime, REGIMES)}")
    cluster, spec = load(parallel, ClusterConfig, override), find_spec(model)
    names = list(REGIMES) if regime == "all" else [regime]
    plans: list[Plan] = []
    console = Console(width=160)
    for name in names:
        one = REGIMES[name](images)
        plans.append(planned(one, read_histogram(data, one), spec, cluster))
        console.print(_stages(plans[-1], GIB))
    if len(plans) > 1:
        console.print(_compared(plans))
    console.print(
        f"{cluster.devices} devices of {cluster.memory_gib:g} GiB, {cluster.peak_tflops:g} TFLOP/s in fp16 on paper, "
        f"utilisation {cluster.utilisation:.0%} (assumed), {cluster.global_batch} pictures a step; "
        f"{cluster.network.inside_gb_s:g} GB/s within a server of {cluster.network.server} and "
        f"{cluster.network.between_gb_s:g} between servers (assumed); scaling: against one server alone"
    )
    for line in ASSUMPTIONS:
        console.print(f"- {line}")


def _stages(one, gib: int) -> Table:
    table = Table(title=f"{one.regime.name} (computed)")
    heads = (
        "net",
        "size",
        "t",
        "params",
        "data",
        "smaller",
        "FLOPs",
        "device-h",
        "bubble",
        "step s",
        "send s",
        "scaling",
    )
    for head in (*heads, "weights", "grads", "optim.", "activ.", "GiB"):
        table.add_column(head, justify="right", no_wrap=True)
    for s in one.stages:
        memory = (s.memory.weights, s.memory.gradients, s.memory.optimizer, s.memory.activations, s.memory.total)
        table.add_row(
            s.stage.net, str(s.stage.size), f"{s.stage.t_min}–{s.stage.t_max}", f"{s.parameters / 1e9:.2f} G",
            f"{s.share:.1%}", s.stage.rule, f"{s.flops:.1e}", f"{s.device_hours:,.0f}", f"{s.bubble:.1%}",
            f"{s.step_seconds:.2f}", f"{s.sending_seconds:.2f}", f"{s.weak_scaling:.2f}",
            *(f"{number / gib:.1f}" for number in memory),
        )  # fmt: skip
    table.add_section()
    table.add_row("all", "", "", "", f"{one.share:.1%}", "", f"{one.flops:.1e}", f"{one.device_hours:,.0f}")
    return table


def _compared(plans: list) -> Table:
    table = Table(title="against resolution_boost (computed)")
    for head in ("", "data used", "training", "drawing"):
        table.add_column(head, justify="right")
    boost = next(one for one in plans if one.regime.name == "resolution_boost")
    for one in plans:
        table.add_row(
            one.regime.name,
            f"{one.share / boost.share - 1:+.0%}",
            f"{one.flops / boost.flops - 1:+.0%}",
            f"{one.drawing_flops / boost.drawing_flops - 1:+.0%}",
        )
    return table
