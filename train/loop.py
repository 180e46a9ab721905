"""The training loop. All that is random is a function of (seed, images seen): a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Optional, Protocol

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindpangu import runtime
from mindpangu.checkpoint.store import save_tensors
from mindpangu.config import dump
from mindpangu.errors import UserError
from mindpangu.parallel.ranks import ALONE, Ranks
from mindpangu.train.config import ScaleSenseConfig, TrainConfig
from mindpangu.train.rows import ALL
from mindpangu.train.schedule import coefficients, learning_rate
from mindpangu.train.state import State, average_share, load_state, save_state
from mindpangu.train.stats import Record
from mindpangu.train.step import LOSS_SCALE, TrainStep
from mindpangu.train.watch import FIRST_STEP, Watch

LEFT_OUT = "left-out-{rank}.jsonl"  # batches that changed nothing
EMA_EVERY = 8  # steps between updates of the average, which is exact at this spacing


class Task(Protocol):
    """What is trained. Weights are handed to `samples` and `export` as {name: array}: those of the average."""

    loss_net: nn.Cell

    def start_from(self, path: Path) -> None:
        """Take the first weights from a checkpoint that `export` wrote."""

    def batch(self, nimg: int, count: int, part: slice = ALL) -> tuple[np.ndarray, ...]:
        """The inputs of `loss_net` for images nimg … nimg + count, or rows `part` of them alone, which are the same.

        A function of these and the seed. An array has a row for each image.
        """

    def source(self, nimg: int, count: int, row: int) -> str:
        """Where row `row` of the batch of images nimg … nimg + count comes from, for a person to look at."""
        return f"picture {nimg + row} of the training"

    def work(self, batch: Sequence[np.ndarray]) -> tuple[int, float]:
        """Positions of latents in a batch and the FLOPs of a step on it; 0 where they are not counted."""
        return 0, 0.0

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Write a picture of what the net can do to `path`."""

    def by_noise_level(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, Sequence[Optional[float]]]:
        """The loss of fixed pictures with fixed noise in bins of t, by split; nothing unless a task has such bins."""
        return {}

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """Write the checkpoint others will load."""


class Meter:
    """What stats.jsonl says of the images since its last line."""

    def __init__(self, nimg: int, ranks: Ranks, peak_tflops: Optional[float]) -> None:
        """`peak_tflops`: a device's, of which the step's FLOPs are a share (MFU)."""
        self.ranks, self.peak_tflops = ranks, peak_tflops
        self._begin(nimg)

    def _begin(self, nimg: int) -> None:
        self.nimg, self.started, self.waited = nimg, time.monotonic(), 0.0
        self.losses: list[float] = []  # of the steps that were taken
        self.latents, self.flops = 0, 0.0  # of this process

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the net waits for data."""
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def worked(self, latents: int, flops: float) -> None:
        """A step was taken on so many positions of latents, which took so many FLOPs."""
        self.latents, self.flops = self.latents + latents, self.flops + flops

    @property
    def waited_share(self) -> float:
        """The share of the time since the last line in which the net waited for data."""
        return self.waited / max(time.monotonic() - self.started, 1e-9)

    def line(self, state: State, lr: float, norm: float) -> dict[str, Any]:
        """The line, after which all is counted anew; the run's seconds are brought up to date."""
        spent, waited = time.monotonic() - self.started, self.waited_share
        state.seconds += spent
        tflops = self.flops / spent / 1e12  # of a device
        line = {
            "nimg": state.nimg,
            "loss": round(sum(self.losses) / len(self.losses), 6) if self.losses else None,
            "lr": lr,
            "grad_norm": round(norm, 5) if state.taken else None,
            "img_per_sec": round((state.nimg - self.nimg) / spent, 2),
            "latents_per_sec": round(self.latents * self.ranks.size / spent) if self.latents else None,
            "tflop_per_sec": float(f"{tflops * self.ranks.size:.4g}") if self.flops else None,
            "mfu": float(f"{tflops / self.peak_tflops:.4g}") if self.flops and self.peak_tflops else None,
            "waited": round(waited, 4),
            "seconds": round(state.seconds, 1),
            "skipped": state.skipped,
            "loss_scale": state.loss_scale,
        }
        self._begin(state.nimg)
        return line


def each_rank(ranks: Ranks, meter: Meter) -> dict[str, list[float]]:
    """Of several processes, what each one's data made it wait (a share of the time) and its memory at most, in GB."""
    if ranks.size == 1:
        return {}
    waited, memory = ranks.gather([meter.waited_share, runtime.most_memory() / 1e9]).T.round(4).tolist()
    return {"waited_by_rank": waited, "memory_gb_by_rank": memory}


def git_commit() -> str:
    """The commit of the working tree, or "unknown" outside a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def note_left_out(task: Task, batch: Sequence[np.ndarray], nimg: int, count: int, ranks: Ranks, path: Path) -> None:
    """A line on a batch that changed nothing since gradients were not finite, with the rows that are not themselves."""
    first = ranks.part(count).start
    good = np.logical_and.reduce([np.isfinite(array).reshape(len(array), -1).all(1) for array in batch])
    sources = [task.source(nimg, count, first + int(row)) for row in np.flatnonzero(~good)]
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"nimg": nimg, "images": count, "not_finite": sources}, ensure_ascii=False) + "\n")


def stop_at(state: State, batch: Sequence[np.ndarray], config: TrainConfig, ranks: Ranks) -> NoReturn:
    """End a run that goes nowhere; each process leaves its part of the batch that was too much.

    Raises:
        UserError: always.
    """
    culprit = config.output_dir / f"culprit-{ranks.rank}.safetensors"
    save_tensors(culprit, {f"batch.{i}": array for i, array in enumerate(batch)})
    raise UserError(
        f"{config.output_dir}: {state.in_a_row} steps in a row whose gradients are not finite, up to {state.nimg} "
        f"images; the last batch is in {culprit.name}; lower lr_schedule.learning_rate (now "
        f"{config.lr_schedule.learning_rate}) and resume from the checkpoint"
    )


def whole_step(step: TrainStep, factors: np.ndarray, batch: Sequence[np.ndarray]) -> tuple[float, float]:
    """Loss and norm of a step over a batch, part by part where gradients are accumulated."""
    parts = list(zip(*(np.split(array, step.parts) for array in batch)))
    losses = [step.add(Tensor(factors[LOSS_SCALE]), *map(Tensor, part)) for part in parts[:-1]]
    last, norm = step(Tensor(factors), *map(Tensor, parts[-1]))
    return sum(float(loss.asnumpy()) for loss in [*losses, last]) / step.parts, float(norm.asnumpy())


def card(state: State, config: TrainConfig) -> dict[str, Any]:
    """What is said beside a checkpoint of where it comes from."""
    return {
        "nimg": state.nimg,
        "seconds": round(state.seconds),
        "config": dump(config),
        "git_commit": git_commit(),
    }


def progress_bar(name: str, state: State, total: int, shown: bool) -> tqdm:
    """Images seen, of all."""
    return tqdm(
        total=total, initial=state.nimg, unit="img", desc=name, smoothing=0.05, mininterval=1.0, disable=not shown
    )


def make_step(task: Task, config: TrainConfig, ranks: Ranks) -> TrainStep:
    """The step of this process.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    batch_size, parts = config.runner_config.batch_size, config.runner_config.gradient_accumulation_steps
    if batch_size % (ranks.size * parts):
        raise UserError(
            f"runner_config.batch_size {batch_size} cannot be shared by {ranks.size} processes in {parts} parts each "
            f"(gradient_accumulation_steps); use a multiple of {ranks.size * parts}"
        )
    share = config.parallel_config is not None and config.parallel_config.optimizer_shard
    step = TrainStep(task.loss_net, config.optimizer.type == "muon", ranks, parts, share)
    step.set_train()
    return step


def loss_scaling(config: TrainConfig) -> Optional[ScaleSenseConfig]:
    """As asked for, or by default where products are in fp16."""
    default = ScaleSenseConfig() if runtime.multiplies_in_fp16() else None
    return config.runner_wrapper.scale_sense or default


def fit(  # noqa: PLR0915 - one loop, in a fixed order, to be read from top to bottom
    task: Task, config: TrainConfig, until: Optional[int] = None, ranks: Ranks = ALONE
) -> State:
    """Train `task` until `until` (default: all of the run's images); return where it stands.

    Of several `ranks` each takes its part of every batch, and the first one writes and reports.

    Raises:
        UserError: too many steps in a row gave non-finite gradients; the last checkpoint is left as it was.
    """
    # Nets and state.
    folder, batch_size = config.output_dir, config.runner_config.batch_size
    total = config.runner_config.images
    end = min(until or total, total)
    folder.mkdir(parents=True, exist_ok=True)
    if config.load_checkpoint is not None:
        task.start_from(config.load_checkpoint)
    sense, step = loss_scaling(config), make_step(task, config, ranks)
    resumed = load_state(folder, step, config, ranks) if config.resume_training else None
    state = resumed or State(loss_scale=1.0 if sense is None else sense.loss_scale_value)
    record = Record(folder, state.nimg, config.callbacks.tensorboard) if ranks.first else None
    meter, due, first = Meter(state.nimg, ranks, config.callbacks.peak_tflops), False, state.nimg
    watch = Watch(folder, ranks.rank, config.callbacks.hang_seconds)
    bar = progress_bar(folder.name, state, total, ranks.first)

    def passed(every: int) -> bool:
        return state.nimg // every != (state.nimg - batch_size) // every or state.nimg >= end

    saving: Future[None] = Future()  # of the newest checkpoint, which is written while the net trains on
    saving.set_result(None)
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as writer, record or nullcontext(), watch:
        mine = ranks.part(batch_size)
        upcoming = pool.submit(task.batch, state.nimg, batch_size, mine)
        while state.nimg < end:
            # Gradients and step, while the next batch is made.
            with meter.waiting(), watch.phase("waiting for data", state.nimg):
                batch = upcoming.result()
            upcoming = pool.submit(task.batch, state.nimg + batch_size, batch_size, mine)
            lr = learning_rate(config.lr_schedule, state.nimg, total)
            factors = coefficients(config.optimizer, lr, state.step + 1, state.loss_scale)
            with watch.phase("step", state.nimg, FIRST_STEP if state.nimg == first else 1):
                loss, norm = whole_step(step, factors, batch)
            meter.worked(*task.work(batch))
            state.count(batch_size, math.isfinite(norm), sense)
            bar.update(batch_size)
            if state.taken:
                meter.losses.append(loss)
            else:
                left_out = folder / LEFT_OUT.format(rank=ranks.rank)
                note_left_out(task, batch, state.nimg - batch_size, batch_size, ranks, left_out)
            if state.in_a_row > config.runner_wrapper.max_skips:
                stop_at(state, batch, config, ranks)
            if saving.done():
                saving.result()  # what went wrong is said now
            # Average.
            if state.taken and state.step % EMA_EVERY == 0:
                step.average(Tensor(average_share(config.ema_half_life_images, EMA_EVERY * batch_size, state.nimg)))
            # Status, samples, checkpoint.
            measured = state.taken and passed(config.callbacks.noise_level_images)
            shown = passed(config.callbacks.sample_images)
            average = step.whole_average() if (measured or shown) and (ranks.first or step.shared) else {}
            if measured or passed(config.callbacks.log_images):
                by_rank = each_rank(ranks, meter)
                line = {**meter.line(state, lr, norm), **by_rank}
                if record is not None:
                    with watch.phase("measuring", state.nimg, FIRST_STEP):
                        record.line({**line, "by_noise_level": task.by_noise_level(average)} if measured else line)
                    bar.set_postfix(loss=line["loss"], skipped=state.skipped)
            due = due or passed(config.callbacks.checkpoint_images)
            if due and (state.taken or state.nimg >= end):
                due = False
                with watch.phase("checkpoint", state.nimg):
                    saving.result()  # the one before
                    if ranks.first or step.shared:
                        kept, said = config.callbacks.keep_checkpoint_max, card(state, config)
                        own, writers = step.own_state(ranks.first), ranks if step.shared else ALONE
                        saving = writer.submit(save_state, folder, replace(state), own, said, kept, writers)
            if record is not None and shown:
                picture = folder / f"samples-{state.nimg:08d}.png"
                with watch.phase("samples", state.nimg, FIRST_STEP):
                    task.samples(average, picture)
                record.samples(picture, state.nimg)
        upcoming.cancel()
        with watch.phase("checkpoint", state.nimg):
            saving.result()
    bar.close()
    # What was trained since the average last moved.
    step.average(Tensor(average_share(config.ema_half_life_images, state.step % EMA_EVERY * batch_size, state.nimg)))
    average = step.whole_average() if ranks.first or step.shared else {}
    if ranks.first:
        task.export(average, folder, card(state, config))
    return state
