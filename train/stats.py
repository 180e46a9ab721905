"""How a training goes: stats.jsonl, a line every `callbacks.log_images`, and TensorBoard's event files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.checkpoint.store import whole_lines, write_atomically
from mindpangu.errors import UserError
from mindpangu.images import read_picture

STATS = "stats.jsonl"
BOARD = "tensorboard"
CURVES = {  # keys of a line, besides nimg, seconds and skipped
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "img_per_sec": "images a second",
    "latents_per_sec": "positions of latents a second",
    "tflop_per_sec": "TFLOP/s of all devices",
    "mfu": "share of the devices' peak (MFU)",
    "waited": "share of the time that the net waited for data",
    "loss_scale": "loss scale",
}

Lines = list[dict[str, Any]]


def read_stats(folder: Path) -> Lines:
    """The lines of a run; one that is being written is left out.

    Raises:
        UserError: there is none, or none that can be read.
    """
    path = folder / STATS
    try:
        lines = parsed(whole_lines(path))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); a training writes it into its output_dir"
        ) from None
    if not lines:
        raise UserError(f"{path}: no lines yet; wait for callbacks.log_images images")
    return lines


def parsed(lines: Iterable[str]) -> Lines:
    """Those of the lines that a training wrote; what else is in the file is passed over."""
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("nimg"), int):
            found.append(values)
    return found


class Record:
    """What a run tells of itself as it goes: lines of stats.jsonl and, where asked for, TensorBoard's event files."""

    def __init__(self, folder: Path, nimg: int, tensorboard: bool) -> None:
        """Of a run that goes on from `nimg`: what was told of later images, which it will see again, is dropped.

        Raises:
            UserError: tensorboardX is asked for and not installed.
        """
        path = folder / STATS
        if path.exists():
            kept = [json.dumps(line) + "\n" for line in parsed(whole_lines(path)) if line["nimg"] <= nimg]
            write_atomically(path, "".join(kept).encode())
        self._board = _board(folder / BOARD, nimg) if tensorboard else None
        self._stats = path.open("a", encoding="utf-8")

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        self._stats.close()
        if self._board is not None:
            self._board.close()

    def line(self, line: Mapping[str, Any]) -> None:
        """How it stands."""
        self._stats.write(json.dumps(line) + "\n")
        self._stats.flush()
        if self._board is not None:
            for key in CURVES:
                if line.get(key) is not None:
                    self._board.add_scalar(key, line[key], line["nimg"])
            for split, losses in line.get("by_noise_level", {}).items():
                for number, loss in enumerate(losses):
                    if loss is not None:
                        self._board.add_scalar(f"{split} loss/{number:02}", loss, line["nimg"])
            self._board.flush()

    def samples(self, path: Path, nimg: int) -> None:
        """A picture that `Task.samples` wrote."""
        if self._board is not None:
            self._board.add_image("samples", np.asarray(read_picture(path).convert("RGB")), nimg, dataformats="HWC")


def _board(folder: Path, nimg: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "callbacks.tensorboard: tensorboardX is not installed; pip install 'mindpangu[watch]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=nimg + 1)
