"""`mindpangu data`: build data sets from public registries."""

from __future__ import annotations

from pathlib import Path

import typer
from tqdm import tqdm

app = typer.Typer(help="Build data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Build data sets."""


@app.command()
def emoji(
    out: Path = typer.Option(..., help="Folder to build in; a second run completes an interrupted one."),
    style: list[str] = typer.Option([], help="Only these styles; may be repeated. Default: all."),
    size: int = typer.Option(256, help="Side of the stored pictures in pixels."),
    low_res_share: float = typer.Option(0.0, help="Share of the pictures kept at 64 pixels only."),
) -> None:
    """About 1,400 emoji concepts in six art styles, named in English and Chinese."""
    from mindpangu.data.emoji import build
    from mindpangu.data.sources import STYLES

    bars: list[tqdm] = []

    def progress(name: str, done: int, total: int) -> None:
        if done == 1:
            bars.append(tqdm(total=total, desc=name, unit="picture"))
        bars[-1].update()
        if done == total:
            bars[-1].close()

    report = build(out, tuple(style) or tuple(STYLES), size, low_res_share, progress=progress)
    counts = ", ".join(f"{name} {count}" for name, count in report.pictures.items())
    print(f"{sum(report.pictures.values())} pictures in {out}: {counts}")
    if report.missing:
        print(f"{len(report.missing)} missing, listed in {out / 'missing.txt'}")
        for line in report.missing:
            if line.startswith("style "):
                print(f"  {line}")
