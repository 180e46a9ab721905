"""A hang is reported with rank and phase, once, and what is quick is not."""

from __future__ import annotations

import threading
import time

import pytest

from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import CallbacksConfig
from mindpangu.train.watch import Watch


def until(true, seconds=20.0):
    """Whether `true` becomes so in time."""
    ends = time.monotonic() + seconds
    while not true() and time.monotonic() < ends:
        time.sleep(0.005)
    return true()


def test_a_phase_that_does_not_end_is_named_once_with_its_rank_and_stacks(tmp_path, capsys):
    path, done = tmp_path / "hang-3.txt", threading.Event()

    def stuck():
        with Watch(tmp_path, 3, 0.02) as watch:
            with watch.phase("quick", 0, 1e9):
                pass
            with watch.phase("checkpoint", 640):
                done.wait(20)

    thread = threading.Thread(target=stuck)
    thread.start()
    try:
        assert until(lambda: path.exists() and "stuck" in path.read_text())
        time.sleep(0.1)  # several looks at the clock
    finally:
        done.set()
        thread.join()
    said = capsys.readouterr().err
    assert said.count("rank 3 has been at 'checkpoint' for") == 1 and "after 640 images" in said
    assert "quick" not in said and path.read_text().count("has been at") == 1


def test_what_is_quick_or_not_watched_leaves_nothing(tmp_path, capsys):
    for patience in (None, 1000.0):
        with Watch(tmp_path, 0, patience) as watch, watch.phase("step", 0):
            pass
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err


def test_no_patience_at_all_is_refused():
    with pytest.raises(UserError, match="hang_seconds 0"):
        parse({"hang_seconds": 0}, CallbacksConfig, "test")
