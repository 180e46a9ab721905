"""The 910A's AscendC flash attention in the simulator, against a float64 reference: simulated, never run on an NPU."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.ascend_kernels.tiling import coupled_backward_tile, coupled_forward_tile
from tests.ascend_kernels.simulation import (
    backward,
    error,
    forward,
    reference,
    rounded,
    settings,
    split,
    widened,
)

SHAPES = 300
FORWARD, BACKWARD = 2e-3, 5e-3  # relative errors


def some_shape(rng):
    """Whole fractals of queries and channels; any keys."""
    s, t = 16 * int(rng.integers(1, 18)), int(rng.choice([rng.integers(1, 40), rng.integers(1, 300), 77]))
    return int(rng.integers(1, 3)), int(rng.integers(1, 4)), s, t, int(rng.choice([16, 32, 48, 64, 80, 128, 160]))


def check(kernels, rng, shape, tiles=None, causal=False, cores=2):
    """Both kernels of a 910A."""
    n, heads, s, t, d = shape
    q, k, v, do = (rounded(rng.standard_normal((n, length, heads * d)), "half") for length in (s, t, t, s))
    forth, back = tiles or (coupled_forward_tile(s, t, d), coupled_backward_tile(s, t, d))
    tiling = settings(q, k, heads, forth, causal, d**-0.5)
    o, lse = forward(kernels("forward.cpp", chip="910a"), q, k, v, tiling, cores)
    wanted = reference(q, k, v, tiling, do)
    assert error(o, wanted[0]) <= FORWARD, shape
    np.testing.assert_allclose(lse, wanted[1], rtol=1e-4, atol=1e-4)
    delta = (split(o, heads) * split(do, heads)).sum(-1).astype(np.float32)
    tiling = settings(q, k, heads, back, causal, d**-0.5)
    grads = backward(kernels("backward.cpp", chip="910a"), [q, k, v, do, lse, delta], tiling, cores)
    for got, right in zip(grads, wanted[2:]):
        if np.linalg.norm(right) > 1e-9:
            assert error(got, right) <= BACKWARD, shape
    return (o, lse, *grads)


def test_three_hundred_random_shapes(kernels):
    rng = np.random.default_rng(7)
    for _ in range(SHAPES):
        shape = some_shape(rng)
        small = [tuple(int(16 * rng.integers(1, 5)) for _ in range(2)) for _ in range(2)]
        tiles = small if rng.random() < 0.5 else None
        causal = bool(rng.random() < 0.5) and shape[3] <= shape[2]
        check(kernels, rng, shape, tiles, causal, int(rng.integers(1, 4)))


@pytest.mark.parametrize(
    "shape", [(1, 1, 2048, 2048, 48), (1, 1, 4096, 77, 64), (2, 2, 1024, 1024, 64), (1, 1, 1008, 1031, 160)]
)
def test_pictures_of_real_size(kernels, shape):
    check(kernels, np.random.default_rng(1), shape)


def test_the_result_depends_neither_on_who_is_first_nor_on_how_many_work(kernels):
    shape = (2, 3, 112, 77, 64)
    results = [check(kernels, np.random.default_rng(2), shape, cores=cores) for cores in (1, 2, 5)]
    for other in results[1:]:
        for one, two in zip(results[0], other):
            np.testing.assert_array_equal(one, two)


def test_hidden_scores_may_be_greater_than_all_that_count(kernels):
    """In a causal mask; and no exponential of them overflows."""
    rng = np.random.default_rng(3)
    q, k, v = (rounded(rng.standard_normal((1, 64, 64)), "half") for _ in range(3))
    q[0, 3], k[0, 5] = 60, 60  # key 5 is hidden from query 3, and its score is 28,800
    tiling = settings(q, k, 1, (32, 32), True, 0.125)
    o, lse = forward(kernels("forward.cpp", chip="910a"), q, k, v, tiling)
    right = reference(q, k, v, tiling, v)
    assert error(o, right[0]) <= FORWARD
    delta = (split(o, 1) * split(v, 1)).sum(-1).astype(np.float32)
    for got, wanted in zip(backward(kernels("backward.cpp", chip="910a"), [q, k, v, v, lse, delta], tiling), right[2:]):
        assert np.isfinite(widened(got)).all() and error(got, wanted) <= BACKWARD
