"""Pipelines on paper: the closed forms, and what every schedule must keep to."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.parallel.pipeline import cut, simulate

times = st.lists(st.integers(1, 9), min_size=1, max_size=6)
kinds = st.sampled_from(["gpipe", "1f1b"])


@given(kinds, st.integers(1, 8), st.integers(1, 16), st.integers(1, 5), st.integers(1, 5))
def test_equal_stages_wait_for_the_share_that_theory_says(kind, stages, micro_batches, forward, backward):
    line = simulate(kind, [forward] * stages, [backward] * stages, micro_batches)
    assert line.length == (micro_batches + stages - 1) * (forward + backward)
    assert line.bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1))


@given(st.integers(1, 8), st.integers(1, 16))
def test_1f1b_holds_no_more_than_the_stages_behind_it(stages, micro_batches):
    line = simulate("1f1b", [1] * stages, [2] * stages, micro_batches)
    assert line.held == tuple(min(micro_batches, stages - s) for s in range(stages))
    assert simulate("gpipe", [1] * stages, [2] * stages, micro_batches).held == (micro_batches,) * stages


@given(kinds, times, st.integers(1, 8), st.randoms())
@settings(max_examples=60)
def test_every_pass_happens_once_after_what_it_needs_and_no_stage_does_two_things(kind, forward, micro_batches, random):
    backward = [random.randint(1, 9) for _ in forward]
    line = simulate(kind, forward, backward, micro_batches)
    at = {(w.stage, w.micro_batch, w.forward): w for w in line.work}
    stages = len(forward)
    assert len(at) == len(line.work) == 2 * stages * micro_batches
    for (s, k, is_forward), one in at.items():
        assert one.end - one.start == (forward if is_forward else backward)[s]
        if is_forward and s:
            assert at[s - 1, k, True].end <= one.start
        if not is_forward:
            assert at[s, k, True].end <= one.start
            if s < stages - 1:
                assert at[s + 1, k, False].end <= one.start
    for s in range(stages):
        mine = sorted((w.start, w.end) for w in line.work if w.stage == s)
        assert all(a[1] <= b[0] for a, b in zip(mine, mine[1:]))
    assert line.length >= max((f + b) * micro_batches for f, b in zip(forward, backward))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.data())
def test_cuts_are_the_best_there_are(costs, data):
    stages = data.draw(st.integers(1, len(costs)))

    def largest(starts):
        return max(sum(costs[a:b]) for a, b in zip(starts, [*starts[1:], len(costs)]))

    found = cut(costs, stages)
    assert found[0] == 0
    assert len(found) == stages
    every = [(0, *rest) for rest in combinations(range(1, len(costs)), stages - 1)]
    assert largest(found) == min(largest(starts) for starts in every)


def test_too_few_pieces():
    with pytest.raises(ValueError, match="2 pieces cannot be cut into 3"):
        cut([1, 1], 3)
