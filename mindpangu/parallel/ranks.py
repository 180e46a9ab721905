"""The processes of one training: msrun starts them, MindSpore connects them (HCCL on Ascend, its own on a CPU)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from mindpangu.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and reports."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Its rows of a batch of `count`."""
        rows = count // self.size
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            from mindspore import Tensor, ops

            ops.AllReduce()(Tensor(np.zeros(1, np.float32))).asnumpy()

    def gather(self, numbers: Sequence[float]) -> np.ndarray:
        """(size, N) float32: the N numbers of each process, which all call this."""
        mine = np.array(numbers, np.float32)
        if self.size == 1:
            return mine[None]
        from mindspore import Tensor, ops

        return ops.AllGather()(Tensor(mine)).asnumpy().reshape(self.size, -1)


ALONE = Ranks()


def join() -> Ranks:
    """Meet the other processes that msrun has started, if any; MindSpore must have been started.

    Raises:
        UserError: they cannot be met, or (in msrun's scheduler, which stays in here) one of them has been lost.
    """
    if "MS_ROLE" not in os.environ:
        return ALONE
    from mindspore.communication import get_group_size, get_rank, init

    try:
        init()  # msrun's scheduler runs the same command, and stays in here
    except RuntimeError as error:
        raise UserError(
            f"a process of this training was lost ({str(error).splitlines()[0]}); its log is in msrun's "
            "--log_dir; start the same command again, which goes on from the last checkpoint"
        ) from None
    return Ranks(get_rank(), get_group_size())


BUCKETS = 4  # sums over ranks a step


def buckets(sizes: Sequence[int], most: int = BUCKETS) -> list[slice]:
    """Tensors of so many numbers, in order, in at most `most` runs of about equal sums."""
    ends = np.cumsum(sizes)
    places = [int(np.searchsorted(ends, ends[-1] * i / most)) + 1 for i in range(1, most + 1)]
    edges = sorted({0, *(min(place, len(sizes)) for place in places)})
    return [slice(start, stop) for start, stop in zip(edges, edges[1:])]


class HasSize(Protocol):
    """A tensor, as far as it matters here."""

    @property
    def size(self) -> int:
        """How many numbers."""


Sized = TypeVar("Sized", bound=HasSize)


def owners(sizes: Sequence[int], processes: int) -> list[int]:
    """The owner of each tensor: the largest go first, each to whom has least, the first of them where several have."""
    loads, found = [0] * processes, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found[i] = min(range(processes), key=loads.__getitem__)
        loads[found[i]] += sizes[i]
    return found


def loads(sizes: Sequence[int], processes: int) -> list[int]:
    """How much each process owns."""
    found = [0] * processes
    for size, owner in zip(sizes, owners(sizes, processes)):
        found[owner] += size
    return found


def spans(owned: Sequence[int], processes: int) -> list[slice]:
    """Of tensors in order of their owners: each owner's run."""
    ends = [sum(owner <= process for owner in owned) for process in range(processes)]
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def by_owner(tensors: Sequence[Sized], processes: int) -> tuple[list[Sized], list[slice]]:
    """The tensors, which have a `size`, in order of their owners, and each owner's run."""
    found = owners([tensor.size for tensor in tensors], processes)
    order = sorted(range(len(tensors)), key=found.__getitem__)
    return [tensors[i] for i in order], spans(sorted(found), processes)
