"""`mindpangu train`: any training file of configs/."""

from __future__ import annotations

from pathlib import Path

import typer


def train(
    config: Path = typer.Option(..., help="A training file, for example configs/zoo/structure.yaml."),
    set_: list[str] = typer.Option([], "--set", help="key=value: override a key of the file; may be repeated."),
) -> None:
    """Train what a file describes; an interrupted run continues where it stopped."""
    from mindpangu.config import load
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import run

    run(load(config, TrainConfig, set_))
