"""Where our parameters stand in other people's files, and the way there and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Optional

import numpy as np

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # of parameters, by name


@dataclass(frozen=True)
class Place:
    """One parameter of ours: their tensors `names`, one below the other; or only the third number `third` of one of
    theirs (query 0, key 1, value 2 of a packed projection); `transposed` where they store a matrix the other way round.
    """

    names: tuple[str, ...]
    third: Optional[int] = None
    transposed: bool = False

    def problem(self, shape: Shape, found: Mapping[str, Shape]) -> str:
        """Why their tensors cannot be ours of `shape`, "" where they can. Axes of one do not count."""
        theirs = [found[name] for name in self.names]
        rows = sum(one[0] if one else 1 for one in theirs) // (1 if self.third is None else 3)
        joined = (rows, *theirs[0][1:])
        if self.transposed:
            joined = joined[::-1]
        same = _without_ones(joined) == _without_ones(shape) and len({one[1:] for one in theirs}) == 1
        return "" if same else f"{self.names[0]} {list(theirs[0])} for {list(shape)}"

    def read(self, shape: Shape, tensor: Callable[[str], np.ndarray]) -> np.ndarray:
        """Our parameter of `shape`; tensor(name) gives theirs."""
        value = tensor(self.names[0]) if len(self.names) == 1 else np.concatenate([tensor(n) for n in self.names])
        if self.third is not None:
            value = value.reshape(3, -1, *value.shape[1:])[self.third]
        return np.ascontiguousarray(value.T if self.transposed else value).reshape(shape)

    def write(self, value: np.ndarray, shape: Optional[Shape] = None) -> dict[str, np.ndarray]:
        """Their tensors from our parameter, each of `shape` where given (it differs in axes of one only).

        Raises:
            ValueError: ours is a part of one of theirs.
        """
        if self.third is not None:
            raise ValueError(f"{self.names[0]} holds more than this parameter")
        parts = np.split(value.T if self.transposed else value, len(self.names))
        return {
            name: np.ascontiguousarray(part if shape is None else part.reshape(shape))
            for name, part in zip(self.names, parts)
        }


Places = dict[str, dict[str, Place]]  # by part of a model, then by parameter


def whole(names: Mapping[str, str]) -> dict[str, Place]:
    """Places from a table of one name for one name."""
    return {ours: Place((theirs,)) for ours, theirs in names.items()}


def _without_ones(shape: Shape) -> Shape:
    return tuple(side for side in shape if side != 1) or (prod(shape),)
