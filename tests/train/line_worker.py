"""A process of `test_ranks`: the loop tests' line, which compiles at once. Arguments: a training file; images, if to
stop early."""

from __future__ import annotations

import sys
from pathlib import Path

from mindpangu import runtime
from mindpangu.config import load
from mindpangu.errors import UserError
from mindpangu.train.config import TrainConfig
from tests.train.test_loop import Line


def main(path: str, until: str = "0") -> None:
    """Train, with the other processes if msrun has started any."""
    runtime.start("CPU")
    from mindpangu.parallel.ranks import join
    from mindpangu.train.loop import fit

    try:
        fit(Line(), load(Path(path), TrainConfig), int(until) or None, ranks=join())
    except UserError as error:
        sys.exit(f"mindpangu: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
