"""Metrics on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.metrics.scores import StyleClassifier, edge_f1, frechet_distance, psnr, ranks, ranks_of_any, recall_at


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


def test_of_several_right_answers_the_best_one_counts():
    rng = np.random.default_rng(0)
    queries, gallery, answers = rng.standard_normal((9, 8)), rng.standard_normal((20, 8)), rng.integers(20, size=9)
    right = answers[:, None] == np.arange(20)
    alone = ranks(queries, gallery, answers)
    np.testing.assert_array_equal(ranks_of_any(queries, gallery, right), alone)
    everything = np.ones_like(right)
    np.testing.assert_array_equal(ranks_of_any(queries, gallery, everything), 1)
    others = rng.integers(20, size=9)
    both = right | (others[:, None] == np.arange(20))
    assert (ranks_of_any(queries, gallery, both) <= np.minimum(alone, ranks(queries, gallery, others))).all()


def test_a_style_is_found_by_the_direction_that_it_has():
    rng = np.random.default_rng(0)
    classes = [("flat", "noto", "3D")[i % 3] for i in range(300)]
    directions = dict(zip(("flat", "noto", "3D"), 3 * rng.standard_normal((3, 16))))
    features = np.stack([directions[name] + rng.standard_normal(16) for name in classes])
    style_of = StyleClassifier(features[:150], classes[:150])
    assert np.mean([a == b for a, b in zip(style_of(features[150:]), classes[150:])]) > 0.95


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 30))
def test_recall_counts(found, k):
    assert recall_at(np.array(found), k) == sum(r <= k for r in found) / len(found)


def test_psnr_of_a_known_error():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1] += 5
    np.testing.assert_allclose(psnr(a, b)[1], 20 * np.log10(255 / 5))
    assert psnr(a, b)[0] > 100


def test_edges_within_two_pixels_count():
    given = np.zeros((32, 32), bool)
    given[:, 10] = True
    for shift, wanted in ((0, 1.0), (2, 1.0), (3, 0.0)):
        assert edge_f1(given, np.roll(given, shift, axis=1)) == wanted
    twice = given | np.roll(given, 10, axis=1)  # half of what was found is right, all that was given is found
    assert edge_f1(given, twice) == pytest.approx(2 / 3)
    assert edge_f1(twice, given) == pytest.approx(2 / 3)


def test_nothing_drawn_where_nothing_is_given():
    nothing, something = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    assert (edge_f1(nothing, nothing), edge_f1(nothing, something), edge_f1(something, nothing)) == (1.0, 0.0, 0.0)


def test_frechet_distance_against_the_formula():
    """Full matrices and SciPy's matrix root."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5))
    b = rng.standard_normal((50, 5)) @ rng.standard_normal((5, 5)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a + 3.0) == pytest.approx(5 * 9.0)
