"""The two layers with weights: convolution and dense.

They compute in x's dtype. A CPU computes what comes in 16 bits in float32, and rounds the result; our operators there
multiply in bfloat16 where the CPU has it.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from mindpangu.ops import cpu


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, before: int, after: int) -> Tensor:
    """2-D convolution with zero padding `before` (top, left) and `after` (bottom, right).

    Args:
        x: (N, C, H, W).
        weight: (O, C, k, k), in x's dtype.
        bias: (O,).

    Returns:
        (N, O, H', W') with H' = (H + before + after - k) // stride + 1.
    """
    wide, weight = cpu.upcast(x), cpu.upcast(weight)
    if cpu.in_use("conv2d"):
        settings = cpu.settings(stride, before, after, cpu.bf16())
        return cpu.conv2d(stride, before, after)(wide, weight, bias, settings).astype(x.dtype)
    padding = (before, after, before, after)
    conv = ops.Conv2D(weight.shape[0], weight.shape[2], pad_mode="pad", pad=padding, stride=stride)
    return ops.BiasAdd()(conv(wide, weight), bias.astype(weight.dtype)).astype(x.dtype)


def dense(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x (…, C), weight (O, C), in x's dtype, bias (O,) or None -> x · weightᵀ + bias, (…, O)."""
    wide, weight = cpu.upcast(x), cpu.upcast(weight)
    if cpu.in_use("dense"):
        if bias is None:
            return cpu.dense_without_bias()(wide, weight, cpu.settings(cpu.bf16())).astype(x.dtype)
        return cpu.dense()(wide, weight, bias, cpu.settings(cpu.bf16())).astype(x.dtype)
    y = ops.MatMul(transpose_b=True)(wide.reshape((-1, x.shape[-1])), weight)
    if bias is not None:
        y = ops.BiasAdd()(y, bias.astype(weight.dtype))
    return y.reshape((*x.shape[:-1], weight.shape[0])).astype(x.dtype)
