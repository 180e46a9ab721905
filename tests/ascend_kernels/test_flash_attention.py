"""The AscendC flash attention in the simulator, against a float64 reference: simulated, never run on an NPU."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.ascend_kernels.tiling import (
    ASCEND_910B,
    backward_plan,
    backward_tile,
    forward_tile,
)
from tests.ascend_kernels.simulation import (
    backward,
    error,
    forward,
    join,
    reference,
    rounded,
    settings,
    split,
    widened,
)

WIDTHS = (32, 40, 64, 80, 128, 160)
SHAPES = 300
FORWARD, BACKWARD = 2e-3, 5e-3  # relative errors in half; bfloat16_t has three bits less


def check(kernels, rng, shape, dtype="half", tiles=None, causal=False, cores=2, looser=1, half=True, two=False):
    """Both kernels on random numbers of `shape` (batch, heads, queries, keys, width).

    `half`: scores in half; `two`: the backward in two passes.
    """
    n, heads, s, t, d = shape
    q, k, v, do = (rounded(rng.standard_normal((n, length, heads * d)), dtype) for length in (s, t, t, s))
    forth, back = tiles or (forward_tile(s, t, d, 2 if half else 4), backward_tile(s, t, d, 2 if half else 4, two))
    tiling = settings(q, k, heads, forth, causal, d**-0.5, half)
    o, lse = forward(kernels("forward.cpp", dtype), q, k, v, tiling, cores)
    wanted = reference(q, k, v, tiling, do)
    assert error(o, wanted[0]) <= looser * FORWARD, shape
    np.testing.assert_allclose(lse, wanted[1], rtol=1e-4, atol=2e-3 if half else 1e-4)
    delta = (split(o, heads) * split(do, heads)).sum(-1).astype(np.float32)
    tiling = settings(q, k, heads, back, causal, d**-0.5, half, two)
    grads = backward(kernels("backward.cpp", dtype), [q, k, v, do, lse, delta], tiling, cores)
    for got, right in zip(grads, wanted[2:]):
        if np.linalg.norm(right) > 1e-9:  # of one key alone the gradients of queries and keys are rounding
            assert error(got, right) <= looser * BACKWARD, shape
    return (o, lse, *grads)


def some_shape(rng):
    """Lengths with and without tails; few heads, so that three hundred take a minute."""
    s, t = (int(rng.choice([rng.integers(2, 40), rng.integers(2, 300), 16 * rng.integers(1, 20)])) for _ in range(2))
    return int(rng.integers(1, 3)), int(rng.integers(1, 4)), s, int(rng.choice([t, 77])), int(rng.choice(WIDTHS))


def test_three_hundred_random_shapes(kernels):
    rng = np.random.default_rng(6)
    for _ in range(SHAPES):
        shape = some_shape(rng)
        small = [tuple(int(16 * rng.integers(1, 5)) for _ in range(2)) for _ in range(2)]
        small[0] += int(rng.integers(1, 4)), int(8 * rng.integers(1, 4))
        half, two, as_given = (bool(rng.random() < 0.5) for _ in range(3))
        fits = backward_plan(shape[-1], *small[1], 2, 4, True).fits(ASCEND_910B)
        tiles, cores = small if as_given and fits else None, int(rng.integers(1, 4))
        check(kernels, rng, shape, tiles=tiles, cores=cores, half=half, two=two)


@pytest.mark.parametrize(
    "shape", [(1, 1, 4096, 4096, 40), (1, 1, 4096, 77, 64), (2, 2, 1024, 1024, 64), (1, 1, 1000, 1031, 160)]
)
def test_pictures_of_real_size(kernels, shape):
    check(kernels, np.random.default_rng(1), shape)


@pytest.mark.parametrize("length", [1, 16, 77, 130, 257])
def test_a_causal_mask(kernels, length):
    rng = np.random.default_rng(length)
    check(kernels, rng, (2, 2, length, length, 64), causal=True)
    check(kernels, rng, (1, 1, length, length, 64), causal=True, tiles=((32, 48, 2, 16), (48, 32)))


@pytest.mark.parametrize("width", WIDTHS)
def test_bfloat16(kernels, width):
    check(kernels, np.random.default_rng(width), (1, 2, 150, 77, width), "bfloat16_t", looser=4)


def test_the_result_depends_neither_on_who_is_first_nor_on_how_many_work(kernels):
    """Bit-equal for other orders of the cores' turns, other numbers of cores, and in the company of other pictures."""
    shape = (2, 3, 100, 77, 64)
    results = [check(kernels, np.random.default_rng(2), shape, cores=cores) for cores in (1, 2, 5)]
    for other in results[1:]:
        for one, two in zip(results[0], other):
            np.testing.assert_array_equal(one, two)
    rng = np.random.default_rng(2)
    q, k, v = (rounded(rng.standard_normal((2, length, 192)), "half") for length in (100, 77, 77))
    tiling = settings(q, k, 3, (32, 32), False, 0.125)
    library = kernels("forward.cpp")
    whole = [forward(library, q, k, v, tiling, seed=seed)[0] for seed in range(5)]
    tiling.batch = 1
    alone = forward(library, q[1:], k[1:], v[1:], tiling)[0]
    for o in whole:
        np.testing.assert_array_equal(o, whole[0])
        np.testing.assert_array_equal(o[1:], alone)


@pytest.mark.parametrize("half", [False, True])
def test_scores_far_apart_neither_overflow_nor_lose_the_largest(kernels, half):
    """Half holds no score above 65,504: a greater one counts as that."""
    rng = np.random.default_rng(3)
    q, k, v = (rounded(rng.standard_normal((1, 64, 64)), "half") for _ in range(3))
    q[0, 3], k[0, 5] = 60, 60  # 60² · 64 = 230400, times an eighth
    tiling = settings(q, k, 1, (32, 32), False, 0.125, half)
    o, lse = forward(kernels("forward.cpp"), q, k, v, tiling)
    wanted, sums = reference(q, k, v, tiling)
    assert np.isfinite(widened(o)).all()
    sums[0, 0, 3] = 65504 / 8 if half else sums[0, 0, 3]
    np.testing.assert_allclose(lse, sums, rtol=1e-3 if half else 1e-5)
    np.testing.assert_allclose(widened(o), wanted, atol=4e-3)


def test_equal_scores_give_the_mean(kernels):
    v = rounded(np.random.default_rng(4).standard_normal((1, 77, 64)), "half")
    q, k = np.zeros((1, 20, 64), np.float16), np.ones((1, 77, 64), np.float16)
    o, lse = forward(kernels("forward.cpp"), q, k, v, settings(q, k, 2, (16, 32), False, 1.0))
    np.testing.assert_allclose(o, np.broadcast_to(v.astype(np.float64).mean(1, keepdims=True), o.shape), atol=1e-3)
    np.testing.assert_allclose(lse, np.log(77), rtol=1e-6)
    assert join(split(o, 2)).shape == o.shape
