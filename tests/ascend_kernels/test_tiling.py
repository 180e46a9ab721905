"""The tiling: one arithmetic in Python and in C++, and what it promises."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from mindpangu.ascend_kernels.tiling import (
    ASCEND_910B,
    backward_plan,
    backward_tile,
    estimate_backward,
    estimate_forward,
    forward_plan,
    forward_tile,
)
from tests.ascend_kernels.simulation import build

COUNT = 10_000


@pytest.fixture(scope="module")
def shapes():
    rng = np.random.default_rng(5)
    lengths = np.exp(rng.uniform(0, np.log(20000), (COUNT, 2))).astype(np.uint32)
    return np.column_stack([np.maximum(lengths, 1), rng.integers(1, 600, COUNT)]).astype(np.uint32)


def of(tile, plan):
    return [*tile, plan.l1, plan.l0a, plan.l0b, plan.l0c, plan.ub, plan.workspace]


def test_python_and_cpp_agree_on_ten_thousand_shapes(shapes, tmp_path):
    out = np.zeros((COUNT, 16), np.uint64)
    pointer = ctypes.POINTER(ctypes.c_uint32)
    build("tiling.cpp", tmp_path).tilings(shapes.ctypes.data_as(pointer), COUNT, out.ctypes.data_as(ctypes.c_void_p))
    for (s, t, d), row in zip(shapes.tolist(), out.tolist()):
        forth, back = forward_tile(s, t, d), backward_tile(s, t, d)
        assert row == of(forth, forward_plan(d, *forth)) + of(back, backward_plan(d, *back, 2)), (s, t, d)


def test_every_tile_fits_and_none_that_is_larger_in_both_ways_would(shapes):
    for s, t, d in shapes[:500].tolist():
        for tile, plan, most in (
            (forward_tile(s, t, d), forward_plan, (s, t)),
            (backward_tile(s, t, d), lambda *x: backward_plan(*x, 2), (max(s, t),) * 2),
        ):
            assert plan(d, *tile).fits(ASCEND_910B)
            assert tile[0] % 16 == tile[1] % 16 == 0 < min(tile)
            larger = tile[0] + 16, tile[1] + 16
            within = all(side <= min(128, -(-whole // 16) * 16) for side, whole in zip(larger, most))
            assert not (within and plan(d, *larger).fits(ASCEND_910B)) or tile[0] * tile[1] >= 64 * 64


def test_no_tile_fits_heads_that_are_too_wide():
    assert forward_tile(64, 64, 4096) == (0, 0)


def test_estimates_grow_with_the_work_and_name_what_bounds_them():
    small, large = estimate_forward(1, 10, 1024, 1024, 64), estimate_forward(1, 10, 4096, 4096, 64)
    assert 13 < large.seconds / small.seconds < 17  # the cores are shared more evenly
    assert large.flops == 16 * small.flops
    for estimate in (small, large, estimate_backward(1, 10, 4096, 4096, 64)):
        assert 0 < estimate.share < 1
        assert estimate.seconds == getattr(estimate, estimate.bound) >= max(estimate.cube, estimate.vector)
    assert estimate_backward(1, 10, 1024, 1024, 64).seconds > 2 * small.seconds
