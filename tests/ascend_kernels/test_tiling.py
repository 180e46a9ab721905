"""The tiling: one arithmetic in Python and in C++, and what it promises."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from mindpangu.ascend_kernels.tiling import (
    ASCEND_910A,
    ASCEND_910B,
    ForwardTile,
    backward_plan,
    backward_tile,
    coupled_backward_plan,
    coupled_backward_tile,
    coupled_forward_plan,
    coupled_forward_tile,
    estimate_backward,
    estimate_forward,
    forward_plan,
    forward_tile,
)
from tests.ascend_kernels.simulation import Tiling, build

COUNT = 10_000


@pytest.fixture(scope="module")
def shapes():
    rng = np.random.default_rng(5)
    lengths = np.exp(rng.uniform(0, np.log(20000), (COUNT, 2))).astype(np.uint32)
    return np.column_stack([np.maximum(lengths, 1), rng.integers(1, 600, COUNT)]).astype(np.uint32)


def of(tile, plan):
    return [*tile, plan.l1, plan.l0a, plan.l0b, plan.l0c, plan.ub, plan.workspace]


def test_python_and_cpp_agree_on_ten_thousand_shapes(shapes, tmp_path):
    out = np.zeros((COUNT, 68), np.uint64)
    pointer = ctypes.POINTER(ctypes.c_uint32)
    build("tiling.cpp", tmp_path).tilings(shapes.ctypes.data_as(pointer), COUNT, out.ctypes.data_as(ctypes.c_void_p))
    for (s, t, d), row in zip(shapes.tolist(), out.tolist()):
        wanted = []
        for score in (2, 4):
            tile = forward_tile(s, t, d, score)
            wanted += [tile.span, tile.strip, *of(tile[:2], forward_plan(d, tile, score))]
        for score, two in itertools.product((2, 4), (False, True)):
            back = backward_tile(s, t, d, score, two)
            wanted += of(back, backward_plan(d, *back, 2, score, not two))
        for tile, plan in (
            (coupled_forward_tile, coupled_forward_plan),
            (coupled_backward_tile, coupled_backward_plan),
        ):
            wanted += of(tile(s, t, d), plan(d, *tile(s, t, d)))
        assert row == wanted, (s, t, d)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Both host sides with stand-ins for CANN's headers."""
    return build("host.cpp", tmp_path_factory.mktemp("host"))


def three(*shapes):
    return (ctypes.c_int64 * (3 * len(shapes)))(*(side for shape in shapes for side in shape))


@pytest.mark.parametrize("backward", [False, True])
def test_the_host_takes_the_tile_and_as_many_cores_as_have_work(host, backward):
    tiling, launch = Tiling(), (ctypes.c_uint64 * 2)()
    q, k = (2, 200, 3 * 40), (2, 77, 3 * 40)
    assert host.tile(backward, three(q, k), 3, ctypes.byref(tiling), launch) == 0
    tile = (backward_tile if backward else forward_tile)(200, 77, 40)
    assert (tiling.batch, tiling.heads, tiling.queries, tiling.keys, tiling.width) == (2, 3, 200, 77, 40)
    assert (tiling.rows, tiling.columns, tiling.causal, tiling.scale) == (*tile[:2], 0, 0.5)
    assert backward or (tiling.span, tiling.strip, tiling.half_scores) == (*tile[2:], 1)
    plan = backward_plan(40, *tile, 2, 2, True) if backward else forward_plan(40, tile, 2)
    cores = min(24, 2 * 3 * -(-(77 if backward else 200) // tile[0]))
    assert list(launch) == [cores, 2**24 + cores * plan.workspace + (4 * 2 * 200 * 3 * 40 if backward else 0)]
    assert host.described(backward) == 3  # 910b, 910_93 and 910, every input made contiguous


@pytest.fixture
def host_of_910a(host):
    host.pretend(True)
    yield host
    host.pretend(False)


@pytest.mark.parametrize("backward", [False, True])
def test_the_host_of_a_910a(host_of_910a, backward):
    """Coupled cores without a workspace; multiples of 16 channels and queries alone."""
    tiling, launch = Tiling(), (ctypes.c_uint64 * 2)()
    assert host_of_910a.tile(backward, three((2, 208, 144), (2, 77, 144)), 3, ctypes.byref(tiling), launch) == 0
    tile = (coupled_backward_tile if backward else coupled_forward_tile)(208, 77, 48)
    assert (tiling.rows, tiling.columns, tiling.width) == (*tile, 48)
    assert list(launch) == [min(32, 2 * 3 * -(-208 // (min(tile) if backward else tile[0]))), 2**24]
    for q, k in (((2, 200, 144), (2, 77, 144)), ((2, 208, 120), (2, 77, 120))):
        assert host_of_910a.tile(backward, three(q, k), 3, ctypes.byref(tiling), launch) != 0


@pytest.mark.parametrize(
    ("q", "k", "heads"),
    [
        ((2, 0, 120), (2, 77, 120), 3),
        ((2, 200, 120), (2, 0, 120), 3),
        ((0, 200, 120), (0, 77, 120), 3),
        ((2, 200, 120), (2, 77, 240), 3),
        ((2, 200, 120), (2, 77, 120), 7),
        ((2, 200, 120), (2, 77, 120), 0),
        ((1, 64, 4096), (1, 64, 4096), 1),
    ],
)
def test_what_no_core_could_do_is_refused(host, q, k, heads):
    for backward in (False, True):
        assert host.tile(backward, three(q, k), heads, ctypes.byref(Tiling()), (ctypes.c_uint64 * 2)()) != 0


def test_the_forward_operator_says_its_shapes(host):
    out = (ctypes.c_int64 * 6)()
    assert host.infer(three((2, 200, 120), (2, 77, 120), (2, 77, 120)), 3, out) == 0
    assert list(out) == [2, 200, 120, 2, 3, 200]


def test_every_tile_fits_and_none_that_is_larger_in_both_ways_would(shapes):
    for s, t, d in shapes[:500].tolist():
        for tile, plan, most in (
            (forward_tile(s, t, d)[:2], lambda d, r, c: forward_plan(d, ForwardTile(r, c, 1, 8), 2), (s, t)),
            (backward_tile(s, t, d, 4, True), lambda *x: backward_plan(*x, 2, 4, False), (max(s, t),) * 2),
        ):
            assert plan(d, *tile).fits(ASCEND_910B)
            assert tile[0] % 16 == tile[1] % 16 == 0 < min(tile)
            larger = tile[0] + 16, tile[1] + 16
            within = all(side <= min(128, -(-whole // 16) * 16) for side, whole in zip(larger, most))
            assert not (within and plan(d, *larger).fits(ASCEND_910B)) or tile[0] * tile[1] >= 64 * 64


def test_the_910as_tiles_fit(shapes):
    for s, t, d in shapes[:500].tolist():
        width = min(-(-d // 16) * 16, 512)
        for tile, plan in (
            (coupled_forward_tile, coupled_forward_plan),
            (coupled_backward_tile, coupled_backward_plan),
        ):
            assert plan(width, *tile(s, t, width)).fits(ASCEND_910A) and min(tile(s, t, width)) > 0


def test_no_tile_fits_heads_that_are_too_wide():
    assert forward_tile(64, 64, 4096) == (0, 0, 0, 0)


def test_estimates_grow_with_the_work_and_name_what_bounds_them():
    small, large = estimate_forward(1, 10, 1024, 1024, 64), estimate_forward(1, 10, 4096, 4096, 64)
    assert 13 < large.seconds / small.seconds < 17  # the cores are shared more evenly
    assert large.flops == 16 * small.flops
    for estimate in (small, large, estimate_backward(1, 10, 4096, 4096, 64)):
        assert 0 < estimate.share < 1
        assert estimate.seconds == getattr(estimate, estimate.bound) >= max(estimate.cube, estimate.vector)
    assert estimate_backward(1, 10, 1024, 1024, 64).seconds > 2 * small.seconds
