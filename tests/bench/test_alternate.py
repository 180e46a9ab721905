"""The stopwatch's arithmetic, and what it says of a contender that cannot run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mindpangu.ops
from mindpangu.bench.alternate import Measured, Server, ratios
from mindpangu.bench.cases import CASES
from mindpangu.bench.worker import OPERATORS
from mindpangu.errors import UserError


def measured(*times):
    return Measured(times, 1.0, 0.0, 1.0, 100.0)


def test_ratios_pair_the_turns():
    """A machine twice as slow in one turn, for both, changes nothing."""
    ours, theirs = measured(1.0, 2.0, 1.0), measured(2.0, 4.0, 2.0)
    assert ratios(ours, theirs) == (0.5, 0.5, 0.5)
    assert measured(3.0, 1.0, 2.0).median == 2.0


def test_a_contender_that_stops_is_one_line(tmp_path):
    server = Server("mindpangu fp32", "draw", 0, tmp_path)
    try:
        with pytest.raises(UserError, match=r"mindpangu fp32 stopped: .*structure"):
            server.answer()
    finally:
        server.stop()


def test_cases_are_told_apart_by_name_and_give_the_same_numbers_twice():
    for cases in CASES.values():
        assert len({case.name for case in cases}) == len(cases)
    one, other = (CASES["train"][0].inputs(4, 8, 6, 8) for _ in range(2))
    assert one["image"].shape == (8, 3, 128, 128)
    assert all((one[key] == other[key]).all() for key in one)


def test_every_operator_that_can_be_left_out_is_measured():
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(mindpangu.ops.__file__).parent.glob("*.py"))
    assert set(re.findall(r'in_use\("(\w+)"\)', sources)) == set(OPERATORS)
