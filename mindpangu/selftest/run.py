"""All checks, each of which may end or hang the process that makes it, without ending the selftest."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Optional

from mindpangu import runtime
from mindpangu.errors import UserError

PATIENCE = {"CPU": 600, "Ascend": 3600}  # seconds that a check may take: Ascend compiles for long


class Worker:
    """The process that makes the checks from number `first` on."""

    def __init__(self, device: str, everything: bool, only: str, first: int) -> None:
        self._complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the process
        which = "everything" if everything else "quick"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mindpangu.selftest.worker", device, which, only, str(first)],
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=runtime.found_environment(),
            start_new_session=True,  # so that what it has started ends with it
        )
        self._lines: queue.SimpleQueue[Optional[str]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, patience: float) -> Optional[dict[str, Any]]:
        """The next one; None when the process has ended. Raises: queue.Empty when it says nothing for so long."""
        while True:
            line = self._lines.get(timeout=patience)
            if line is None:
                return None
            if line.startswith("{"):  # libraries print to the same place
                return json.loads(line)

    def end(self) -> str:
        """End it if it has not, and say how it ended."""
        if self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        code = self.process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().strip().splitlines()
        self._complaints.close()
        how = "hung" if code is None else f"ended by signal {-code}" if code < 0 else f"ended with {code}"
        return f"the process {how}: {said[-1] if said else 'no message'}"


def results(device: str, everything: bool, only: str = "") -> Iterator[dict[str, Any]]:
    """{"number", "of", "group", "name"} as each check begins, and with "status", "note", "seconds", … as it ends.

    Raises:
        UserError: no check could be begun: the process that makes them does not start, or none is of that name.
    """
    first, of = 0, None
    while of is None or first < of:
        worker, begun = Worker(device, everything, only, first), None
        try:
            while True:
                try:
                    line = worker.line(PATIENCE[device])
                except queue.Empty:
                    line = None
                if line is None:
                    how = worker.end()
                    if begun is None:
                        raise UserError(f"selftest cannot begin: {how}")
                    yield {**begun, "status": "failed", "note": how}
                    first = begun["number"] + 1
                    break
                if "status" in line:
                    yield {**(begun or {}), **line}
                    continue
                of, begun = line["of"], line
                if line["number"] == of:
                    first = of
                    break
                yield line
        finally:
            if worker.process.returncode is None:
                worker.end()
    if of == 0:
        raise UserError(f"no check's name contains '{only}'")
