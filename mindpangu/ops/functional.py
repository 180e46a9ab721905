"""Activations and normalisations. One function each, so that a fused kernel has one place to go."""

from __future__ import annotations

from mindspore import Tensor, ops

from mindpangu.ops import cpu


def silu(x: Tensor) -> Tensor:
    """x · σ(x)."""
    return x * ops.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """x · Φ(x), exact (erf), as SDXL's checkpoints need; the tanh form differs from it by up to 5e-4."""
    return 0.5 * x * (1.0 + ops.erf(x * 0.7071067811865476))


def quick_gelu(x: Tensor) -> Tensor:
    """x · σ(1.702 x), the activation of OpenAI's CLIP and of Chinese-CLIP."""
    return x * ops.sigmoid(1.702 * x)


def geglu(x: Tensor) -> Tensor:
    """(..., 2C) -> (..., C): the first half times the GELU of the second (arXiv 2002.05202)."""
    if cpu.in_use("geglu"):
        return cpu.geglu()(x)
    value, gate = x.chunk(2, axis=-1)
    return value * gelu(gate)


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
