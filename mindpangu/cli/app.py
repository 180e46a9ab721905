"""`mindpangu`: the commands."""

from __future__ import annotations

import typer

from mindpangu.cli import (
    batch,
    bench,
    convert,
    coop,
    data,
    doctor,
    evaluate,
    generate,
    inspect,
    pictures,
    plan,
    studio,
    train,
    warmup,
    zoo,
)
from mindpangu.version import __version__

app = typer.Typer(
    name="mindpangu",
    help="PanGu-Draw for MindSpore: draw, train, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("batch")(batch.batch)
app.command("gallery")(pictures.gallery)
app.command("coop")(coop.coop)
app.command("studio")(studio.studio)
app.command("edges")(pictures.edges)
app.command("train")(train.train)
app.command("finetune")(train.finetune)
app.command("plan")(plan.plan)
app.command("show")(pictures.show)
app.command("report")(train.report)
app.command("doctor")(doctor.doctor)
app.command("selftest")(doctor.selftest)
app.command("warmup")(warmup.warmup)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
app.command("export")(convert.export)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="eval")
app.add_typer(zoo.app, name="zoo")


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    """PanGu-Draw for MindSpore: draw, train, measure."""
    if version:
        print(f"mindpangu {__version__}")
        raise typer.Exit()
