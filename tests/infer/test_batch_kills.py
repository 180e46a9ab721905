"""2,000 prompts, killed again and again, first one process, then two: what an undisturbed run draws, once each.

Minutes long, so only where asked for: pytest tests/infer/test_batch_kills.py --kills 40
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mindpangu.selftest.ranks import free_port
from tests.infer.test_batch import contents

PROMPTS = 2000
BIN = Path(sys.executable).parent


def start(arguments, workers, log):
    command = [str(BIN / "mindpangu"), "batch", *arguments]
    if workers > 1:
        counts = [f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={free_port()}"]
        command = [str(BIN / "msrun"), *counts, "--join=True", f"--log_dir={log.parent / 'logs'}", *command]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with log.open("a") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)


def kill(process):
    """The process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def pictures(out):
    return sum(1 for _ in out.glob("*.png"))


def test_two_thousand_prompts_survive_their_kills(model_folder, tmp_path, request):
    kills = request.config.getoption("--kills")
    if kills <= 3:
        pytest.skip("minutes long; ask for it with --kills 40")
    path, rng = tmp_path / "prompts.jsonl", random.Random(2)
    rows = [{"prompt": f"{rng.choice(['a fox', 'a red bus', '一只狗'])} {i}", "seed": i % 7} for i in range(PROMPTS)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    options = [str(path), "--model", str(model_folder), "--set", "steps=1", "--out"]
    quiet = start([*options, str(tmp_path / "quiet")], 1, tmp_path / "quiet.txt")
    assert quiet.wait() == 0, (tmp_path / "quiet.txt").read_text()[-2000:]
    out, done = tmp_path / "out", 0
    while done < kills:
        workers = 1 if done < kills // 2 else 2
        process, before = start([*options, str(out)], workers, tmp_path / "said.txt"), pictures(out)
        goal = before + rng.randint(1, max(1, (PROMPTS - before) // (kills - done + 1)))
        while process.poll() is None and pictures(out) < goal:
            time.sleep(0.01)
        assert process.poll() is None, (tmp_path / "said.txt").read_text()[-2000:]
        time.sleep(rng.random() * 0.05)
        kill(process)
        done += 1
    last = start([*options, str(out)], 2, tmp_path / "said.txt")
    assert last.wait() == 0, (tmp_path / "said.txt").read_text()[-2000:]
    kill(last)
    assert contents(out) == contents(tmp_path / "quiet")
    noted = [
        json.loads(line)["unit"] for journal in out.glob("journal-*.jsonl") for line in journal.read_text().splitlines()
    ]
    assert sorted(noted) == list(range(len(noted)))  # none twice
    print(f"{done} kills, {pictures(out)} pictures, {len(noted)} units, each noted once")
