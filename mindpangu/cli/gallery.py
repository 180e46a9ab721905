"""`mindpangu gallery`: one page of a folder's pictures."""

from __future__ import annotations

from pathlib import Path

import typer
from tqdm import tqdm

from mindpangu.cli.generate import check_writable


def gallery(folder: Path = typer.Argument(..., help="Pictures that generate, coop or batch has drawn.")) -> None:
    """Write FOLDER/index.html: all pictures, searchable by prompt and settings; it needs no server and no network."""
    from mindpangu.checkpoint.store import write_atomically
    from mindpangu.errors import UserError
    from mindpangu.infer.gallery import page

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    check_writable(folder)
    with tqdm(unit="picture", desc="reading") as bar:
        text = page(folder, bar.update)
    write_atomically(folder / "index.html", text.encode())
    print(folder / "index.html")
