"""Attention alone: on a CPU our operator beside composed ones; for Ascend 910B what our kernels could do, computed.

As a program (`python -m mindpangu.bench.attention operator|composed LENGTH`) it prints the megabytes that one forward
and backward pass over sequences of that length adds to the peak of a fresh process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu import runtime
from mindpangu.ascend_kernels.tiling import (
    Chip,
    Estimate,
    backward_tile,
    estimate_backward,
    estimate_forward,
    forward_tile,
)
from mindpangu.bench.roofline import PANGU, TOKENS
from mindpangu.cost.flops import unet_layers

SCORES = {"half": 2, "float": 4}  # bytes
CACHES = (7e12, 4.4e12)  # bytes/s of the 910B's L2: the documentation's, and what published kernels rather suggest
OPERATOR, COMPOSED = "operator", "composed"
PASSES = ("forward", "forward and backward")
# Batch, heads, queries and keys, width: of the issue, of SD 1.5's smallest, of the zoo's UNet at 128 x 128.
SHAPES = ((8, 8, 1024, 64), (8, 8, 256, 40), (8, 4, 256, 32))
MEMORY_SHAPE = (1, 4, 32)  # batch, heads, width of the measurement of memory


@dataclass(frozen=True)
class Case:
    """Attention layers of one shape in a net: (batch, heads, queries, keys, width), how many, what the kernels need."""

    shape: tuple[int, int, int, int, int]
    count: int

    def kernels(self, chip: Chip) -> dict[str, tuple[tuple[int, ...], Estimate]]:
        """{kernel: its tile (rows, columns, and the forward's span and strip), its estimate}."""
        found: dict[str, tuple[tuple[int, ...], Estimate]] = {}
        lengths = self.shape[2:]
        for scores, score in SCORES.items():
            forward = forward_tile(*lengths, score, chip), estimate_forward(*self.shape, score, chip)
            found[f"forward, {scores}"] = forward
        for scores, score in SCORES.items():
            backward = backward_tile(*lengths, score, False, chip), estimate_backward(*self.shape, score, False, chip)
            found[f"backward, {scores}"] = backward
        steady = backward_tile(*lengths, 4, True, chip), estimate_backward(*self.shape, 4, True, chip)
        return {**found, "deterministic, float": steady}


def cases(side: int, rows: int = 1) -> list[Case]:
    """The attention layers of PanGu-Draw 3.0's UNet on latents of side × side, `rows` of them."""
    found: Counter = Counter()
    for layer in unet_layers(PANGU, rows, side, side, TOKENS):
        if layer.kind == "attention":
            batch, heads, channels, queries, keys = layer.shape
            found[batch, heads, queries, keys, channels // heads] += 1
    return [Case(shape, count) for shape, count in found.items()]


def contenders(shape: tuple[int, int, int, int], ways: Sequence[str]) -> dict[tuple[str, str], Callable[[], Any]]:
    """{(way, pass): one run of it} for (batch, heads, length, width), each compiled and run once."""
    from mindspore import Tensor, nn, ops

    from mindpangu.ops import cpu
    from mindpangu.ops.attention import attention

    batch, heads, length, width = shape

    class Attend(nn.Cell):
        """attention(q, k, v)."""

        def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, heads=heads, scale=width**-0.5)

    class Gradients(nn.Cell):
        """Those of q, k and v, for a gradient of ones."""

        def __init__(self) -> None:
            super().__init__()
            self.gradient = ops.GradOperation(get_all=True)
            self.net = Attend()

        def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return self.gradient(self.net)(q, k, v)

    rng = np.random.default_rng(0)
    inputs = [Tensor(rng.standard_normal((batch, length, heads * width)).astype(np.float32)) for _ in range(3)]
    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for way in ways:
        if way == COMPOSED:
            cpu.left_out.add("attention")
        try:
            for name, net in zip(PASSES, (Attend(), Gradients())):

                def run(net: nn.Cell = net) -> None:
                    out = net(*inputs)
                    (out if isinstance(out, Tensor) else out[0]).asnumpy()

                run()  # compiled while the choice holds
                found[way, name] = run
        finally:
            cpu.left_out.discard("attention")
    return found


def measure(shape: tuple[int, int, int, int], turns: int) -> dict[tuple[str, str], list[float]]:
    """{(way, pass): milliseconds, turn by turn} for (batch, heads, length, width), all in one process."""
    ways = contenders(shape, (OPERATOR, COMPOSED))
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            times[way].append(1000 * (time.perf_counter() - started))
    return times


def memory(length: int) -> dict[str, float]:
    """{way: megabytes that a forward and backward pass adds to the peak}, each in a process of its own."""
    found = {}
    for way in (OPERATOR, COMPOSED):
        command = [sys.executable, "-m", "mindpangu.bench.attention", way, str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=runtime.found_environment())
        found[way] = float(done.stdout.split()[-1])
    return found


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def main(way: str, length: str) -> None:
    """Print what the passes at `length` add to this process's peak, after those at length 64."""
    runtime.start("CPU")
    batch, heads, width = MEMORY_SHAPE
    contenders((batch, heads, 64, width), (way,))
    before = _megabytes("VmRSS")
    contenders((batch, heads, int(length), width), (way,))
    print(_megabytes("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
