"""The training loop. All that is random is a function of (seed, images seen): a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindpangu.checkpoint.store import load_into, load_tensors, save_checkpoint, write_atomically
from mindpangu.config import dump
from mindpangu.errors import UserError
from mindpangu.parallel.ranks import Ranks
from mindpangu.train.config import TrainConfig
from mindpangu.train.schedule import coefficients, learning_rate
from mindpangu.train.step import TrainStep

EMA_EVERY = 8  # steps between updates of the average: it is a host copy, and exact at this spacing
STATE, STATS = "state.safetensors", "stats.jsonl"
NO_OTHERS = Ranks()


class Task(Protocol):
    """What is trained. Weights are handed to `samples` and `export` as {name: array}: those of the average."""

    loss_net: nn.Cell

    def start_from(self, path: Path) -> None:
        """Take the first weights from a checkpoint that `export` wrote."""

    def batch(self, nimg: int, count: int) -> tuple[np.ndarray, ...]:
        """The inputs of `loss_net` for images nimg … nimg + count; a function of these and the seed alone."""

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Write a picture of what the net can do to `path`."""

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """Write the checkpoint others will load."""


@dataclass
class State:
    """Where a run stands: images seen, steps taken, seconds spent; weights live in the step's parameters."""

    nimg: int = 0
    step: int = 0
    seconds: float = 0.0


class Average:
    """Exponential moving average of the weights, with a half-life in images."""

    def __init__(self, parameters: list, half_life: int) -> None:
        self.parameters, self.half_life = parameters, half_life
        self.values = {p.name: p.asnumpy().copy() for p in parameters}

    def update(self, images: int, nimg: int) -> None:
        """Move towards the present weights by what `images` more of them are worth; shorter at the start of a run."""
        half_life = min(self.half_life, max(1, nimg // 4))
        share = np.float32(1 - 0.5 ** (images / half_life))
        for p in self.parameters:
            value = self.values[p.name]
            value += share * (p.asnumpy() - value)


def git_commit() -> str:
    """The commit of the working tree, or "unknown" outside a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def save_state(folder: Path, state: State, step: TrainStep, average: Average, config: TrainConfig) -> None:
    """Write weights, moments, average and counters."""
    parameters = [*step.weights, *step.moment1, *step.moment2]
    tensors = {p.name: p.asnumpy() for p in parameters}
    tensors.update({f"average.{name}": value for name, value in average.values.items()})
    tensors["progress"] = np.array([state.nimg, state.step, state.seconds], np.float64)
    save_checkpoint(folder / STATE, tensors, {**vars(state), "config": dump(config), "git_commit": git_commit()})


def load_state(folder: Path, step: TrainStep, average: Average) -> State:
    """Continue from `folder`, bit for bit; a fresh State where there is nothing.

    Raises:
        UserError: the state is damaged or of another net.
    """
    path = folder / STATE
    if not path.exists():
        return State()
    tensors = load_tensors(path)
    nimg, steps, seconds = tensors.pop("progress", np.zeros(3))
    prefix = "average."
    averaged = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    rest = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    load_into([*step.weights, *step.moment1, *step.moment2], rest, str(path))
    average.values = {name: value.copy() for name, value in averaged.items()}
    return State(int(nimg), int(steps), float(seconds))


def forget_after(stats: Path, nimg: int) -> None:
    """Drop the lines of images that a resumed run will see again."""
    if stats.exists():
        lines = stats.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["nimg"] <= nimg]
        write_atomically(stats, "".join(kept).encode())


def check_loss(loss: float, state: State, config: TrainConfig) -> None:
    """Raises: UserError where the loss is no number."""
    if not math.isfinite(loss):
        raise UserError(
            f"{config.output_dir}: the loss is {loss} after {state.nimg} images; lower "
            f"lr_schedule.learning_rate (now {config.lr_schedule.learning_rate}) and resume from the checkpoint"
        )


def progress_bar(name: str, state: State, total: int, shown: bool) -> tqdm:
    """Images seen, of all."""
    return tqdm(
        total=total, initial=state.nimg, unit="img", desc=name, smoothing=0.05, mininterval=1.0, disable=not shown
    )


def fit(task: Task, config: TrainConfig, until: Optional[int] = None, ranks: Ranks = NO_OTHERS) -> State:
    """Train `task` until `until` (default: all of the run's images); return where it stands.

    Of several `ranks` each takes its part of every batch, and the first one writes and reports.

    Raises:
        UserError: the loss stopped being a number; the last checkpoint is left as it was.
    """
    # Nets and state.
    folder, batch_size = config.output_dir, config.runner_config.batch_size
    total = config.runner_config.images
    end = min(until or total, total)
    folder.mkdir(parents=True, exist_ok=True)
    if config.load_checkpoint is not None:
        task.start_from(config.load_checkpoint)
    step = TrainStep(task.loss_net, config.optimizer.type == "muon", ranks.size)
    step.set_train()
    average = Average(list(step.weights), config.ema_half_life_images)
    state = load_state(folder, step, average) if config.resume_training else State()
    if ranks.first:
        forget_after(folder / STATS, state.nimg)
    losses: list[float] = []
    started = time.monotonic()
    bar = progress_bar(folder.name, state, total, ranks.first)

    def passed(every: int) -> bool:
        return ranks.first and (state.nimg // every != (state.nimg - batch_size) // every or state.nimg >= end)

    with ThreadPoolExecutor(1) as pool, (folder / STATS).open("a", encoding="utf-8") as stats:
        upcoming = pool.submit(task.batch, state.nimg, batch_size)
        while state.nimg < end:
            # Gradients and step, while the next batch is made.
            batch = ranks.part(upcoming.result())
            upcoming = pool.submit(task.batch, state.nimg + batch_size, batch_size)
            lr = learning_rate(config.lr_schedule, state.nimg, total)
            factors = coefficients(config.optimizer, lr, state.step + 1)
            loss, norm = step(Tensor(factors), *(Tensor(array) for array in batch))
            losses.append(float(loss.asnumpy()))
            state.nimg += batch_size
            state.step += 1
            bar.update(batch_size)
            check_loss(losses[-1], state, config)
            # Average.
            if ranks.first and state.step % EMA_EVERY == 0:
                average.update(EMA_EVERY * batch_size, state.nimg)
            # Status, samples, checkpoint.
            if passed(config.callbacks.log_images):
                spent = time.monotonic() - started
                state.seconds, started = state.seconds + spent, time.monotonic()
                mean = sum(losses) / len(losses)
                line = {
                    "nimg": state.nimg,
                    "loss": round(mean, 6),
                    "lr": lr,
                    "grad_norm": round(float(norm.asnumpy()), 5),
                    "img_per_sec": round(len(losses) * batch_size / spent, 2),
                    "seconds": round(state.seconds, 1),
                }
                losses = []
                stats.write(json.dumps(line) + "\n")
                stats.flush()
                bar.set_postfix(loss=f"{mean:.4f}")
            if passed(config.callbacks.checkpoint_images):
                save_state(folder, state, step, average, config)
            if passed(config.callbacks.sample_images):
                task.samples(average.values, folder / f"samples-{state.nimg:08d}.png")
        upcoming.cancel()
    bar.close()
    if not ranks.first:
        return state
    card = {
        "nimg": state.nimg,
        "seconds": round(state.seconds),
        "config": dump(config),
        "git_commit": git_commit(),
    }
    task.export(average.values, folder, card)
    return state
