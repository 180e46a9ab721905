"""`mindpangu show`: what a picture says of how it was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import typer


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
