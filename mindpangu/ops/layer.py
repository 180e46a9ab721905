"""The two layers with weights: convolution and dense."""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from mindpangu.ops import cpu


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
    padding = (before, after, before, after)
    conv = ops.Conv2D(weight.shape[0], weight.shape[2], pad_mode="pad", pad=padding, stride=stride)
    return ops.BiasAdd()(conv(x, weight), bias)


def dense(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x (…, C), weight (O, C), bias (O,) or None -> x · weightᵀ + bias, (…, O)."""
    if cpu.in_use("dense"):
        if bias is None:
            return cpu.dense_without_bias()(x, weight, cpu.settings(cpu.bf16()))
        return cpu.dense()(x, weight, bias, cpu.settings(cpu.bf16()))
    shape = x.shape
    y = ops.MatMul(transpose_b=True)(x.reshape((-1, shape[-1])), weight)
    if bias is not None:
        y = ops.BiasAdd()(y, bias)
    return y.reshape((*shape[:-1], weight.shape[0]))
