"""`mindpangu`: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import _thread
import io
import signal
import sys
import threading
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
    context_settings={"help_option_names": ["-h", "--help"]},
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


def _interruptible() -> threading.Event:
    """Have Ctrl-C raise KeyboardInterrupt here, whoever else wants it; the event is set when it was pressed.

    MindSpore puts a handler of its own under Python's when it compiles, which ends the process by SIGTERM. So the
    signal is kept from all threads but one, that waits for it.
    """
    pressed = threading.Event()
    if not hasattr(signal, "pthread_sigmask") or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return pressed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGURG, lambda *_: None)  # wakes the main thread where it sleeps
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            pressed.set()
            _thread.interrupt_main()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    threading.Thread(target=wait, name="Ctrl-C", daemon=True).start()
    return pressed


def main() -> None:
    """Run a command; a UserError is one line on stderr and exit code 2, Ctrl-C one line and exit code 130."""
    warnings.showwarning = _one_line_warning
    pressed = _interruptible()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without our characters shows their numbers
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        print(f"mindpangu: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except (KeyboardInterrupt, SystemExit):  # Typer makes the one the other
        if not pressed.is_set():
            raise
        print("mindpangu: interrupted; what was finished is on disk", file=sys.stderr)
        sys.exit(INTERRUPTED)
