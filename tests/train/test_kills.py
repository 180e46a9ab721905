"""SIGKILL at any moment, also during a save: nothing is lost but the images since the last checkpoint.

The default run kills a few times; `pytest tests/train/test_kills.py --kills 50` as often as one likes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from mindpangu.checkpoint.store import load_tensors, verify
from tests.tiny import training
from tests.train.test_loop import states

REPOSITORY = Path(__file__).parents[2]
SLOWEST = 60.0  # seconds until a process trains


def started(folder, images):
    """A process that trains the loop tests' line with a checkpoint every tenth step: most of its time is saving."""
    values = training(
        "vae",
        folder.parent,
        output_dir=str(folder),
        runner_config={"images": images, "batch_size": 4},
        callbacks={"log_images": 400, "sample_images": images, "checkpoint_images": 40},
    )
    folder.mkdir(exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("line_worker.py")), str(folder / "train.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MINDPANGU_CPU_OPS": "fp32"}
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment)


def wait_for_more(process, folder, before):
    """Until the process has saved something newer than `before`, or has ended."""
    end = time.monotonic() + SLOWEST
    while process.poll() is None and states(folder)[:1] == before:
        assert time.monotonic() < end, (folder / "said.txt").read_text()[-2000:]
        time.sleep(0.01)


def test_kills_lose_nothing(tmp_path, request):
    kills, rng = request.config.getoption("--kills"), random.Random(5)
    images = 200 * kills
    quiet = started(tmp_path / "quiet", images)
    folder, done, unfinished = tmp_path / "killed", 0, 0
    folder.mkdir()
    newest = []
    while True:
        process = started(folder, images)
        wait_for_more(process, folder, newest)
        if process.poll() is None:
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, (folder / "said.txt").read_text()[-2000:]
        done += 1
        unfinished += len(list(folder.glob("*.part"))) > 0
        found = states(folder)
        assert found
        assert found[:1] >= newest  # none was lost
        for path in found:
            verify(path)
        newest = found[:1]
    assert quiet.wait(timeout=SLOWEST) == 0
    print(f"{done} kills, {unfinished} of them in the middle of a write")
    assert done >= kills // 2
    one, other = (load_tensors(states(run)[0]) for run in (tmp_path / "quiet", folder))
    assert one.keys() == other.keys()
    for name in one.keys() - {"progress"}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
