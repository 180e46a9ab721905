"""Who keeps which moments: all of them once, evenly, and in runs."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from mindpangu.parallel.ranks import by_owner, owners, spans

sizes = st.lists(st.integers(1, 10_000), max_size=60)
processes = st.integers(1, 9)


@given(sizes, processes)
def test_no_owner_has_more_than_an_even_share_and_one_tensor(sizes, processes):
    found = owners(sizes, processes)
    loads = [sum(size for size, owner in zip(sizes, found) if owner == process) for process in range(processes)]
    assert sum(loads) == sum(sizes)
    assert max(loads) <= sum(sizes) / processes + max(sizes, default=0)


@given(sizes, processes)
def test_runs_follow_each_other_and_hold_each_tensor_once(sizes, processes):
    tensors = [SimpleNamespace(size=size, number=i) for i, size in enumerate(sizes)]
    ordered, runs = by_owner(tensors, processes)
    assert sorted(tensor.number for tensor in ordered) == list(range(len(sizes)))
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == len(sizes) and len(runs) == processes
    found = owners(sizes, processes)
    for process, run in enumerate(runs):
        assert all(found[tensor.number] == process for tensor in ordered[run])


def test_alone_nothing_changes_its_place():
    tensors = [SimpleNamespace(size=size) for size in (3, 9, 1)]
    assert by_owner(tensors, 1) == (tensors, [slice(0, 3)])
    assert spans([0, 0, 2], 3) == [slice(0, 2), slice(2, 2), slice(2, 3)]
