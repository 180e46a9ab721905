"""`mindpangu train`, any training file of configs/; `finetune`, a whole model's LoRA; `report`, a page of trainings."""

from __future__ import annotations

from pathlib import Path

import typer

from mindpangu.cli.generate import check_writable


def train(
    config: Path = typer.Option(..., help="A training file, for example configs/scratch/structure.yaml."),
    set_: list[str] = typer.Option([], "--set", help="key=value: override a key of the file; may be repeated."),
) -> None:
    """Train what a file describes; an interrupted run continues where it stopped."""
    from mindpangu.config import load
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import run

    run(load(config, TrainConfig, set_))


def finetune(
    config: Path = typer.Option(..., help="A fine-tuning file, for example configs/train/finetune.yaml."),
    set_: list[str] = typer.Option([], "--set", help="key=value: override a key of the file; may be repeated."),
) -> None:
    """Train a LoRA for every UNet of a model, one after the other, and write them as one file for generate --lora."""
    from mindpangu.config import load
    from mindpangu.train.config import FinetuneConfig
    from mindpangu.train.finetune import finetune as train_all

    print(train_all(load(config, FinetuneConfig, set_)))


def report(
    runs: list[Path] = typer.Argument(..., help="output_dir of a training; several are laid over each other."),
    out: Path = typer.Option(Path("report.html"), help="The page; it needs no other file."),
) -> None:
    """Curves, samples and settings of trainings, running or finished."""
    from mindpangu.checkpoint.store import write_atomically
    from mindpangu.train.report import page

    check_writable(out.parent)
    named = {folder.name if len({run.name for run in runs}) == len(runs) else str(folder): folder for folder in runs}
    write_atomically(out, page(named).encode())
    print(out)
