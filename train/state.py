"""A run's state on disk: each is written whole and read back before an older one is forgotten.

Processes that share moments write a shard each, side by side; the state is there when its sidecar is, which lists them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.store import (
    check_file,
    load_into,
    read_card,
    save_checkpoint,
    save_tensors,
    sidecar,
    stored_tensors,
    verify,
    write_atomically,
    write_card,
)
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.parallel.ranks import ALONE, Ranks
from mindpangu.train.config import ScaleSenseConfig, TrainConfig
from mindpangu.train.step import TrainStep

PATTERN, DONE = "state-*", ".done"
WAIT, LOOK = 1800.0, 0.05  # seconds: for the other processes' shards, at most, and between looks
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
    return sorted((path.with_suffix(".safetensors") for path in folder.glob(f"{PATTERN}.json")), reverse=True)


def save_state(
    folder: Path,
    state: State,
    own: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    keep: int,
    writers: Ranks = ALONE,
) -> None:
    """Write this process's tensors and the counters, read back; the first then forgets all but the newest `keep`.

    Raises:
        UserError: it cannot be written, or what was read back is not what was written, or another process's shard does
            not come; the older states are there.
    """
    path = folder / f"state-{state.nimg:012d}.safetensors"
    tensors = {**own, PROGRESS: np.array(astuple(state), np.float64)} if writers.first else own
    if writers.size == 1:
        save_checkpoint(path, tensors, {**card, **vars(state)})
        verify(path)
    else:
        shards = [path.with_suffix(f".{i:05}-of-{writers.size:05}.safetensors") for i in range(writers.size)]
        mine = shards[writers.rank]
        written = save_tensors(mine, tensors)
        check_file(mine, written)
        write_atomically(mine.with_suffix(DONE), json.dumps(written).encode())
        if not writers.first:
            return
        of_all = {shard.name: _written(shard) for shard in shards}
        write_card(path, {**card, **vars(state), "shards": of_all})
    _forget(folder, [path, *(other for other in states(folder) if other < path)][:keep])


def _written(shard: Path) -> dict[str, Any]:
    """What a process says of its shard, once it is there. Raises: UserError."""
    done, ends = shard.with_suffix(DONE), time.monotonic() + WAIT
    while not done.exists():
        if time.monotonic() > ends:
            raise UserError(f"{shard}: was not written within {WAIT:.0f} s; the process that should is lost")
        time.sleep(LOOK)
    return dict(json.loads(done.read_text(encoding="utf-8")))


def _forget(folder: Path, kept: Sequence[Path]) -> None:
    """Remove all states but these, and what is left of unfinished ones."""
    for path in states(folder):
        if path not in kept:
            sidecar(path).unlink(missing_ok=True)  # first, so that what is left of it is no state
    held = {file for path in kept for file in (sidecar(path), *_files(path))}
    for file in folder.glob(f"{PATTERN}.*"):
        if file not in held:
            file.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """What a state is made of, beside its sidecar."""
    try:
        return [path.with_name(name) for name in read_card(path).get("shards", [path.name])]
    except UserError:  # damaged; load_state says so
        return [path]


def load_state(folder: Path, step: TrainStep, config: TrainConfig, ranks: Ranks = ALONE) -> Optional[State]:
    """Continue from the newest whole state in `folder`, bit for bit; None where there is none.

    Each of the processes checks its share of the files, and all take the same state; each reads what it keeps.

    Raises:
        UserError: all states are damaged, or the newest whole one is of another net or a run of other settings.
    """
    found = states(folder)
    for path in found:
        problem = _problem(path, ranks)
        if ranks.gather([bool(problem)]).any():
            if problem:
                print(f"{problem}; going on from an older one", file=sys.stderr)
            continue
        _check_settings(path, read_card(path), config)
        if ranks.first:
            _forget(folder, found)  # what was never finished
        return _loaded(path, step)
    if found:
        raise UserError(
            f"{folder}: none of its {len(found)} states is whole; fetch one again, or delete them to begin anew"
        )
    return None


def _problem(path: Path, ranks: Ranks) -> str:
    """What is wrong with this process's share of a state's files, "" where nothing is."""
    try:
        card = read_card(path)
        files = list(card.get("shards", {path.name: card}).items())
        for name, expected in files[ranks.rank :: ranks.size]:
            check_file(path.with_name(name), expected)
    except UserError as error:
        return str(error)
    return ""


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
    tensors = stored_tensors(path)
    progress = np.asarray(tensors.pop(PROGRESS, np.zeros(0)))
    kinds = [type(value) for value in astuple(State())]
    if len(progress) != len(kinds):
        raise UserError(f"{path}: written by another version; begin in a new output_dir, with load_checkpoint")
    for name in step.elsewhere():
        tensors.pop(name, None)
    load_into(step.state, tensors, str(path))
    return State(*(kind(value) for kind, value in zip(kinds, progress.tolist())))
