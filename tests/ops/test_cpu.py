"""The compiled CPU operators against MindSpore's own, values and gradients, on random shapes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindpangu import ops, runtime

runtime.start("CPU")

from mindspore import Tensor, nn  # noqa: E402
from mindspore import ops as mops  # noqa: E402

from mindpangu.ops.cpu.build import library  # noqa: E402

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler or no oneDNN here")

# A graph is compiled for every shape and both back ends, so a few shapes each.
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Of the largest value; bfloat16 has 8 bits of mantissa, and sums of its roundings mostly cancel.
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2}


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
    precision=st.sampled_from(["fp32", "bf16"]),
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
    precision=st.sampled_from(["fp32", "bf16"]),
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
@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=2), channels=st.integers(2, 70), seed=seeds)
def test_layer_norm_and_geglu(rows, channels, seed):
    def layer_norm(x, gamma, beta):
        return ops.layer_norm(x, gamma, beta, 1e-5)

    check(layer_norm, [(*rows, channels), (channels,), (channels,)], seed)
    check(ops.geglu, [(*rows, 2 * channels)], seed)


@few
@given(
    n=st.integers(1, 2),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    heads=st.integers(1, 3),
    dim=st.integers(1, 40),
    causal=st.booleans(),
    precision=st.sampled_from(["fp32", "bf16"]),
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

    first, second = (value_and_gradients(net, [x, w, b], ones, "bf16") for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    for one, other in zip(first[1], second[1]):
        np.testing.assert_array_equal(one, other)
