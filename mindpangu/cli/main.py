"""`mindpangu`: the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import _thread
import io
import os
import signal
import sys
import threading
import warnings

from mindpangu.errors import UserError

USER_ERROR, INTERRUPTED = 2, 130
ENDED = "mindpangu: interrupted; what was finished is on disk"


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if category is UserWarning:
        print(f"mindpangu: {message}", file=sys.stderr)


def _interruptible() -> threading.Event:
    """Have Ctrl-C raise KeyboardInterrupt here, whoever else wants it; the event is set when it was pressed.

    MindSpore puts a handler of its own under Python's when it compiles, which ends the process by SIGTERM. So the
    signal is kept from all threads but one, that waits for it: call this before any library has started threads.
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
            if _importing():  # MindSpore dies of an exception there; nothing has been begun
                print(ENDED, file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
            _thread.interrupt_main()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    threading.Thread(target=wait, name="Ctrl-C", daemon=True).start()
    return pressed


def _importing() -> bool:
    """Whether MindSpore is being imported."""
    spec = getattr(sys.modules.get("mindspore"), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def main() -> None:
    """Run a command; a UserError is one line on stderr and exit code 2, Ctrl-C one line and exit code 130."""
    warnings.showwarning = _one_line_warning
    pressed = _interruptible()
    from mindpangu.cli.app import app

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
        print(ENDED, file=sys.stderr)
        sys.exit(INTERRUPTED)
