"""SIGKILL, Ctrl-C and a full disk at random points of commands: what is finished is whole, and is found again.

Minutes long, so only where asked for: pytest tests/cli/test_command_kills.py --kills 50. Trainings are killed in
train/test_kills.py, batches in infer/test_batch_kills.py.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindpangu.checkpoint.store import load_tensors
from mindpangu.infer.image_file import read_settings

BIN = Path(sys.executable).parent
SLOWEST = 120.0  # seconds until a command has written something new


def generate(model_folder, folder):
    return ["generate", "a fox", "--model", model_folder, "--steps", "1", "--n", "60", "--batch", "1", "--seed", "5"]


def convert(model_folder, folder):
    import yaml

    from mindpangu.config import dump
    from tests.parity.golden_pipelines import build, narrow, single_file

    spec = narrow("sd15")
    build(spec, folder / "ours")
    single_file(folder / "ours", folder / "sd.safetensors")
    (folder / "narrow.yaml").write_text(yaml.safe_dump(dump(spec)), encoding="utf-8")
    return ["convert", folder / "sd.safetensors", "--model", folder / "narrow.yaml", "--shard-gb", "0.0002"]


def pack(model_folder, folder):
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(400):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / "pictures" / f"{i:03d}.png")
        (folder / "pictures" / f"{i:03d}.txt").write_text(f"picture {i}", encoding="utf-8")
    return ["data", "pack", folder / "pictures", "--per-shard", "10"]


def encode(model_folder, folder):
    shards = [*pack(model_folder, folder), "--out", folder / "shards"]
    assert started(shards, folder / "packed.txt").wait() == 0
    return ["data", "encode", "--shards", f"{folder / 'shards'}/*.tar", "--model", model_folder]


def started(command, log, file_bytes=None):
    """The command; where `file_bytes` is given no file can grow beyond that, as on a disk that is full."""
    line = [str(BIN / "mindpangu"), *map(str, command)]
    with log.open("a") as said:
        process = subprocess.Popen(line, stdout=said, stderr=said, env={**os.environ, "COLUMNS": "200"})
    if file_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    return process


def finished(out):
    """The files under their final names."""
    return sorted(path for path in out.rglob("*") if path.is_file() and path.suffix != ".part") if out.exists() else []


def check_whole(path):
    """Raises where the file is torn."""
    if path.suffix == ".png":
        Image.open(path).load()
        assert read_settings(path)["prompt"] == "a fox"
    elif path.suffix == ".tar":
        with tarfile.open(path) as shard:
            assert len([shard.extractfile(member).read() for member in shard]) >= 10
    elif path.suffix == ".safetensors":
        assert load_tensors(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())


def disturbed(rng, command, out, log, largest):
    """Start, and at a random point end the command; whether it was ended before it was done."""
    before, kind = len(finished(out)), rng.choice([signal.SIGKILL, signal.SIGINT, "full disk"])
    if kind == "full disk":
        code = started(command, log, rng.randrange(largest)).wait()
        assert code in (0, 1, 2), log.read_text()[-2000:]
        return code != 0
    process, end = started(command, log), time.monotonic() + SLOWEST
    goal = before + rng.randint(0, 20)
    while process.poll() is None and len(finished(out)) < goal and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep((1.5 if goal == before else 0) + rng.random() * 0.05)  # Python itself must have started
    process.send_signal(kind)
    code = process.wait()
    assert code in (0, -signal.SIGKILL, 130, -signal.SIGINT), log.read_text()[-2000:]
    return code != 0


@pytest.mark.parametrize("command", [generate, convert, pack, encode])
def test_what_was_finished_is_whole_and_found_again(command, model_folder, tmp_path, request):
    kills, rng = request.config.getoption("--kills"), random.Random(command.__name__)
    if kills <= 3:
        pytest.skip("minutes long; ask for it with --kills 50")
    log, line = tmp_path / "said.txt", command(model_folder, tmp_path)
    assert started([*line, "--out", tmp_path / "quiet"], log).wait() == 0, log.read_text()[-2000:]
    quiet = {path.name: path.read_bytes() for path in finished(tmp_path / "quiet")}
    largest = max(len(content) for content in quiet.values())
    out, ended = tmp_path / "out", 0
    for _ in range(kills):
        before = {path: path.read_bytes() for path in finished(out) if path.suffix in (".png", ".tar", ".safetensors")}
        ended += disturbed(rng, [*line, "--out", out], out, log, largest)
        for path in finished(out):
            check_whole(path)
        assert all(path.read_bytes() == content for path, content in before.items())
    assert started([*line, "--out", out], log).wait() == 0, log.read_text()[-2000:]
    assert "Traceback" not in log.read_text()
    if command is generate:  # numbers go on, so pictures are known by their seeds
        by_seed = {read_settings(path)["seed"]: path.read_bytes() for path in finished(tmp_path / "quiet")}
        assert all(path.read_bytes() == by_seed[read_settings(path)["seed"]] for path in out.glob("[0-9]*.png"))
    else:
        assert {path.name: path.read_bytes() for path in finished(out)} == quiet
    print(f"{command.__name__}: {kills} trials, {ended} of them ended before it was done")
