"""A run's state on disk: each is written whole and read back before an older one is forgotten."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.store import load_into, load_tensors, save_checkpoint, sidecar, verify
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import ScaleSenseConfig, TrainConfig
from mindpangu.train.step import TrainStep

PATTERN = "state-*.safetensors"
PROGRESS = "progress"
FIXED = (
    "data", "vae", "clip", "text_distillation", "bridge", "diffusion", "load_checkpoint", "context.seed",
    "runner_config.batch_size", "optimizer.type",
)  # fmt: skip
FIXED_WHEN_FINISHED = ("optimizer", "lr_schedule", "ema_half_life_images")


@dataclass
class State:
    """Where a run stands; weights live in the step's parameters.

    `nimg`: images seen; `step`: steps taken, skipped ones not counted; `seconds` spent. `loss_scale` is what the loss
    is multiplied by, `steady`: steps since it last changed. `skipped`: steps left out in all, `in_a_row`: just now.
    """

    nimg: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_scale: float = 1.0
    steady: int = 0
    skipped: int = 0
    in_a_row: int = 0

    @property
    def taken(self) -> bool:
        """Whether the last step counted."""
        return self.in_a_row == 0

    def count(self, images: int, finite: bool, sense: Optional[ScaleSenseConfig]) -> None:
        """Note a step over `images`, which was left out unless its gradients were `finite`."""
        self.nimg += images
        self.step += finite
        self.skipped += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.steady = self.steady + 1 if finite else 0
        if sense is None:
            return
        if not finite:
            self.loss_scale = max(1.0, self.loss_scale / sense.scale_factor)
        elif self.steady >= sense.scale_window:
            self.loss_scale, self.steady = self.loss_scale * sense.scale_factor, 0


def average_share(half_life: int, images: int, nimg: int) -> np.float32:
    """How far an average with this half-life, in images, goes towards weights that have seen `images` more, `nimg` now.

    The half-life is shorter at the start of a run.
    """
    return np.float32(1 - 0.5 ** (images / min(half_life, max(1, nimg // 4))))


def states(folder: Path) -> list[Path]:
    """The states in a run's folder, the newest first; those that were never finished are not among them."""
    return sorted((path for path in folder.glob(PATTERN) if sidecar(path).exists()), reverse=True)


def save_state(
    folder: Path,
    state: State,
    whole: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    keep: int,
) -> None:
    """Write weights, moments and averages (`whole`) and counters, read back, then forget all but the newest `keep`.

    Raises:
        UserError: it cannot be written, or what was read back is not what was written; the older states are there.
    """
    tensors = {**whole, PROGRESS: np.array(astuple(state), np.float64)}
    path = folder / f"state-{state.nimg:012d}.safetensors"
    save_checkpoint(path, tensors, {**card, **vars(state)})
    verify(path)
    kept = [path, *(other for other in states(folder) if other < path)][:keep]
    for other in folder.glob(PATTERN):
        if other not in kept:
            sidecar(other).unlink(missing_ok=True)  # first, so that what is left of it is no state
            other.unlink()


def load_state(folder: Path, step: TrainStep, config: TrainConfig) -> Optional[State]:
    """Continue from the newest whole state in `folder`, bit for bit; None where there is none.

    Raises:
        UserError: all states are damaged, or the newest whole one is of another net or a run of other settings.
    """
    found, damaged = states(folder), []
    for path in found:
        try:
            card = verify(path)
        except UserError as error:
            damaged.append(path)
            print(f"{error}; going on from an older one", file=sys.stderr)
            continue
        _check_settings(path, card, config)
        return _loaded(path, step)
    if damaged:
        raise UserError(
            f"{folder}: none of its {len(damaged)} states is whole; fetch one again, or delete them to begin anew"
        )
    return None


def _check_settings(path: Path, card: Mapping[str, Any], config: TrainConfig) -> None:
    """Raises: UserError where the run in the folder is another than `config` says.

    A run may go on with more images, another learning rate or other processes; a finished one, which would not be
    trained any further, must be the same but for them.
    """
    try:
        before = parse(card.get("config"), TrainConfig, str(path))
    except UserError:  # of a version that had other settings
        return
    finished = int(card.get("nimg", 0)) >= config.runner_config.images
    names = (*FIXED, *FIXED_WHEN_FINISHED) if finished else FIXED
    changed = [name for name in names if attrgetter(name)(before) != attrgetter(name)(config)]
    if changed:
        what = "a finished run" if finished else "a run"
        raise UserError(
            f"{path.parent}: holds {what} of other settings ({', '.join(changed)}); choose another output_dir"
        )


def _loaded(path: Path, step: TrainStep) -> State:
    tensors = load_tensors(path)
    progress = tensors.pop(PROGRESS, np.zeros(0))
    kinds = [type(value) for value in astuple(State())]
    if len(progress) != len(kinds):
        raise UserError(f"{path}: written by another version; begin in a new output_dir, with load_checkpoint")
    for name in step.elsewhere():
        tensors.pop(name, None)
    load_into(step.state, tensors, str(path))
    return State(*(kind(value) for kind, value in zip(kinds, progress.tolist())))
