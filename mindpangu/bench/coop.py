"""What drawing together costs beside its members' own net evaluations: each member alone, then all of them, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from mindpangu.bench.cases import PROMPTS
from mindpangu.config import load
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.pipeline import PanGuDraw

TOGETHER = "together"


def measure(
    config: Path, overrides: Sequence[str], line: Optional[Path], steps: int, turns: int, said: Callable[[str], None]
) -> dict[str, list[float]]:
    """{member alone, or TOGETHER: milliseconds a step, with PROMPTS in one batch, turn by turn}.

    From the first step's end to the last one's, so without text encoding and decoding.

    Raises:
        UserError: the recipe cannot be drawn.
    """
    recipe = load(config, CoopConfig, overrides)
    models: dict[str, PanGuDraw] = {}
    alone = {name: [*overrides, f"output={name}", "weights={}"] for name in recipe.members}
    ways = {
        name: CoopDraw(load(config, CoopConfig, changed), models=models)
        for name, changed in {**alone, TOGETHER: list(overrides)}.items()
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, turns):
        said(f"turn {turn + 1} of {turns}" if turn >= 0 else "compiling")
        for name, way in ways.items():
            ends: list[float] = []
            lines = [line] if line is not None and way.looks else []
            note = lambda *_, ends=ends: ends.append(time.monotonic())  # noqa: E731
            way(PROMPTS, lines=lines, steps=steps, batch=len(PROMPTS), progress=note)
            if turn >= 0:
                found[name].append(1000 * (ends[-1] - ends[0]) / (steps - 1))
    return found
