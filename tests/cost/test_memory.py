"""The memory that `inspect` predicts is what drawing takes: the zoo's model, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mindpangu.cost.memory import drawing
from mindpangu.models.inventory import find_spec, parts

MODEL, SIZE = "emoji-128", "128x128"
# Linux's own count of the process; getrusage would count what the parent had before it.
DRAW = """
import atexit, pathlib
from mindpangu.cli.main import main
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("pictures", "dtype", "offload"), [(1, "fp16", True), (8, "fp32", False)])
def test_the_prediction_holds_to_15_percent(pictures, dtype, offload, tmp_path):
    options = ["--n", str(pictures), "--dtype", dtype, "--size", SIZE, "--steps", "2", "--out", str(tmp_path)]
    command = [sys.executable, "-c", DRAW, "generate", "a fox", *options, *(["--offload"] if offload else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = 1024 * int(done.stdout.split()[-1])
    spec = find_spec(MODEL)
    assert peak == pytest.approx(drawing(spec, parts(spec), SIZE, pictures, dtype, offload).peak, rel=0.15)
