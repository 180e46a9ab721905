"""Our side of the benchmark. Each function returns a call that does the work once and gives its result."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
from mindspore import Tensor, nn

from mindpangu import runtime
from mindpangu.bench.cases import GUIDANCE, PROMPTS, STEPS, Case
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.models.loading import load_unets, load_vae
from mindpangu.train.config import OptimizerConfig
from mindpangu.train.schedule import coefficients
from mindpangu.train.step import TrainStep

LEARNING_RATE = 1e-5


class MeanSquare(nn.Cell):
    """The training loss, without conditioning."""

    def __init__(self, unet: nn.Cell) -> None:
        super().__init__()
        self.unet = unet

    def construct(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor, target: Tensor) -> Tensor:
        error = self.unet(x, t, context, vector) - target
        return (error * error).mean()


def prepare(folder: Path, case: Case) -> Callable[[], np.ndarray]:
    """The work of `case` on the model in `folder`."""
    runtime.start("CPU")
    unet, vae = load_unets([folder / "structure.safetensors"])[0].cells.whole, load_vae(folder / "vae.safetensors")
    spec = unet.spec
    arrays = case.inputs(spec.in_channels, spec.context_dim, spec.vector_dim, vae.spec.factor)
    tensors = {name: Tensor(value) for name, value in arrays.items()}
    inputs = [tensors[name] for name in ("x", "t", "context", "vector")]
    if case.kind == "unet":
        return lambda: unet(*inputs).asnumpy()
    if case.kind == "encode":
        return lambda: vae.encode(tensors["image"]).asnumpy()
    if case.kind == "decode":
        return lambda: vae.decode(tensors["x"]).asnumpy()
    if case.kind == "draw":
        return _drawing(PanGuDraw.from_pretrained(folder, "CPU"))
    optimizer = OptimizerConfig(case.optimizer, betas=(0.9, 0.99), weight_decay=0.01, max_grad_norm=1.0)
    step, done = TrainStep(MeanSquare(unet.set_train()), case.optimizer == "muon"), iter(range(1, 1 << 30))

    def train() -> np.ndarray:
        factors = Tensor(coefficients(optimizer, LEARNING_RATE, next(done)))
        return step(factors, *inputs, tensors["target"])[0].asnumpy()

    return train


def _drawing(model: PanGuDraw) -> Callable[[], np.ndarray]:
    def draw() -> np.ndarray:
        drawings = model(PROMPTS, steps=STEPS, guidance=GUIDANCE, seed=1)
        return np.stack([np.asarray(d.image) for d in drawings])

    return draw
