"""States that several processes write: each its shard, there when all are, and read by any number of processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mindpangu.checkpoint.store import load_tensors, read_card
from mindpangu.errors import UserError
from mindpangu.parallel.ranks import Ranks
from mindpangu.train import state as module
from mindpangu.train.state import State, load_state, save_state, states
from tests.train.test_loop import Line, config_in

OWN = [
    {"w": np.ones((2, 1), np.float32), "b": np.zeros(1, np.float32)},
    {"moment1.w": np.full((2, 1), 2.0, np.float32), "moment2.w": np.full((2, 1), 3.0, np.float32)},
    {"moment1.b": np.full(1, 4.0, np.float32), "moment2.b": np.full(1, 5.0, np.float32)},
    {"average.w": np.full((2, 1), 6.0, np.float32), "average.b": np.full(1, 7.0, np.float32)},
]


def save(folder, nimg, rank, keep=2):
    save_state(folder, State(nimg=nimg, step=nimg // 4), OWN[rank], {}, keep, Ranks(rank, len(OWN)))


def save_all(folder, nimg, ranks=range(4)):
    with ThreadPoolExecutor(len(OWN)) as pool:
        for done in [pool.submit(save, folder, nimg, rank) for rank in ranks]:
            done.result()


def test_a_state_is_there_when_all_its_shards_are(tmp_path):
    save_all(tmp_path, 8, [3, 1, 2])
    assert states(tmp_path) == []
    save(tmp_path, 8, 0)
    (path,) = states(tmp_path)
    assert path.name == "state-000000000008.safetensors" and len(read_card(path)["shards"]) == 4
    found = load_tensors(path)
    for name, value in {name: value for own in OWN for name, value in own.items()}.items():
        np.testing.assert_array_equal(found[name], value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"state-000000000008.{i:05}-of-00004.safetensors" for i in range(4)), "state-000000000008.json",
    ]  # fmt: skip


def test_older_states_go_when_a_newer_one_is_whole(tmp_path):
    for nimg in (8, 16, 24):
        save_all(tmp_path, nimg)
    assert [path.stem[-2:] for path in states(tmp_path)] == ["24", "16"]
    assert len(list(tmp_path.iterdir())) == 2 * 5


def test_a_process_that_is_lost_leaves_the_state_before_and_what_it_left_goes_at_the_next_start(tmp_path, monkeypatch):
    from mindpangu import runtime
    from mindpangu.train.step import TrainStep

    runtime.start("CPU")
    save_all(tmp_path, 8)
    monkeypatch.setattr(module, "WAIT", 0.2)
    with pytest.raises(UserError, match=r"00003-of-00004\.safetensors: was not written within"):
        save_all(tmp_path, 16, [1, 2, 0])
    assert [path.stem[-2:] for path in states(tmp_path)] == ["08"]
    step = TrainStep(Line().loss_net)
    assert load_state(tmp_path, step, config_in(tmp_path)) == State(nimg=8, step=2)
    assert {p.name: float(p.asnumpy().ravel()[0]) for p in step.state} == {
        "w": 1, "b": 0, "moment1.w": 2, "moment2.w": 3, "moment1.b": 4, "moment2.b": 5, "average.w": 6, "average.b": 7,
    }  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 5


def test_each_process_checks_its_share_and_all_take_the_same_state(tmp_path, monkeypatch, capsys):
    """The second of two processes, whose share is whole, goes on from the older state as the first one must."""
    from mindpangu.train.step import TrainStep

    for nimg in (8, 16):
        save_all(tmp_path, nimg)
    shard = tmp_path / "state-000000000016.00000-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"1234")
    damaged = iter([1.0, 0.0])
    monkeypatch.setattr(Ranks, "gather", lambda self, mine: np.array([[next(damaged)], mine], np.float32))
    assert load_state(tmp_path, TrainStep(Line().loss_net), config_in(tmp_path), Ranks(1, 2)).nimg == 8
    assert not capsys.readouterr().err
