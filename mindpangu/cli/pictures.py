"""`mindpangu show`, `gallery`, `edges`: what pictures on the disk carry, one page of them, a line drawing of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import typer
from tqdm import tqdm

from mindpangu.cli.generate import check_writable
from mindpangu.data.lines import HIGH, LOW, SMOOTHING


def show(
    pictures: list[Path] = typer.Argument(..., help="Pictures that generate, coop or batch has drawn."),
    plain: bool = typer.Option(False, "--json", help="One JSON object a picture."),
) -> None:
    """Print the prompt, seed, model and settings that pictures carry."""
    import yaml

    from mindpangu.infer.image_file import own_settings

    for path in pictures:
        settings = own_settings(path)
        if plain:
            print(json.dumps({"file": str(path), **settings}, ensure_ascii=False))
        else:
            print(f"{path}:\n{yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)}".rstrip())


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


def edges(
    picture: Path = typer.Argument(..., help="A picture of any size, transparent parts on white."),
    out: Optional[Path] = typer.Option(None, help="PNG to write; otherwise NAME-edges.png beside the picture."),
    smoothing: float = typer.Option(SMOOTHING, help="Pixels; more leaves fine detail out."),
    low: float = typer.Option(LOW, help="How strong an edge must be to go on, 0 to 1."),
    high: float = typer.Option(HIGH, help="How strong to begin with, 0 to 1."),
) -> None:
    """Draw the edges of a picture (Canny), white on black, for `coop --line` or `generate --control`."""
    from io import BytesIO

    from PIL import Image

    from mindpangu.checkpoint.store import write_atomically
    from mindpangu.data import lines
    from mindpangu.errors import UserError
    from mindpangu.infer.init_image import read_flat

    if not (smoothing > 0 and 0 <= low <= high <= 1):
        raise UserError(f"smoothing {smoothing}, low {low}, high {high}: above 0, and 0 <= low <= high <= 1 are needed")
    flat = read_flat(picture)
    target = out or picture.with_name(f"{picture.stem}-edges.png")
    check_writable(target.parent)
    found = lines.edges(flat, smoothing, low, high)
    buffer = BytesIO()
    Image.fromarray(lines.as_lines(found)).save(buffer, format="PNG")
    write_atomically(target, buffer.getvalue())
    print(f"{target}: {found.mean():.1%} of the picture is edge")
