"""`mindpangu coop`: several models draw one picture together."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

import typer

from mindpangu import runtime
from mindpangu.cli.generate import check_writable, steps_bar
from mindpangu.diffusion import SAMPLERS


def coop(
    config: Path = typer.Option(..., help="Who draws together, and how: see configs/infer/."),
    prompt: list[str] = typer.Option(..., help="What to draw, in English or Chinese; may be repeated."),
    line: Optional[Path] = typer.Option(None, help="A picture for the members' ControlNets to look at."),
    steps: int = typer.Option(30, help="Sampling steps."),
    seed: int = typer.Option(0, help="Of each prompt's first picture; the others have seed + 1, seed + 2, …."),
    n: int = typer.Option(1, help="Pictures a prompt."),
    batch: int = typer.Option(8, help="Pictures drawn together; fewer need less memory."),
    sampler: str = typer.Option("euler", help=f"{', '.join(SAMPLERS)}."),
    sigmas: str = typer.Option("uniform", help="Noise levels: uniform (in t) or karras."),
    out: Path = typer.Option(Path("out"), help="Folder for the pictures."),
    grid: bool = typer.Option(False, "--grid", help="Also write a captioned contact sheet, grid.png."),
    device: str = typer.Option("auto", help="auto, CPU or Ascend."),
    override: list[str] = typer.Option([], "--set", help="key=value over the file, for example output=low."),
) -> None:
    """Draw pictures with several models at once (Coop-Diffusion)."""
    started = time.monotonic()
    check_writable(out)
    from mindpangu.config import load
    from mindpangu.infer.coop import CoopConfig, CoopDraw
    from mindpangu.infer.image_file import save_drawings

    together = CoopDraw(load(config, CoopConfig, override), device)
    lines = [] if line is None else [line]
    options: dict[str, Any] = {
        "steps": steps, "seed": seed, "n": n, "sampler": sampler, "sigmas": sigmas, "batch": batch,
    }  # fmt: skip
    kept = runtime.kept_graphs(together.digest, together.asked(prompt, **options).graph_key, len(lines))
    with kept, steps_bar() as progress:
        drawings = together.draw(prompt, lines=lines, progress=progress, **options)
        count, where = save_drawings(drawings, out, grid)
    print(f"{count} pictures in {time.monotonic() - started:.1f} s: {where}")
