"""Several processes train as one does: msrun, two and four processes, buckets of two sizes; and one writer a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindpangu.checkpoint.store import load_tensors, only_writer
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.parallel.ranks import Ranks
from mindpangu.selftest.ranks import free_port
from mindpangu.train.config import TrainConfig
from mindpangu.train.run import make_task, run
from tests.tiny import training
from tests.train.test_loop import states

STEPS = 20
REPOSITORY = Path(__file__).parents[2]


def training_file(part, runs, folder, steps=STEPS, **changes):
    """A training of `steps` steps of eight pictures; part "line": the loop tests' task."""
    values = training(
        "vae" if part == "line" else part,
        runs,
        output_dir=str(folder),
        runner_config={"images": 8 * steps, "batch_size": 8},
        callbacks={"log_images": 40, "sample_images": 8 * steps, "checkpoint_images": 40},
        **changes,
    )
    folder.mkdir()
    (folder / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


@contextmanager
def started(part, folder, workers, until=0):
    """The training in `folder`, being worked at by one process or several; a line may stop after `until` images."""
    command = [str(Path(sys.executable).with_name("mindpangu")), "train", "--config", str(folder / "train.yaml")]
    if part == "line":
        command = [str(Path(__file__).with_name("line_worker.py")), str(folder / "train.yaml"), str(until)]
    if workers > 1:
        counts = [f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={free_port()}"]
        msrun = str(Path(sys.executable).with_name("msrun"))
        command = [msrun, *counts, "--join=True", f"--log_dir={folder / 'logs'}", *command]
    else:
        command = [sys.executable, *command]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "MINDPANGU_CPU_OPS": "fp32"}
    environment["MS_NODE_TIMEOUT"] = "10"  # seconds
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        try:
            yield process
        finally:  # msrun's workers outlive it when it is killed
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def work(part, folder, workers, until=0):
    """The newest state once the training has ended well."""
    with started(part, folder, workers, until) as process:
        assert process.wait(timeout=400) == 0, (folder / "said.txt").read_text()[-3000:]
    return load_tensors(states(folder)[0])


def trained(part, runs, folder, workers, **changes):
    """The state after STEPS steps."""
    training_file(part, runs, folder, **changes)
    return work(part, folder, workers)


SHARED = {"optimizer": {"type": "muon"}, "parallel_config": {"data_parallel": 2, "optimizer_shard": True}}


@pytest.mark.parametrize(
    ("part", "workers", "tolerance", "layout"),
    [("structure", 2, 2e-5, {}), ("vae", 2, 2e-5, SHARED), ("line", 4, 1e-6, {})],
)
def test_processes_that_share_every_batch_train_as_one_does(runs, tmp_path_factory, part, workers, tolerance, layout):
    """The generator with batches of two sizes; an autoencoder whose moments are shared; four processes on a line.

    AdamW divides by small roots, which makes the rounding of the sums larger: 2e-6 to 5.2e-6 were measured on nets.
    """
    folder = tmp_path_factory.mktemp("ranks")
    one = trained(part, runs, folder / "one", 1, **{**layout, "parallel_config": {}})
    several = trained(part, runs, folder / "several", workers, **layout)
    assert one.keys() == several.keys()
    for name in one.keys() - {"progress"}:
        scale = max(1.0, float(np.abs(one[name]).max()))
        assert np.abs(one[name] - several[name]).max() <= tolerance * scale, name
    lines = [json.loads(line) for line in (folder / "several" / "stats.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [40, 80, 120, 160]
    for line in lines:
        assert len(line["waited_by_rank"]) == len(line["memory_gb_by_rank"]) == workers
        assert all(0 <= share <= 1 for share in line["waited_by_rank"]) and min(line["memory_gb_by_rank"]) > 0.05


def test_a_run_goes_on_with_another_number_of_processes(runs, tmp_path):
    """Four processes that share the moments, then one, then two: the same images, the same weights but for rounding."""
    one = trained("line", runs, tmp_path / "one", 1)
    folder = tmp_path / "several"
    training_file("line", runs, folder, parallel_config={"optimizer_shard": True})
    for workers, until in ((4, 40), (1, 120), (2, 8 * STEPS)):
        several = work("line", folder, workers, until)
        assert several["progress"][0] == until
    for name in one.keys() - {"progress"}:
        np.testing.assert_allclose(several[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert [json.loads(line)["nimg"] for line in (folder / "stats.jsonl").read_text().splitlines()] == [
        40,
        80,
        120,
        160,
    ]


def test_lost_and_hung_processes_end_the_run_in_one_line_and_it_goes_on_from_its_checkpoint(runs, tmp_path, request):
    """One process is killed, then, in the run that goes on, one hangs."""
    if request.config.getoption("--kills") <= 3:
        pytest.skip("a minute and a half of waiting for heartbeats; ask for it with --kills 40")
    folder, steps = tmp_path / "run", 600
    training_file("line", runs, folder, steps)
    for images, how in ((40, signal.SIGKILL), (800, signal.SIGSTOP)):
        with started("line", folder, 2) as process:
            while not states(folder) or states(folder)[0].name < f"state-{images:012d}":
                assert process.poll() is None, (folder / "said.txt").read_text()[-3000:]
                time.sleep(0.02)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [
                int(pid) for pid in children if b"MS_ROLE=MS_WORKER" in Path(f"/proc/{pid}/environ").read_bytes()
            ]
            os.kill(workers[0], how)  # the first, which writes; msrun's watchers of logs come later
            assert process.wait(timeout=200) != 0
        said = [line for line in (folder / "said.txt").read_text().splitlines() if "a process of this writing" in line]
        assert len(said) == 1 and "start the same command again" in said[0]
    several = work("line", folder, 2)
    training_file("line", runs, tmp_path / "one", steps)
    one = work("line", tmp_path / "one", 1)
    for name in one.keys() - {"progress"}:
        np.testing.assert_allclose(several[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_batch_is_shared_evenly_or_not_at_all(runs, tmp_path):
    from mindpangu.train.loop import fit

    shares = [range(8)[Ranks(rank, 4).part(8)] for rank in range(4)]
    assert [list(share) for share in shares] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    runner = {"images": 16, "batch_size": 4, "gradient_accumulation_steps": 2}
    config = parse(training("vae", runs, output_dir=str(tmp_path), runner_config=runner), TrainConfig, "test")
    with pytest.raises(
        UserError, match=r"batch_size 4 cannot be shared by 4 processes in 2 parts each .* multiple of 8"
    ):
        fit(make_task(config), config, ranks=Ranks(0, 4))


def test_a_folder_has_one_writer(tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} is writing"):  # noqa: SIM117
        with only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (
            {"pipeline_stage": 2, "micro_batch_num": 2},
            "pipeline_stage: MindSpore's own needs Ascend, and this is a CPU",
        ),
        ({"data_parallel": 2}, "data_parallel is 2, and 1 processes are running; start as many with msrun"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_before_anything_is_made(runs, tmp_path, layout, said):
    config = parse(
        training("structure", runs, output_dir=str(tmp_path / "out"), parallel_config=layout), TrainConfig, "t"
    )
    with pytest.raises(UserError, match=said):
        run(config)
    assert not (tmp_path / "out").exists()
