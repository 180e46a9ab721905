"""The memory that `inspect` predicts is what drawing takes: the zoo's model, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindpangu.models.inventory import find_spec
from mindpangu.models.memory import drawing

MODEL, SIZE = "emoji-128", "128x128"


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("pictures", "dtype", "offload"), [(1, "fp16", True), (8, "fp32", False)])
def test_the_prediction_holds_to_15_percent(pictures, dtype, offload, tmp_path):
    options = ["--n", str(pictures), "--dtype", dtype, "--size", SIZE, "--steps", "2", "--out", str(tmp_path)]
    command = [str(Path(sys.executable).with_name("mindpangu")), "generate", "a fox", *options]
    child = subprocess.Popen([*command, "--offload"] if offload else command)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    predicted = drawing(find_spec(MODEL), SIZE, pictures, dtype, offload).peak
    assert usage.ru_maxrss * 1024 == pytest.approx(predicted, rel=0.15)
