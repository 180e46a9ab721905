"""Windows: they cover everything, agree where they must, and never change what needs no changing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.diffusion.windows import Windowed, starts


@given(st.integers(1, 40), st.integers(0, 100))
def test_windows_cover_an_axis_and_overlap_by_half(window, more):
    length = window + more
    found = starts(length, window)
    assert found[0] == 0 and found[-1] == length - window
    assert all(0 < b - a <= max(1, window // 2) for a, b in zip(found, found[1:]))
    assert set().union(*(range(s, s + window) for s in found)) == set(range(length))


@pytest.mark.parametrize("shape", [(4, 4), (9, 4), (10, 13)])
def test_a_denoiser_that_looks_at_one_place_only_is_itself(shape):
    """x0 = x / (1 + σ²), of a unit Gaussian, place by place."""
    x = np.random.default_rng(0).standard_normal((2, 3, *shape)).astype(np.float32)
    sigma = np.full(2, 0.7)

    def gaussian(x, sigma, cond):
        assert x.shape[2:] == (4, 4)
        return x / np.float32(1 + sigma[0] ** 2)

    np.testing.assert_allclose(Windowed(gaussian, (4, 4))(x, sigma), gaussian_of(x, sigma), rtol=1e-6)


def gaussian_of(x, sigma):
    return x / np.float32(1 + sigma[0] ** 2)


def test_where_windows_disagree_the_nearer_middle_counts_more():
    """Two windows say 0 and 1: from the left end to the right the answer climbs from 0 to 1."""
    said = iter((0.0, 0.5, 1.0))
    out = Windowed(lambda x, sigma, cond: np.full_like(x, next(said)), (1, 4))(np.zeros((1, 1, 1, 8)), np.ones(1))
    row = out[0, 0, 0]
    assert row[0] == 0 and row[-1] == 1
    assert (np.diff(row) >= 0).all()


def test_tensors_are_treated_as_arrays_are():
    from mindspore import Tensor

    x = np.random.default_rng(0).standard_normal((1, 2, 5, 9)).astype(np.float32)
    windowed = Windowed(lambda x, sigma, cond: x * x.mean(), (4, 4))
    np.testing.assert_allclose(windowed(Tensor(x), np.ones(1)).asnumpy(), windowed(x, np.ones(1)), atol=1e-5)


def test_a_window_larger_than_the_latent_is_refused():
    with pytest.raises(ValueError, match="a window of 4 does not fit into 3"):
        starts(3, 4)
