"""Which pictures of a training a process makes, and what is random about each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindpangu.data.examples import Stream

ALL = slice(None)


@dataclass(frozen=True)
class Rows:
    """Rows `part` of the batch of pictures nimg … nimg + count: those that one process makes and works on.

    What is random about a picture is drawn from (seed, its number), so a row is the same whoever makes it.
    """

    seed: int
    nimg: int
    count: int
    part: slice

    @property
    def numbers(self) -> range:
        """The pictures' numbers, counted over the whole training."""
        return range(self.nimg, self.nimg + self.count)[self.part]

    def common(self, stream: Stream) -> np.random.Generator:
        """For what all rows of the batch share, whichever of them are made."""
        return np.random.default_rng([self.seed, self.nimg, stream])

    def each(self, stream: Stream) -> list[np.random.Generator]:
        """A generator for each row."""
        return [np.random.default_rng([self.seed, number, stream]) for number in self.numbers]
