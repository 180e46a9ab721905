"""Files that several processes make together: each makes those that none is making, and stays until all are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Optional, Protocol, TypeVar

from mindpangu.checkpoint.store import claimed

POLL = 1.0  # seconds between looks at what other processes are making


class Job(Protocol):
    """A file that is to be made."""

    @property
    def target(self) -> Path:
        """The file."""


AJob = TypeVar("AJob", bound=Job)
Made = TypeVar("Made")


def each_made(
    jobs: Iterable[AJob], done: Callable[[AJob], Optional[Made]], make: Callable[[AJob], Made]
) -> Iterator[tuple[AJob, Made]]:
    """What is to be said of every job's file, in the order in which they are there.

    `done`: that of a file that is whole already, else None. Other processes may be given the same jobs, started in any
    way: what a lost one leaves is made by another. Jobs are taken one by one, and only those are kept that others are
    working on. Raises: UserError, and what `make` raises.
    """
    todo = jobs
    while True:
        waiting: list[AJob] = []
        for job in todo:
            found = _made(job, done, make)
            if found is None:
                waiting.append(job)
            else:
                yield job, found
        if not waiting:
            return
        time.sleep(POLL)
        todo = waiting


def _made(job: AJob, done: Callable[[AJob], Optional[Made]], make: Callable[[AJob], Made]) -> Optional[Made]:
    found = done(job)
    if found is None:
        with claimed(job.target) as mine:
            if mine:
                found = done(job) or make(job)  # another one may just have made it
    return found
