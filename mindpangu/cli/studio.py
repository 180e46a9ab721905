"""`mindpangu studio`: a page to draw on, in a browser."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

import typer

from mindpangu.cli.generate import DEFAULT_MODEL
from mindpangu.errors import UserError

RECIPE = "coop_text_line.yaml"


def studio(
    model: str = typer.Option(DEFAULT_MODEL, help="Zoo name or model folder."),
    coop: Optional[Path] = typer.Option(None, help=f"Recipe of the Coop tab; by default configs/infer/{RECIPE}."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 lets the whole network in."),
    port: int = typer.Option(7860, min=1, max=65535, help="Port to listen on."),
    queue: int = typer.Option(8, min=1, help="Drawings that may wait; more are refused."),
    auth: Optional[str] = typer.Option(None, help="USER:PASSWORD that the page asks for."),
    device: str = typer.Option("auto", help="auto, CPU or Ascend."),
) -> None:
    """Serve a page to draw on: words, pictures, lines, with live previews. Needs the extra: mindpangu[studio]."""
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio (Python 3.10 or later): pip install 'mindpangu[studio]'")
    _check_free(host, port)
    for name in ("no_proxy", "NO_PROXY"):  # the page asks for its own address, which no proxy knows
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost", host)))
    with tempfile.TemporaryDirectory(prefix="mindpangu-uploads-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # what visitors send and fetch goes with the page
        from mindpangu.studio.app import Studio
        from mindpangu.studio.page import build, serve

        recipe = coop or Path("configs/infer") / RECIPE
        address = serve(build(Studio(model, recipe, device)), host, port, queue, _user(auth))
        print(f"{address} (Ctrl+C ends it)", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what visitors sent is deleted then, too
        while True:
            time.sleep(3600)


def _user(auth: Optional[str]) -> Optional[tuple[str, str]]:
    """User and password. Raises: UserError."""
    if auth is None:
        return None
    user, sign, password = auth.partition(":")
    if not (sign and user and password):
        raise UserError("--auth: use USER:PASSWORD")
    return user, password


def _check_free(host: str, port: int) -> None:
    """Before models are opened. Raises: UserError where the page cannot be served there."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be served there ({error.strerror}); choose another --port") from None
