"""Which process keeps which part of the optimizer's state: ZeRO's first stage (arXiv 1910.02054), by whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


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


def spans(owned: Sequence[int], processes: int) -> list[slice]:
    """Of tensors in order of their owners: each owner's run."""
    ends = [sum(owner <= process for owner in owned) for process in range(processes)]
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def by_owner(tensors: Sequence[Sized], processes: int) -> tuple[list[Sized], list[slice]]:
    """The tensors, which have a `size`, in order of their owners, and each owner's run."""
    found = owners([tensor.size for tensor in tensors], processes)
    order = sorted(range(len(tensors)), key=found.__getitem__)
    return [tensors[i] for i in order], spans(sorted(found), processes)
