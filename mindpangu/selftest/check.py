"""What a check is, and what it can come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np

# Errors are in units of the largest true value. On a CPU our operators multiply in bfloat16 where they may, and on an
# NPU convolutions of float32 numbers are in HF32, whose mantissa has 11 bits.
ALLOWED = {"fp32": 2e-5, "hf32": 4e-3, "fp16": 5e-3, "bf16": 3e-2}

Status = Literal["passed", "failed", "refused"]


class RefusedError(Exception):
    """A check cannot be made here; its text says why."""


@dataclass(frozen=True)
class Outcome:
    """What was measured. `allowed`: the most that passes; None where the figure is for information alone."""

    figure: float
    unit: str
    allowed: Optional[float] = None
    note: str = ""

    @property
    def status(self) -> Status:
        """Passed or failed; a figure that is no number fails."""
        return "passed" if np.isfinite(self.figure) and self.figure <= (self.allowed or np.inf) else "failed"


@dataclass(frozen=True)
class Check:
    """One line of the report. `quick`: worth its time on a CPU, where all of these take about a minute."""

    group: str
    name: str
    run: Callable[[], Outcome]
    quick: bool = True


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference in units of the largest true value; infinite for another shape."""
    if found.shape != exact.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - exact).max() / np.abs(exact).max())
