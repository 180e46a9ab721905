"""Contenders take turns, so that a noisy machine is equally noisy to all."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu import runtime
from mindpangu.bench.cases import CASES
from mindpangu.errors import UserError


@dataclass(frozen=True)
class Measured:
    """`times`: milliseconds; `first`: seconds of the first run, compilation included; `mean`, `std` of the result."""

    times: tuple[float, ...]
    first: float
    mean: float
    std: float
    peak_mb: float

    @property
    def median(self) -> float:
        """Milliseconds."""
        return float(np.median(self.times))


class Server:
    """A contender's process (see `worker`)."""

    def __init__(self, name: str, kind: str, number: int, folder: Path) -> None:
        self.name = name
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mindpangu.bench.worker", name, kind, str(number), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=runtime.found_environment(),
        )

    def answer(self) -> Any:
        """The next line. Raises: UserError where the process has stopped; its last line says why."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._complaints.seek(0)
        said = self._complaints.read().strip().splitlines()
        raise UserError(f"{self.name} stopped: {said[-1] if said else 'no message'}")

    def run(self) -> float:
        """Milliseconds of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self.answer())

    def finish(self) -> float:
        """Peak memory in MB."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return float(self.answer())

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._complaints.close()


def measure(
    kind: str, number: int, contenders: Sequence[str], folder: Path, turns: int, said: Callable[[str], None]
) -> dict[str, Measured]:
    """Case CASES[kind][number] by every contender, `turns` times round.

    Raises:
        UserError: a contender cannot run; its last line says why.
    """
    case, servers, first = CASES[kind][number], {}, {}
    try:
        for name in contenders:
            said(f"{case.name}: preparing {name}")
            servers[name] = Server(name, kind, number, folder)
            first[name] = servers[name].answer()  # one at a time: compiling takes the cores
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(turns):
            said(f"{case.name}: turn {turn + 1} of {turns}")
            for name, server in servers.items():
                times[name].append(server.run())
        return {n: Measured(tuple(times[n]), **first[n], peak_mb=s.finish()) for n, s in servers.items()}
    finally:
        for server in servers.values():
            server.stop()


def quartiles(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of one's times over the other's, turn by turn."""
    low, middle, high = np.percentile(np.array(one) / np.array(other), (25, 50, 75))
    return float(low), float(middle), float(high)


def ratios(one: Measured, other: Measured) -> tuple[float, float, float]:
    """`quartiles` of what was measured."""
    return quartiles(one.times, other.times)
