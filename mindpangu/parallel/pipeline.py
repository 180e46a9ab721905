"""Pipelines on paper: where to cut a net, when each stage works (GPipe, arXiv 1811.06965; 1F1B, arXiv 2104.04473)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["gpipe", "1f1b"]


@dataclass(frozen=True)
class Work:
    """A stage's forward or backward pass of one micro-batch, from `start` to `end`."""

    stage: int
    micro_batch: int
    forward: bool
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """All of a step's work. `held[s]`: the most micro-batches whose activations stage s keeps at once."""

    work: tuple[Work, ...]
    held: tuple[int, ...]

    @property
    def length(self) -> float:
        """From the first start to the last end."""
        return max(one.end for one in self.work)

    @property
    def bubble(self) -> float:
        """The share of all stages' time in which they wait."""
        busy = sum(one.end - one.start for one in self.work)
        return 1 - busy / (len(self.held) * self.length)


def order(kind: Kind, stage: int, stages: int, micro_batches: int) -> list[tuple[bool, int]]:
    """What a stage does, one after the other: (forward?, micro-batch).

    GPipe: all forward, then all backward. 1F1B: as many forward as there are stages behind, then one of each in turn.
    """
    ahead = micro_batches if kind == "gpipe" else min(micro_batches, stages - stage)
    found = [(True, k) for k in range(ahead)]
    for k in range(micro_batches):
        found.append((False, k))
        if ahead + k < micro_batches:
            found.append((True, ahead + k))
    return found


def simulate(kind: Kind, forward: Sequence[float], backward: Sequence[float], micro_batches: int) -> Timeline:
    """A step of a pipeline whose stage s takes forward[s] and backward[s] for a micro-batch.

    A pass begins when its stage is free and what it needs is there: the micro-batch's forward pass of the stage before,
    its backward pass of the stage behind. Sending takes no time.
    """
    stages = len(forward)
    orders = [order(kind, stage, stages, micro_batches) for stage in range(stages)]
    done: dict[tuple[int, bool, int], float] = {}
    work: list[Work] = []
    free, place, held, most = [0.0] * stages, [0] * stages, [0] * stages, [0] * stages
    while any(place[s] < len(orders[s]) for s in range(stages)):
        moved = False
        for s in range(stages):
            while place[s] < len(orders[s]):
                is_forward, k = orders[s][place[s]]
                needed = []
                if is_forward and s > 0:
                    needed.append((s - 1, True, k))
                if not is_forward:
                    needed.append((s, True, k))
                    if s < stages - 1:
                        needed.append((s + 1, False, k))
                if any(one not in done for one in needed):
                    break
                start = max([free[s], *(done[one] for one in needed)])
                end = start + (forward[s] if is_forward else backward[s])
                work.append(Work(s, k, is_forward, start, end))
                done[s, is_forward, k] = free[s] = end
                held[s] += 1 if is_forward else -1
                most[s] = max(most[s], held[s])
                place[s] += 1
                moved = True
        assert moved, "every order above can be worked off"
    return Timeline(tuple(work), tuple(most))


def cut(costs: Sequence[float], stages: int) -> list[int]:
    """Where each stage begins, such that the costliest of `stages` runs of neighbours is as cheap as can be.

    Raises:
        ValueError: fewer pieces than stages.
    """
    if stages > len(costs):
        raise ValueError(f"{len(costs)} pieces cannot be cut into {stages} stages")
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    @cache
    def best(end: int, parts: int) -> tuple[float, tuple[int, ...]]:
        """The least possible largest part of costs[:end] in `parts` parts, and where they begin."""
        if parts == 1:
            return sums[end], (0,)
        return min(
            (max(best(begin, parts - 1)[0], sums[end] - sums[begin]), (*best(begin, parts - 1)[1], begin))
            for begin in range(parts - 1, end)
        )

    return list(best(len(costs), stages)[1])
