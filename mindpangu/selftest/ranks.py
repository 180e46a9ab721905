"""Ten steps of training by two processes under msrun. As a program, one of them, which prints its losses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindpangu import runtime
from mindpangu.selftest.check import Check, Outcome, RefusedError

PROCESSES = 2
FOUND = "losses-{}.json"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def two_processes() -> Outcome:
    """Their losses against PyTorch's, which one process's are held against, too.

    Raises:
        RefusedError: fewer NPUs than processes.
    """
    from mindpangu.selftest.nets import of_curve

    if runtime.start() == "Ascend":
        import mindspore

        devices = mindspore.hal.device_count("Ascend")
        if devices < PROCESSES:
            raise RefusedError(f"{devices} NPU is here, and {PROCESSES} are needed")
    programs, found = Path(sys.executable).parent, runtime.found_environment()
    environment = {**found, "PATH": f"{programs}{os.pathsep}{found.get('PATH', '')}"}  # msrun starts `python`
    counts = [f"--worker_num={PROCESSES}", f"--local_worker_num={PROCESSES}", f"--master_port={free_port()}"]
    with tempfile.TemporaryDirectory() as name:
        command = [str(programs / "msrun"), *counts, "--join=True", f"--log_dir={name}/logs", __file__]
        done = subprocess.run(
            [*command, runtime.start(), name], check=False, cwd=name, capture_output=True, text=True, env=environment
        )
        written = [Path(name) / FOUND.format(rank) for rank in range(PROCESSES)]
        if not all(path.exists() for path in written):
            logs = [path.read_text(errors="replace").splitlines() for path in Path(name).glob("logs/worker_*.log")]
            said = [lines[-1] for lines in logs if lines] or done.stderr.splitlines()[-1:]
            raise RuntimeError(f"msrun ended with {done.returncode}: {'; '.join(said)}")
        return max((of_curve(json.loads(path.read_text())) for path in written), key=lambda one: one.figure)


def main(device: str, folder: str) -> None:
    """Train, and write the losses."""
    runtime.start(device)
    from mindpangu.parallel.ranks import join
    from mindpangu.selftest.nets import training

    ranks = join()
    losses, _ = training(ranks)
    (Path(folder) / FOUND.format(ranks.rank)).write_text(json.dumps(losses), encoding="utf-8")


def checks() -> Iterator[Check]:
    """The one."""
    yield Check("training", f"{PROCESSES} processes, msrun", two_processes)


if __name__ == "__main__":
    main(*sys.argv[1:])
