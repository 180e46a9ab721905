"""What a process is doing, said aloud where it does it for too long: a hang is reported with rank and phase."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

FILE = "hang-{rank}.txt"
FIRST_STEP = 10  # times the patience, since graphs are compiled in it
CHECKS = 4  # of the clock, within the patience


class Watch:
    """Of one process of a training; as a context, a thread that looks at the clock.

    A phase that lasts longer than `patience` seconds is reported once, on stderr and in hang-RANK.txt, there with the
    stacks of all threads. The process goes on: HCCL's time-out, or a person, ends it.
    """

    def __init__(self, folder: Path, rank: int, patience: Optional[float]) -> None:
        """`patience` None: nothing is watched."""
        self.path, self.rank, self.patience = folder / FILE.format(rank=rank), rank, patience
        self._now: Optional[tuple[str, int, float, float]] = None  # name, images seen, since when, patience
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> Watch:
        if self.patience is not None:
            self._thread = threading.Thread(target=self._look, args=(self.patience / CHECKS,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def phase(self, name: str, nimg: int, patience: float = 1.0) -> Iterator[None]:
        """Inside, the process is at `name`, after `nimg` images; `patience`: times the usual one."""
        self._now = (name, nimg, time.monotonic(), patience * (self.patience or 0.0))
        try:
            yield
        finally:
            self._now = None

    def _look(self, every: float) -> None:
        reported = None
        while not self._stop.wait(every):
            now = self._now
            if now is None or now is reported:
                continue
            name, nimg, since, patience = now
            spent = time.monotonic() - since
            if spent > patience:
                reported = now
                self._report(f"rank {self.rank} has been at '{name}' for {spent:.0f} s, after {nimg} images")

    def _report(self, what: str) -> None:
        print(f"mindpangu: {what}; its stacks are in {self.path}", file=sys.stderr, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n")
            file.flush()
            faulthandler.dump_traceback(file)
