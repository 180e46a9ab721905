"""Each operator, by every back end of the device, against float64: values and gradients, on shapes of real nets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as mops

from mindpangu import ops, runtime
from mindpangu.models.layers import DTYPES
from mindpangu.selftest import reference
from mindpangu.selftest.check import ALLOWED, Check, Outcome, RefusedError, error
from mindpangu.selftest.weights import inputs

EPS = 1e-5

# Heads, queries, keys, width, causal. The first ones are small enough for a CPU; SD 1.5 has the widths 40, 80 and 160.
ATTENTIONS = {
    "zoo, self": (4, 256, 256, 32, False),
    "zoo, text": (4, 256, 40, 32, False),
    "SD 1.5, width 40": (2, 192, 77, 40, False),
    "SD 1.5, width 160": (2, 64, 64, 160, False),
    "SDXL and PanGu-Draw 3.0, text": (2, 256, 77, 64, False),
    "a text encoder, causal": (2, 77, 77, 64, True),
    "odd lengths": (3, 37, 19, 64, False),
    "SD 1.5, self, 64×64": (8, 4096, 4096, 40, False),
    "SD 1.5, self, 8×8": (8, 64, 64, 160, False),
    "SDXL and PanGu-Draw 3.0, self, 64×64": (10, 4096, 4096, 64, False),
    "SDXL and PanGu-Draw 3.0, self, 32×32": (20, 1024, 1024, 64, False),
}
# N, channels in and out, side, kernel, stride.
CONVS = {
    "zoo": (2, 64, 128, 16, 3, 1),
    "SD and PanGu-Draw 3.0, downsampler": (1, 320, 320, 16, 3, 2),
    "latents": (1, 4, 320, 16, 3, 1),
    "one by one": (1, 640, 320, 8, 1, 1),
    "SDXL and PanGu-Draw 3.0, 64×64": (1, 640, 640, 64, 3, 1),
    "SDXL and PanGu-Draw 3.0, 128×128": (1, 320, 320, 128, 3, 1),
}
# Rows, channels in and out.
DENSES = {
    "zoo": (512, 128, 128),
    "SDXL and PanGu-Draw 3.0, keys of text": (77, 2048, 640),
    "SDXL and PanGu-Draw 3.0, feed-forward": (1024, 1280, 10240),
}
# N, channels, side, groups.
GROUP_NORMS = {"zoo": (2, 64, 16, 16), "SD, odd side": (1, 320, 9, 32), "PanGu-Draw 3.0, 128×128": (1, 320, 128, 32)}
LAYER_NORMS = {"zoo": (256, 128), "SDXL and PanGu-Draw 3.0": (1024, 1280)}
QUICK = 1 << 28  # multiplications of a shape that a CPU is asked for
MUON = {"lr": 0.02, "momentum": 0.95, "decay": 0.01}


@contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """An environment variable for a while: back ends are chosen as a graph is compiled."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


class _Call(nn.Cell):
    """A function as a graph."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def construct(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def precision(dtype: str, back_end: str = "", convolution: bool = False) -> str:
    """What really is multiplied in."""
    if runtime.start() == "CPU":
        return "bf16" if "bf16" in (dtype, back_end) else dtype
    if dtype != "fp32":
        return dtype
    if back_end in ("mindspore", "mindpangu"):
        return "fp16" if runtime.ascend_chip() == "ascend910" else "bf16"
    return "hf32" if convolution else "fp32"


def compare(
    function: Callable, shapes: Sequence[tuple[int, ...]], exact: Callable, dtype: str, allowed: str, narrow: int = 9
) -> Outcome:
    """`function` of Gaussian inputs of these shapes and all its gradients, in `dtype`, against `exact`.

    The first `narrow` inputs come in `dtype`, the others (what stays in float32) as they are. `exact` is given what the
    device is given, in float64.
    """
    rng = np.random.default_rng(0)
    inputs = []
    for i, shape in enumerate(shapes):
        values = rng.standard_normal(shape).astype(np.float32) / (
            np.sqrt(np.prod(shape[1:])) if len(shape) == 4 and i else 1
        )
        inputs.append(Tensor(values).astype(DTYPES[dtype]) if i < narrow else Tensor(values))
    call = _Call(function)
    value = call(*inputs)
    grad = Tensor(rng.standard_normal(value.shape).astype(np.float32)).astype(value.dtype)
    gradients = mops.GradOperation(get_all=True, sens_param=True)(call)(*inputs, grad)
    wide = [x.float().asnumpy().astype(np.float64) for x in (*inputs, grad)]
    errors = [error(mine.float().asnumpy(), true) for mine, true in zip((value, *gradients), exact(*wide))]
    worst = int(np.argmax(errors))
    return Outcome(errors[worst], "error", ALLOWED[allowed], f"worst: {'value' if not worst else f'gradient {worst}'}")


def attention(shape: tuple[int, int, int, int, bool], dtype: str, back_end: str, variable: str) -> Outcome:
    """By one back end, which the environment's `variable` chooses."""
    heads, queries, keys, width, causal = shape
    if back_end == "mindspore" and runtime.ascend_chip() == "ascend910":
        raise RefusedError("FlashAttentionScore is for the 910B and later")
    if back_end == "mindpangu":
        from mindpangu.ascend_kernels.flash_attention import installed

        if not installed():
            raise RefusedError(
                "the operator package is not installed (ascend_kernels/ascendc/flash_attention/build.sh)"
            )

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention(q, k, v, heads=heads, scale=width**-0.5, causal=causal)

    def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, grad: np.ndarray) -> reference.Arrays:
        return reference.attention(q, k, v, heads, causal, grad)

    shapes = [(1, length, heads * width) for length in (queries, keys, keys)]
    with setting(variable, back_end):
        return compare(ours, shapes, exact, dtype, precision(dtype, back_end))


def conv2d(shape: tuple[int, ...], dtype: str, back_end: str) -> Outcome:
    """With zeros around."""
    n, inner, outer, side, kernel, stride = shape
    edge = kernel // 2

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.conv2d(x, weight, bias, stride, edge, edge)

    def exact(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, grad: np.ndarray) -> reference.Arrays:
        return reference.conv2d(x, weight, bias, stride, grad)

    shapes = [(n, inner, side, side), (outer, inner, kernel, kernel), (outer,)]
    return compare(ours, shapes, exact, dtype, precision(dtype, back_end, True), narrow=2)


def dense(shape: tuple[int, int, int], dtype: str, back_end: str) -> Outcome:
    """With a bias."""
    rows, inner, outer = shape
    return compare(
        ops.dense,
        [(rows, inner), (outer, inner), (outer,)],
        reference.dense,
        dtype,
        precision(dtype, back_end),
        narrow=2,
    )


def group_norm_silu(shape: tuple[int, int, int, int], dtype: str) -> Outcome:
    """The pair in front of convolutions."""
    n, channels, side, groups = shape

    def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.group_norm_silu(x, gamma, beta, groups, EPS)

    def exact(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, grad: np.ndarray) -> reference.Arrays:
        return reference.group_norm_silu(x, gamma, beta, groups, EPS, grad)

    return compare(ours, [(n, channels, side, side), (channels,), (channels,)], exact, dtype, dtype, narrow=1)


def layer_norm(shape: tuple[int, int], dtype: str) -> Outcome:
    """Over the last axis."""

    def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ops.layer_norm(x, gamma, beta, EPS)

    def exact(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, grad: np.ndarray) -> reference.Arrays:
        return reference.layer_norm(x, gamma, beta, EPS, grad)

    return compare(ours, [shape, shape[1:], shape[1:]], exact, dtype, dtype, narrow=1)


def geglu(dtype: str) -> Outcome:
    """Of the transformers' feed-forward."""
    return compare(ops.geglu, [(256, 256)], reference.geglu, dtype, dtype)


class _MuonStep(nn.Cell):
    """In place, on parameters of its own."""

    def __init__(self, weight: np.ndarray, moment: np.ndarray) -> None:
        super().__init__()
        self.weight, self.moment = Parameter(Tensor(weight), name="weight"), Parameter(Tensor(moment), name="moment")
        self.weights, self.moments = ParameterTuple([self.weight]), ParameterTuple([self.moment])

    def construct(self, coefficients: Tensor, scale: Tensor, gradient: Tensor) -> Tensor:
        return ops.muon(coefficients, scale, self.weights, self.moments, (gradient,))


def muon(shape: tuple[int, int]) -> Outcome:
    """What a step changes of a matrix, and its moment."""
    weight, moment, gradient = (inputs(*shape, seed=seed) for seed in range(3))
    step = _MuonStep(weight, moment)
    step(Tensor(np.array(list(MUON.values()), np.float32)), Tensor(np.float32(1)), Tensor(gradient))
    wide = [x.astype(np.float64) for x in (weight, moment, gradient)]
    true = reference.muon(wide[0], wide[1], wide[2], **MUON)
    errors = error(step.weight.asnumpy() - weight, true[0] - weight), error(step.moment.asnumpy(), true[1])
    own = runtime.cpu_operators() if runtime.start() == "CPU" else ""
    # Five steps of Newton and Schulz enlarge small singular values, and their rounding, 485 times.
    return Outcome(max(errors), "error", 5 * ALLOWED[precision("fp32", own)])


def of_shapes(
    group: str, shapes: Mapping[str, Any], work: Callable[[Any], int], run: Callable, *arguments: str
) -> Iterator[Check]:
    """A check of each shape, by `run(shape, *arguments)`."""
    for name, shape in shapes.items():
        whole = ", ".join((name, *filter(None, arguments)))
        yield Check(group, whole, partial(run, shape, *arguments), work(shape) <= QUICK)


def checks() -> Iterator[Check]:
    """For this device: in float32 and, where that is another type, in what nets compute in."""
    on_cpu = runtime.start() == "CPU"
    own = runtime.cpu_operators() if on_cpu else ""
    variable, back_ends = (
        (runtime.CPU_OPERATORS, runtime.cpu_precisions()) if on_cpu else (runtime.ASCEND_ATTENTION, runtime.ATTENTIONS)
    )
    for dtype in dict.fromkeys(("fp32", runtime.compute_dtype())):
        for back_end in back_ends:
            run = partial(attention, variable=variable)
            yield from of_shapes("attention", ATTENTIONS, lambda shape: 2 * prod(shape[:4]), run, dtype, back_end)
        yield from of_shapes(
            "convolution", CONVS, lambda s: s[0] * s[1] * s[2] * (s[3] * s[4] // s[5]) ** 2, conv2d, dtype, own
        )
        yield from of_shapes("dense", DENSES, prod, dense, dtype, own)
        yield from of_shapes(
            "group normalisation", GROUP_NORMS, lambda s: 64 * s[1] * s[2] ** 2, group_norm_silu, dtype
        )
        yield from of_shapes("layer normalisation", LAYER_NORMS, prod, layer_norm, dtype)
        yield Check("activation", f"GEGLU, {dtype}", partial(geglu, dtype))
    yield from of_shapes("optimizer", {"Muon, 128 × 288": (128, 288)}, prod, muon)
