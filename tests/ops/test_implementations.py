"""What our CPU operators take of oneDNN, wherever the tests run: other CPUs get other implementations.

Its reference ones are a thousand times slower (a sum after another post-op got one, without AVX512), and some work in
memory that belongs to the thread that made them, while MindSpore runs an operator on any of its threads.
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


THREADS = """
import ctypes, threading
import numpy as np
from mindpangu.ops.cpu.build import library

run = ctypes.CDLL(str(library())).Conv2DGrad
rng = np.random.default_rng(0)
shapes = [(4, 16, 2, 2), (16, 16, 3, 3), (4,), (4, 16, 2, 2), (4, 16, 2, 2), (16, 16, 3, 3), (16,)]
inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes[:4]]
inputs[2][:] = 1, 1, 1, 0  # stride, padding before and after, float32
found = []

def work():
    arrays = [*inputs, *(np.zeros(shape, np.float32) for shape in shapes[4:])]
    sizes = [np.array(shape, np.int64) for shape in shapes]
    pointers = (ctypes.c_void_p * 7)(*(array.ctypes.data for array in arrays))
    dims = (ctypes.c_void_p * 7)(*(size.ctypes.data for size in sizes))
    ndims = (ctypes.c_int * 7)(*(len(shape) for shape in shapes))
    assert run(7, pointers, ndims, dims, None, None, None) == 0
    found.append(arrays[4:])

for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
assert len(found) == 3
for other in found[1:]:
    for a, b in zip(found[0], other):
        np.testing.assert_array_equal(a, b)
np.testing.assert_allclose(found[0][2], inputs[3].sum((0, 2, 3)), rtol=1e-4)
"""


def test_an_operator_runs_on_threads_that_did_not_make_its_primitive():
    """Pictures smaller than their kernel: without AVX512 oneDNN takes them through a buffer."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
