"""A simulated cluster: what one process of 1, 8, 64, 256 reads, makes, sends and keeps, in the real code.

Each is made in turn, alone: collectives are recorded and hand back what they were given.
"""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.checkpoint.store import load_tensors, read_card, save_checkpoint, write_card
from mindpangu.config import load
from mindpangu.parallel.config import ClusterConfig
from mindpangu.parallel.network import ALL_REDUCE, BROADCAST, Collective, NetworkConfig, collectives, seconds
from mindpangu.parallel.ranks import BUCKETS, Ranks
from tests.train.test_encode import encoded, generator, shards  # noqa: F401 - fixtures
from tests.train.test_plan import CONFIGS, HISTOGRAM, release  # noqa: F401 - a fixture

SIZES = (1, 8, 64, 256)
ROWS = 2  # of a batch, for each process
STEPS = 8
COPIES = 40  # of the encoded file, so that there are many


@pytest.fixture(scope="module")
def many_files(encoded, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("many")
    tensors = load_tensors(encoded / "00000.safetensors")
    shutil.copy(encoded / "empty.safetensors", folder)
    card = read_card(encoded / "empty.safetensors")
    counts = card["pictures"]["00000.safetensors"]
    names = [f"{i:05}.safetensors" for i in range(COPIES)]
    for name in names:
        save_checkpoint(folder / name, tensors, {})
    write_card(folder / "empty.safetensors", {**card, "pictures": dict.fromkeys(names, counts)})
    return folder


def test_a_process_reads_and_makes_its_own_rows_alone(runs, many_files, tmp_path, monkeypatch):
    """Bytes, openings and memory a step: within 10 % from 1 to 256 processes with two rows each."""
    from mindpangu.train import encoded as of_files
    from mindpangu.train.run import make_task

    read, opened = [], of_files.opened

    class Counted:
        def __init__(self, path):
            self.path, self.file = path, opened(path)

        def get_slice(self, name):
            path, inner = self.path, self.file.get_slice(name)

            class Slice:
                def __getitem__(self, place):
                    found = inner[place]
                    read.append((path, found.nbytes))
                    return found

            return Slice()

    monkeypatch.setattr(of_files, "opened", Counted)
    task = make_task(generator(runs, many_files, tmp_path, diffusion={"caption_dropout": 0.0}))
    found = {}
    for size in SIZES:
        task.epochs = [of_files.Epochs(task.data.counts, ROWS * size, 0)]
        for rank in {0, size // 2, size - 1}:
            read.clear()
            task.batch(0, ROWS * size, Ranks(rank, size).part(ROWS * size))  # what is kept of the first
            tracemalloc.start()
            made = [task.batch(i * ROWS * size, ROWS * size, Ranks(rank, size).part(ROWS * size)) for i in range(STEPS)]
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert all(len(array) == ROWS for batch in made for array in batch)
            found[size, rank] = sum(n for _, n in read) / (STEPS + 1), peak
            assert len({path for path, _ in read}) <= ROWS * (STEPS + 1)
    alone = found[1, 0]
    for one in found.values():
        # Batches of 48×32 and of 32×32 differ in size, and a rank sees eight: bytes are held against the largest row.
        assert one[0] <= 1.1 * ROWS * of_a_row(many_files)
        assert one[1] <= 1.2 * alone[1] + 100_000


def of_a_row(folder):
    """Bytes of the larger size's latents, one caption's features and its place."""
    tensors = load_tensors(folder / "00000.safetensors")
    return max(
        sum(tensors[f"{size}.{name}"][0].nbytes for name in ("latents", "context", "vector"))
        + tensors[f"{size}.first"][:2].nbytes
        for size in ("32x32", "48x32")
    )


class Recorded:
    """Stands for a collective: notes what it is given, and hands it back."""

    calls: ClassVar[list[Collective]] = []

    def __init__(self, *args):
        del args

    def __call__(self, given):
        tensors = given if isinstance(given, tuple) else (given,)
        self.calls.append(Collective(self.kind, sum(tensor.size * 4 for tensor in tensors)))
        return given


class RecordedSum(Recorded):
    kind = ALL_REDUCE


class RecordedBroadcast(Recorded):
    kind = BROADCAST


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_sends_what_the_plan_says_and_no_more(runs, many_files, tmp_path, monkeypatch, uncompiled, shared):
    from mindspore import Tensor

    from mindpangu.train import step as of_step
    from mindpangu.train.loop import make_step
    from mindpangu.train.run import make_task
    from mindpangu.train.schedule import coefficients

    monkeypatch.setattr(of_step.mops, "AllReduce", RecordedSum)
    monkeypatch.setattr(of_step.mops, "Broadcast", RecordedBroadcast)
    config = generator(
        runs, many_files, tmp_path, runner_config={"images": 2048, "batch_size": 512},
        parallel_config={"optimizer_shard": shared}, optimizer={"type": "adamw"},
    )  # fmt: skip
    task, kept = make_task(config), {}
    batch = task.batch(0, ROWS * 8, Ranks(1, 8).part(ROWS * 8))
    for size in SIZES:
        Recorded.calls.clear()
        step = make_step(task, config, Ranks(min(1, size - 1), size))
        step(Tensor(coefficients(config.optimizer, 1e-4, 1, 1.0)), *map(Tensor, batch))
        sizes = [int(np.prod(p.shape)) for p in task.loss_net.trainable_params()]
        planned = collectives(sizes, size, shared)
        assert sorted(Recorded.calls, key=str) == sorted(planned, key=str)
        assert sum(one.kind == ALL_REDUCE for one in planned) <= BUCKETS <= 8
        kept[size] = sum(p.size for p in step.state) - sum(sizes)
    assert kept[1] == 3 * sum(sizes)
    if shared:
        loads = [one.bytes // 4 for one in collectives(sizes, 8, True) if one.kind == BROADCAST]
        assert kept[8] <= 3 * max(loads)
        assert max(loads) <= 1.2 * sum(sizes) / 8
    else:
        assert set(kept.values()) == {kept[1]}


@settings(max_examples=50, deadline=None)
@given(copies=st.integers(2, 300), inside=st.integers(1, 16), megabytes=st.floats(0.001, 1e4))
def test_the_time_of_a_sum_lies_between_the_bounds_of_any_algorithm(copies, inside, megabytes):
    """No device sends less than 2 (n−1)/n of the numbers, nor is it ever slower than a ring over the slow links."""
    network = NetworkConfig(latency_us=0.0)
    one = Collective(ALL_REDUCE, int(1e6 * megabytes))
    took = seconds(one, copies, inside, network)
    volume = 2 * (copies - 1) / copies * one.bytes / 1e9
    assert volume / (network.inside_gb_s + network.between_gb_s) <= took * (1 + 1e-9)
    servers = -(-copies // min(inside, copies))
    slow = 2 * one.bytes / 1e9 * (1 / network.inside_gb_s + 1 / network.between_gb_s)
    assert took <= slow
    assert seconds(one, copies, inside, replace(network, latency_us=1e6)) >= took + 2 * np.log2(servers) - 1e-6


def test_the_5b_model_on_256_devices_against_eight(release):  # noqa: F811
    """Computed from what a step sends and from assumed links: docs/train.md has the table."""
    from mindpangu.train.plan import laid_out, read_histogram
    from mindpangu.train.regimes import time_decoupled

    regime = time_decoupled(10**6)
    histogram = read_histogram(HISTOGRAM, regime)

    def scaling(devices, *changes):
        cluster = load(CONFIGS / "parallel" / f"910b_{devices}.yaml", ClusterConfig, changes)
        return [stage.weak_scaling for stage in laid_out(regime, histogram, release, cluster).stages]

    assert scaling(8) == [1.0, 1.0]
    structure, texture = scaling(256)
    assert 0.8 < structure < 0.9
    assert texture < structure  # a quarter of the work for as many gradients
    assert scaling(256, "batch_size=8")[0] >= 0.9
    with pytest.raises(ValueError, match="between_gb_s is 0"):
        NetworkConfig(between_gb_s=0)
