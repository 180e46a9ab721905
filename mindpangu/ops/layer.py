"""The two layers with weights: convolution and dense.

On Ascend float32 is multiplied in bfloat16 and added in float32 (`runtime.ascend_products`; not run on an NPU by us),
as our operators do on a CPU that has bfloat16.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, context, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from mindpangu import runtime
from mindpangu.ops import cpu


@constexpr
def _in_bf16() -> bool:
    """Evaluated while the graph is compiled."""
    return bool(context.get_context("device_target") == "Ascend") and runtime.ascend_products() == "bf16"


def _narrow(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are to be multiplied."""
    if _in_bf16() and x.dtype == mstype.float32:
        return x.astype(mstype.bfloat16), weight.astype(mstype.bfloat16)
    return x, weight


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, before: int, after: int) -> Tensor:
    """2-D convolution with zero padding `before` (top, left) and `after` (bottom, right).

    Args:
        x: (N, C, H, W).
        weight: (O, C, k, k).
        bias: (O,).

    Returns:
        (N, O, H', W') with H' = (H + before + after - k) // stride + 1.
    """
    if cpu.in_use("conv2d"):
        settings = cpu.settings(stride, before, after, cpu.bf16())
        return cpu.conv2d(stride, before, after)(x, weight, bias, settings)
    wide, x, weight = x.dtype, *_narrow(x, weight)
    padding = (before, after, before, after)
    conv = ops.Conv2D(weight.shape[0], weight.shape[2], pad_mode="pad", pad=padding, stride=stride)
    return ops.BiasAdd()(conv(x, weight).astype(wide), bias)


def dense(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x (…, C), weight (O, C), bias (O,) or None -> x · weightᵀ + bias, (…, O)."""
    if cpu.in_use("dense"):
        if bias is None:
            return cpu.dense_without_bias()(x, weight, cpu.settings(cpu.bf16()))
        return cpu.dense()(x, weight, bias, cpu.settings(cpu.bf16()))
    wide, x, weight = x.dtype, *_narrow(x, weight)
    shape = x.shape
    y = ops.MatMul(transpose_b=True)(x.reshape((-1, shape[-1])), weight).astype(wide)
    if bias is not None:
        y = ops.BiasAdd()(y, bias)
    return y.reshape((*shape[:-1], weight.shape[0]))
