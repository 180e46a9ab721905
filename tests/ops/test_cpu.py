"""The compiled CPU operators against MindSpore's own, values and gradients, on random shapes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mindpangu import ops, runtime

runtime.start("CPU")

from mindspore import Tensor, nn  # noqa: E402
from mindspore import ops as mops  # noqa: E402

from mindpangu.ops.cpu.build import library  # noqa: E402
from mindpangu.selftest import reference  # noqa: E402

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler or no oneDNN here")

# A graph is compiled for every shape and both back ends, so a few shapes each.
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Of the largest value; bfloat16 has 8 bits of mantissa, and sums of its roundings mostly cancel.
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2}
KNOWN = [one for one in runtime.cpu_precisions() if one != "off"]


class Call(nn.Cell):
    """`function` as a graph."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def construct(self, *inputs):
        return self.function(*inputs)


def value_and_gradients(function, inputs, weight, operators):
    """function(*inputs) and the gradients of Σ weight·function, with one set of CPU operators."""
    before = os.environ.get(runtime.CPU_OPERATORS)
    os.environ[runtime.CPU_OPERATORS] = operators
    try:
        net, tensors = Call(function), [Tensor(x) for x in inputs]
        value = net(*tensors).asnumpy()
        gradient = mops.GradOperation(get_all=True, sens_param=True)(Call(function))
        return value, [g.asnumpy() for g in gradient(*tensors, Tensor(weight(value.shape)))]
    finally:
        os.environ[runtime.CPU_OPERATORS] = before


def check(function, shapes, seed, precision="fp32"):
    """Ours equals MindSpore's, up to rounding, for values and for every gradient."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def weight(shape):
        return np.random.default_rng(seed + 1).standard_normal(shape).astype(np.float32)

    expected = value_and_gradients(function, inputs, weight, "off")
    found = value_and_gradients(function, inputs, weight, precision)
    for ours, theirs in zip([found[0], *found[1]], [expected[0], *expected[1]]):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[precision] * max(0.1, np.abs(theirs).max()))


seeds = st.integers(0, 1000)


@few
@given(
    n=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    geometry=st.sampled_from([(3, 1, 1, 1), (1, 1, 0, 0), (3, 2, 1, 1), (3, 2, 0, 1)]),
    precision=st.sampled_from(KNOWN),
    seed=seeds,
)
def test_conv2d(n, channels, size, geometry, precision, seed):
    kernel, stride, before, after = geometry
    shapes = [(n, channels[0], *size), (channels[1], channels[0], kernel, kernel), (channels[1],)]

    def conv2d(x, w, b):
        return ops.conv2d(x, w, b, stride, before, after)

    check(conv2d, shapes, seed, precision)


@few
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    bias=st.booleans(),
    precision=st.sampled_from(KNOWN),
    seed=seeds,
)
def test_dense(rows, channels, bias, precision, seed):
    shapes = [(*rows, channels[0]), (channels[1], channels[0]), *([(channels[1],)] if bias else [])]
    check(ops.dense, shapes, seed, precision)


@few
@given(n=st.integers(1, 3), groups=st.integers(1, 4), per=st.integers(1, 5), side=st.integers(2, 9), seed=seeds)
def test_group_norm(n, groups, per, side, seed):
    shapes = [(n, groups * per, side, side), (groups * per,), (groups * per,)]

    def both(x, gamma, beta):
        return ops.group_norm(x, gamma, beta, groups, 1e-5) + 2 * ops.group_norm_silu(x, gamma, beta, groups, 1e-5)

    check(both, shapes, seed)


@few
@given(rows=st.integers(1, 40), channels=st.integers(2, 70), operators=st.sampled_from(["fp32", "off"]), seed=seeds)
@example(rows=1, channels=2, operators="fp32", seed=144)  # a row of two almost equal numbers
def test_layer_norm(rows, channels, operators, seed):
    """Against float64. Rounding is in proportion to the terms that cancel: x/σ in the row, ∂y·γ/σ in its gradient."""
    rng = np.random.default_rng(seed)
    x, gamma, beta, dy = (
        rng.standard_normal(s).astype(np.float32) for s in ((rows, channels), channels, channels, (rows, channels))
    )

    def layer_norm(x, gamma, beta):
        return ops.layer_norm(x, gamma, beta, 1e-5)

    value, gradients = value_and_gradients(layer_norm, [x, gamma, beta], lambda shape: dy, operators)
    wide = x.astype(np.float64)
    sigma, grad = np.sqrt(wide.var(-1, keepdims=True) + 1e-5), dy.astype(np.float64) * gamma
    error_of_hat = np.abs(wide).max(-1, keepdims=True) / sigma  # in units of the rounding, as those below
    error = {
        "y": error_of_hat * np.abs(gamma) + np.abs(beta),
        "dx": (1 + error_of_hat) * np.abs(grad).max(-1, keepdims=True) / sigma,
        "dgamma": (np.abs(dy) * (1 + error_of_hat)).sum(0),
        "dbeta": np.abs(dy).sum(0),
    }
    exact = reference.layer_norm(wide, *(one.astype(np.float64) for one in (gamma, beta)), 1e-5, dy.astype(np.float64))
    for found, true, (name, bound) in zip([value, *gradients], exact, error.items()):
        assert (np.abs(found - true) <= 8 * np.finfo(np.float32).eps * bound).all(), name


@few
@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=2), channels=st.integers(1, 70), seed=seeds)
def test_geglu(rows, channels, seed):
    check(ops.geglu, [(*rows, 2 * channels)], seed)


@few
@given(
    n=st.integers(1, 2),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    heads=st.integers(1, 3),
    dim=st.integers(1, 40),
    causal=st.booleans(),
    precision=st.sampled_from(KNOWN),
    seed=seeds,
)
def test_attention(n, lengths, heads, dim, causal, precision, seed):
    """Any lengths, causal or not; no S×S tensor is made."""
    s, t = lengths

    def attention(q, k, v):
        return ops.attention(q, k, v, heads=heads, scale=dim**-0.5, causal=causal)

    check(attention, [(n, s, heads * dim), (n, t, heads * dim), (n, t, heads * dim)], seed, precision)


def test_two_runs_give_the_same_bits():
    """Sums are split by thread in a fixed way, so that training resumes exactly."""
    rng = np.random.default_rng(3)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, 32, 16, 16), (32, 32, 3, 3), (32,)))

    def net(x, w, b):
        return ops.group_norm_silu(ops.conv2d(x, w, b, 1, 1, 1), b, b, 4, 1e-5)

    def ones(shape):
        return np.ones(shape, np.float32)

    first, second = (value_and_gradients(net, [x, w, b], ones, KNOWN[0]) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    for one, other in zip(first[1], second[1]):
        np.testing.assert_array_equal(one, other)
