"""Normalisations. One function each, so that a fused kernel has one place to go."""

from __future__ import annotations

from mindspore import Tensor, ops

from mindpangu.ops import cpu
from mindpangu.ops.activation import silu


def group_norm(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Tensor:
    """Group normalisation (arXiv 1803.08494). x: (N, C, …), C divisible by `groups`; gamma, beta: (C,)."""
    if cpu.in_use("group_norm"):
        return cpu.group_norm()(x, gamma, beta, cpu.settings(groups, eps, 0))
    return ops.group_norm(x, groups, gamma, beta, eps)


def group_norm_silu(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU(group_norm(x)), the pair in front of every convolution of the UNet and the VAE."""
    if cpu.in_use("group_norm"):
        return cpu.group_norm()(x, gamma, beta, cpu.settings(groups, eps, 1))
    return silu(group_norm(x, gamma, beta, groups, eps))


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis (arXiv 1607.06450). x: (…, C); gamma, beta: (C,)."""
    if cpu.in_use("layer_norm"):
        return cpu.layer_norm()(x, gamma, beta, cpu.settings(eps))
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)(x, gamma, beta)[0]
