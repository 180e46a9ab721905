"""Huawei's own compiler on a Triton kernel of our tiling: opt-in, `.ci/ascend-check` makes its environment and runs it.

Front and middle end only: the last stage of the compiler is not public, and nothing runs on an NPU.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from mindpangu.ascend_kernels.tiling import ASCEND_910B, ForwardTile, forward_plan
from tests.ascend_kernels.simulation import KERNELS

PYTHON = os.environ.get("MINDPANGU_TRITON_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="MINDPANGU_TRITON_PYTHON: see .ci/ascend-check")
PROGRAM = KERNELS.parents[2] / "triton_check.py"


def lines(which, **environment):
    done = subprocess.run(
        [PYTHON, PROGRAM, which], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_interpreter_agrees_with_float64():
    for line in lines("numerics", TRITON_INTERPRET="1"):
        assert line["relative_error"] <= 2e-3, line


def test_every_tile_that_ours_takes_fits_and_every_tile_that_overflows_ours_refuses():
    """Ours refuses more: its kernel has two of each operand in L0 and two products in L0C, Triton's has one."""
    found = lines("lower")
    assert {line["target"] for line in found} == {"Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4"}
    both = {True: 0, False: 0}
    for line in found:
        rows, columns, width = line["tile"]
        ours = forward_plan(width, ForwardTile(rows, columns, 1, 8), 4).fits(ASCEND_910B)
        assert line["fits"] or not ours, line
        assert line["fits"] or "overflow" in line["said"], line
        both[line["fits"]] += 1
    assert min(both.values()) >= 8  # both answers were heard
