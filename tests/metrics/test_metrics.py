"""Metrics on cases whose answer is known."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.metrics.fidelity import psnr
from mindpangu.metrics.retrieval import ranks, recall_at


def test_a_copy_of_the_answer_ranks_first():
    gallery = np.random.default_rng(0).standard_normal((20, 8))
    assert (ranks(gallery, gallery, np.arange(20)) == 1).all()


def test_the_opposite_of_the_answer_ranks_last():
    gallery = np.random.default_rng(0).standard_normal((20, 8))
    centre = gallery.mean(0)
    assert (ranks(2 * centre - gallery, gallery, np.arange(20)) == 20).all()


def test_constant_features_win_nothing():
    gallery = np.random.default_rng(0).standard_normal((20, 8))
    assert (ranks(np.tile(gallery.mean(0), (20, 1)), gallery, np.arange(20)) == 20).all()


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 30))
def test_recall_counts(found, k):
    assert recall_at(np.array(found), k) == sum(r <= k for r in found) / len(found)


def test_psnr_of_a_known_error():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1] += 5
    np.testing.assert_allclose(psnr(a, b)[1], 20 * np.log10(255 / 5))
    assert psnr(a, b)[0] > 100
