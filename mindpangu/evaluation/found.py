"""What a long measurement has found so far: figures and pictures that outlive it, so that a second run goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mindpangu.checkpoint.store import write_atomically
from mindpangu.errors import UserError


class Found:
    """Figures of each row of a table, in a folder: figures.json, and a strip of pictures of each."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], figures: dict[str, dict[str, Any]]) -> None:
        self.folder, self.settings, self.figures = folder, settings, figures

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Found:
        """What is there of the same settings. Raises: UserError where the folder holds what was found with others."""
        path = folder / "figures.json"
        if not path.exists():
            return cls(folder, settings, {})
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.get("settings") != settings:
            raise UserError(
                f"{path}: found with {known.get('settings')}, not {settings}; give another folder with --out"
            )
        return cls(folder, settings, known["rows"])

    def add(self, name: str, figures: dict[str, Any], strip: Image.Image) -> None:
        """Keep what was found of one row."""
        (self.folder / "strips").mkdir(parents=True, exist_ok=True)
        strip.save(self._picture(name))
        self.figures[name] = figures
        content = json.dumps({"settings": self.settings, "rows": self.figures}, indent=2)
        write_atomically(self.folder / "figures.json", (content + "\n").encode())

    def write(self, rows: Sequence[str], table: str, above: Sequence[Image.Image] = ()) -> None:
        """table.md, and grid.png: the strips `above`, then those of the rows that are there."""
        write_atomically(self.folder / "table.md", (table + "\n").encode())
        strips = [*above, *(self.strip(name) for name in rows)]
        grid(strips).save(self.folder / "grid.png")

    def strip(self, name: str) -> Image.Image:
        """The pictures of a row."""
        with Image.open(self._picture(name)) as picture:
            return picture.copy()

    def _picture(self, name: str) -> Path:
        return self.folder / "strips" / (re.sub(r"[^a-z0-9.]+", "-", name.lower()) + ".png")


def strip(images: Sequence[np.ndarray]) -> Image.Image:
    """Pictures side by side."""
    return Image.fromarray(np.concatenate(list(images), axis=1))


def grid(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips below one another."""
    return Image.fromarray(np.concatenate([np.asarray(one) for one in strips]))
