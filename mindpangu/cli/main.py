"""`mindpangu`: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
import warnings

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
    zoo,
)
from mindpangu.errors import UserError
from mindpangu.version import __version__

USER_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    name="mindpangu",
    help="PanGu-Draw for MindSpore: draw, train, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("generate")(generate.generate)
app.command("batch")(batch.batch)
app.command("gallery")(pictures.gallery)
app.command("coop")(coop.coop)
app.command("studio")(studio.studio)
app.command("edges")(pictures.edges)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("show")(pictures.show)
app.command("report")(train.report)
app.command("doctor")(doctor.doctor)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
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


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if category is UserWarning:
        print(f"mindpangu: {message}", file=sys.stderr)


def main() -> None:
    """Run a command; a UserError is one line on stderr and exit code 2."""
    warnings.showwarning = _one_line_warning
    try:
        app()
    except UserError as error:
        print(f"mindpangu: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("mindpangu: interrupted; what was finished is on disk", file=sys.stderr)
        sys.exit(INTERRUPTED)
