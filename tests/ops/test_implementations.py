"""Which of oneDNN's implementations our CPU operators get: its reference ones are a thousand times slower.

What is fast on one CPU may fall back on another (a sum after another post-op did, without AVX512), so this asks wherever
the tests run.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mindpangu import runtime
from mindpangu.ops.cpu.build import library

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler or no oneDNN here")

STEP = """
import numpy as np
from mindpangu import runtime
runtime.start("CPU")
import mindspore
mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
from mindspore import Tensor, nn
from mindpangu.models.unet import UNet
from mindpangu.spec import UNetSpec
from mindpangu.train.config import OptimizerConfig
from mindpangu.train.schedule import coefficients
from mindpangu.train.step import TrainStep

class Loss(nn.Cell):
    def __init__(self):
        super().__init__()
        self.net = UNet(UNetSpec(4, 4, 32, (1, 2), 1, (0, 1), 32, 48, 24, norm_groups=4))

    def construct(self, x, t, context, vector):
        error = self.net(x, t, context, vector) - x
        return (error * error).mean()

batch = [np.ones(shape, np.float32) for shape in ((2, 4, 8, 8), (2,), (2, 5, 48), (2, 24))]
step = TrainStep(Loss(), muon=True)
step.set_train()
step(Tensor(coefficients(OptimizerConfig(type="muon"), 1e-3, 1, 1.0)), *map(Tensor, batch))
"""


def test_a_training_step_takes_no_reference_implementation():
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", runtime.CPU_OPERATORS: "fp32"}
    said = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    # onednn_verbose,exec,cpu,matmul,gemm:jit,undef,src_f32…
    executed = [line.split(",") for line in said.stdout.splitlines() if ",exec," in line]
    found = {(fields[3], fields[4]) for fields in executed if fields[3] != "reorder"}
    assert {"convolution", "inner_product", "matmul"} <= {kind for kind, _ in found}
    assert not [one for one in found if one[1].startswith("ref")]
