"""Operators against float64 references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu import runtime

runtime.start("CPU")
from mindspore import Tensor  # noqa: E402

from mindpangu import ops  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def whole_precision():
    """The references are of float64; what bfloat16 inside costs is for test_cpu."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(runtime.CPU_OPERATORS, "fp32")
        yield


def reference_attention(q, k, v, heads, scale, mask):
    n, s, c = q.shape
    split = lambda x: x.reshape(n, x.shape[1], heads, c // heads).transpose(0, 2, 1, 3).astype(np.float64)  # noqa: E731
    scores = split(q) @ split(k).transpose(0, 1, 3, 2) * scale + (0 if mask is None else mask)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ split(v)).transpose(0, 2, 1, 3).reshape(n, s, c)


@given(
    st.integers(1, 2),
    st.sampled_from([1, 5]),
    st.sampled_from([3, 5]),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_attention(n, s, t, heads, seed):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((n, length, 4)).astype(np.float32) for length in (s, t, t))
    out = ops.attention(Tensor(q), Tensor(k), Tensor(v), heads=heads, scale=0.5).asnumpy()
    np.testing.assert_allclose(out, reference_attention(q, k, v, heads, 0.5, None), atol=1e-5)


def test_causal_attention_sees_no_future():
    x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    out = ops.attention(Tensor(x), Tensor(x), Tensor(x), heads=2, scale=0.7, causal=True).asnumpy()
    np.testing.assert_allclose(out, reference_attention(x, x, x, 2, 0.7, np.triu(np.full((6, 6), -1e9), 1)), atol=1e-5)
    np.testing.assert_allclose(out[:, 0], x[:, 0], atol=1e-5)  # the first token sees itself alone


def test_activations():
    x = np.linspace(-6, 6, 41).astype(np.float32)
    phi = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    np.testing.assert_allclose(ops.gelu(Tensor(x)).asnumpy(), x * phi, atol=1e-5)
    np.testing.assert_allclose(ops.quick_gelu(Tensor(x)).asnumpy(), x / (1 + np.exp(-1.702 * x)), atol=1e-5)
    both = np.stack([x, x[::-1]], -1)  # value, gate
    np.testing.assert_allclose(ops.geglu(Tensor(both)).asnumpy()[:, 0], x * (x * phi)[::-1], atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_and_silu(groups):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 4, 3, 3)) * 3 + 1
    gamma, beta = rng.standard_normal((2, 4))
    grouped = x.reshape(2, groups, -1)
    normed = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    expected = normed.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    args = [Tensor(a.astype(np.float32)) for a in (x, gamma, beta)]
    np.testing.assert_allclose(ops.group_norm(*args, groups, 1e-5).asnumpy(), expected, atol=1e-4)
    silu = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(ops.group_norm_silu(*args, groups, 1e-5).asnumpy(), silu, atol=1e-4)


def test_layer_norm():
    rng = np.random.default_rng(2)
    x, gamma, beta = rng.standard_normal((5, 8)), rng.standard_normal(8), rng.standard_normal(8)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gamma + beta
    args = [Tensor(a.astype(np.float32)) for a in (x, gamma, beta)]
    np.testing.assert_allclose(ops.layer_norm(*args, 1e-5).asnumpy(), expected, atol=1e-5)
