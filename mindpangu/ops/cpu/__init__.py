"""The CPU operators as MindSpore primitives, gradients included. Built on first use, see `build`.

What a primitive cannot infer from shapes travels as a small tensor, its last input, with a gradient of zero.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Callable, Optional

import numpy as np
from mindspore import Tensor, context, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from mindpangu import runtime
from mindpangu.ops.cpu.build import library

left_out: set[str] = set()  # those that MindSpore's own stand in for, to see what each is worth: bench/worker.py


@constexpr(reuse_result=False)
def in_use(operator: str) -> bool:
    """Whether the device is a CPU with compiled operators; asked while a graph is compiled, free at run time."""
    wanted = context.get_context("device_target") == "CPU" and runtime.cpu_operators() != "off"
    return wanted and operator not in left_out and library() is not None


@constexpr(reuse_result=False)
def bf16() -> bool:
    """Whether convolutions, dense layers and attention multiply in bfloat16."""
    return runtime.cpu_operators() == "bf16"


@constexpr
def _on_cpu() -> bool:
    return bool(context.get_context("device_target") == "CPU")


def upcast(x: Tensor) -> Tensor:
    """x as it is computed with: on a CPU in float32, which is all that our operators take and MindSpore's all have."""
    return x.astype(mstype.float32) if _on_cpu() else x


def _custom(name: str, shape: Callable, outputs: int = 1, bprop: Optional[Callable] = None, variant: str = "") -> Any:
    """One entry point of the library. `shape` infers the outputs' shapes from the inputs'; all are float32.

    MindSpore takes two primitives with equal attributes for one: `variant` tells those of one entry point apart.
    """

    def dtype(first: Any, *_: Any) -> Any:
        return first if outputs == 1 else (first,) * outputs

    operator = ops.Custom(f"{library()}:{name}", out_shape=shape, out_dtype=dtype, func_type="aot", bprop=bprop)
    return operator.add_prim_attr("variant", variant)


@constexpr
@cache
def settings(*values: float) -> Tensor:
    """The attributes of an operator, float32."""
    return Tensor(np.array(values, np.float32))


@constexpr
@cache
def conv2d(stride: int, before: int, after: int) -> Any:
    """(x (N, C, H, W), w (O, C, k, k), b (O,), settings {stride, before, after, bf16}) -> (N, O, H', W')."""
    gradient = _custom("Conv2DGrad", lambda x, w, s, dy: (x, w, [w[0]]), 3)

    def size(x: int, k: int) -> int:
        return (x + before + after - k) // stride + 1

    def shape(x: list[int], w: list[int], b: list[int], s: list[int]) -> list[int]:
        return [x[0], w[0], size(x[2], w[2]), size(x[3], w[3])]

    def bprop(x, w, b, s, out, dout):
        dx, dw, db = gradient(x, w, s, dout)
        return dx, dw, db, ops.zeros_like(s)

    return _custom("Conv2D", shape, 1, bprop, f"{stride} {before} {after}")


@constexpr
@cache
def dense() -> Any:
    """(x (…, C), w (O, C), b (O,), settings {bf16}) -> (…, O)."""
    gradient = _custom("DenseGrad", lambda x, w, s, dy: (x, w, [w[0]]), 3)

    def bprop(x, w, b, s, out, dout):
        dx, dw, db = gradient(x, w, s, dout)
        return dx, dw, db, ops.zeros_like(s)

    return _custom("Dense", lambda x, w, b, s: [*x[:-1], w[0]], 1, bprop)


@constexpr
@cache
def dense_without_bias() -> Any:
    """(x (…, C), w (O, C), settings {bf16}) -> (…, O)."""
    gradient = _custom("DenseGrad", lambda x, w, s, dy: (x, w), 2, variant="without bias")

    def bprop(x, w, s, out, dout):
        dx, dw = gradient(x, w, s, dout)
        return dx, dw, ops.zeros_like(s)

    return _custom("Dense", lambda x, w, s: [*x[:-1], w[0]], 1, bprop, "without bias")


@constexpr
@cache
def group_norm() -> Any:
    """(x (N, C, …), gamma (C,), beta (C,), settings {groups, eps, 1 for SiLU after it}) -> x's shape."""
    gradient = _custom("GroupNormGrad", lambda x, gamma, beta, s, dy: (x, gamma, beta), 3)

    def bprop(x, gamma, beta, s, out, dout):
        dx, dgamma, dbeta = gradient(x, gamma, beta, s, dout)
        return dx, dgamma, dbeta, ops.zeros_like(s)

    return _custom("GroupNorm", lambda x, gamma, beta, s: x, 1, bprop)


@constexpr
@cache
def layer_norm() -> Any:
    """(x (…, C), gamma (C,), beta (C,), settings {eps}) -> x's shape."""
    gradient = _custom("LayerNormGrad", lambda x, gamma, s, dy: (x, gamma, gamma), 3)

    def bprop(x, gamma, beta, s, out, dout):
        dx, dgamma, dbeta = gradient(x, gamma, s, dout)
        return dx, dgamma, dbeta, ops.zeros_like(s)

    return _custom("LayerNorm", lambda x, gamma, beta, s: x, 1, bprop)


@constexpr
@cache
def geglu() -> Any:
    """(…, 2C) -> (…, C)."""
    gradient = _custom("GegluGrad", lambda x, dy: x)

    def bprop(x, out, dout):
        return (gradient(x, dout),)

    return _custom("Geglu", lambda x: [*x[:-1], x[-1] // 2], 1, bprop)


@constexpr
@cache
def attention() -> Any:
    """(q (N, S, C), k, v (N, T, C), settings {heads, scale, causal, bf16}) -> as q."""
    gradient = _custom("AttentionGrad", lambda q, k, v, s, dout: (q, k, v), 3)

    def bprop(q, k, v, s, out, dout):
        dq, dk, dv = gradient(q, k, v, s, dout)
        return dq, dk, dv, ops.zeros_like(s)

    return _custom("Attention", lambda q, k, v, s: q, 1, bprop)


@constexpr
@cache
def norm() -> Any:
    """(gradients…) -> their norm (1,)."""
    return _custom("Norm", lambda *tensors: [1])


@constexpr
@cache
def adamw() -> Any:
    """(coefficients (6,), weights…, first moments…, second moments…, gradients…) -> scale (1,); updates in place."""
    return _custom("AdamW", lambda coefficients, *tensors: [1])


@constexpr
@cache
def muon() -> Any:
    """(coefficients (5,), weights…, moments…, gradients…) -> scale (1,); updates in place."""
    return _custom("Muon", lambda coefficients, *tensors: [1])
