"""A process of `test_ranks`: the loop tests' line, which compiles at once. Its argument: a training file."""

from __future__ import annotations

import sys
from pathlib import Path

from mindpangu import runtime
from mindpangu.config import load
from mindpangu.train.config import TrainConfig
from tests.train.test_loop import Line


def main(path: str) -> None:
    """Train, with the other processes if msrun has started any."""
    runtime.start("CPU")
    from mindpangu.parallel.ranks import join
    from mindpangu.train.loop import fit

    fit(Line(), load(Path(path), TrainConfig), ranks=join())


if __name__ == "__main__":
    main(sys.argv[1])
