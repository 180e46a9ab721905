"""The AscendC flash attention as MindSpore calls it. Needs its operator package installed; never run on an NPU.

What is checked without one: MindSpore's code generator accepts both registrations, and in graph mode, at jit_level O0
and O1, the operators are compiled, called and differentiated on a CPU with a library that stands for the package
(tests/ascend_kernels/test_package.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops import CustomRegOp, DataType

# As the package registers them. At O0 and O1 MindSpore puts "aclnn" in front; GE (O2) looks for the names as they are.
FORWARD, BACKWARD = "MindpanguFlashAttention", "MindpanguFlashAttentionGrad"
VENDOR, HEADER = "mindpangu", "aclnn_mindpangu_flash_attention.h"


def installed() -> bool:
    """Whether the operator package lies where CANN looks for such; MindSpore has put its own there, too."""
    folders = [Path(path) for path in os.environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(os.pathsep) if path]
    if "ASCEND_OPP_PATH" in os.environ:
        folders.append(Path(os.environ["ASCEND_OPP_PATH"]) / "vendors" / VENDOR)
    return any((folder / "op_api" / "include" / HEADER).is_file() for folder in folders)


SETTINGS = (("heads", "int"), ("scale", "double"), ("causal", "bool"), ("half_scores", "bool"))
ORDER = ("deterministic", "bool")


def registration(
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    floats: tuple[str, ...],
    attributes: tuple[tuple[str, str], ...] = SETTINGS,
) -> Any:
    """What MindSpore is told of an operator: tensors in half or bfloat16, `floats` in float32, and the attributes."""
    info = CustomRegOp(name)
    for i, tensor in enumerate(inputs):
        info = info.input(i, tensor, "required")
    for i, tensor in enumerate(outputs):
        info = info.output(i, tensor, "required")
    for attribute, kind in attributes:
        info = info.attr(attribute, "required", kind)
    for narrow in (DataType.F16_Default, DataType.BF16_Default):
        kinds = [DataType.F32_Default if tensor in floats else narrow for tensor in (*inputs, *outputs)]
        info = info.dtype_format(*kinds)
    return info.target("Ascend").get_op_info()


def forward_registration() -> Any:
    """Of the forward operator."""
    return registration(FORWARD, ("q", "k", "v"), ("o", "lse"), ("lse",))


def backward_registration() -> Any:
    """Of the backward operator."""
    inputs, outputs = ("q", "k", "v", "grad", "lse", "delta"), ("dq", "dk", "dv")
    return registration(BACKWARD, inputs, outputs, ("lse", "delta"), (*SETTINGS, ORDER))


def gradients(
    backward: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    causal: bool,
    half_scores: bool,
    deterministic: bool,
    out: Any,
    dout: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv by a backward operator, from the forward one's (o, lse) and the gradient of o; lse has none.

    Gradients of scores are kept in half only where q is: those of bfloat16 may be smaller than half holds.
    """
    o, lse, grad = out[0], out[1], dout[0]
    n, s, channels = o.shape
    products = o.astype(mstype.float32) * grad.astype(mstype.float32)
    delta = products.reshape((n, s, heads, channels // heads)).sum(-1).transpose((0, 2, 1))
    half = half_scores and q.dtype == mstype.float16
    return backward(q, k, v, grad.astype(q.dtype), lse, delta, heads, scale, causal, half, deterministic)


@cache
def operator(heads: int, scale: float, causal: bool, half_scores: bool, deterministic: bool = False) -> Any:
    """(q (N, S, H·D), k, v (N, T, H·D), and the first four again) -> (o (N, S, H·D), lse (N, H, S) float32).

    `half_scores`: scores leave the cube cores in half, which takes less time, and none counts more than 65,504.
    `deterministic`: gradients have equal bits each time, in two passes instead of one.
    The shape functions of `ops.Custom` see shapes alone, so there is an operator for each of these settings, told
    apart by an attribute.
    """
    backward = ops.Custom(
        BACKWARD,
        lambda q, k, v, *others: (q, k, v),
        lambda q, k, v, *others: (q, k, v),
        func_type="aot",
        reg_info=backward_registration(),
    )

    def bprop(q, k, v, heads_, scale_, causal_, half_scores_, out, dout):
        dq, dk, dv = gradients(backward, q, k, v, heads, scale, causal, half_scores, deterministic, out, dout)
        return dq, dk, dv, None, None, None, None

    forward = ops.Custom(
        FORWARD,
        lambda q, k, v, *attributes: (q, [q[0], heads, q[1]]),
        lambda q, k, v, *attributes: (q, mstype.float32),
        func_type="aot",
        bprop=bprop,
        reg_info=forward_registration(),
    )
    for made in (forward, backward):
        made.add_prim_attr("settings", f"{heads} heads, {scale}, {causal}, {half_scores}, {deterministic}")
    return forward
