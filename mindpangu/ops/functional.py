"""Activations, normalisations and layouts. One function each, so that a fused kernel has one place to go.

All return x's dtype. Normalisations compute in float32, and a CPU everything.
"""

from __future__ import annotations

from mindspore import Tensor, ops
from mindspore import dtype as mstype

from mindpangu.ops import cpu


def silu(x: Tensor) -> Tensor:
    """x · σ(x)."""
    wide = cpu.upcast(x)
    return (wide * ops.sigmoid(wide)).astype(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """x · Φ(x), exact (erf), as SDXL's checkpoints need; the tanh form differs from it by up to 5e-4."""
    wide = cpu.upcast(x)
    return (0.5 * wide * (1.0 + ops.erf(wide * 0.7071067811865476))).astype(x.dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """x · σ(1.702 x), the activation of OpenAI's CLIP and of Chinese-CLIP."""
    wide = cpu.upcast(x)
    return (wide * ops.sigmoid(1.702 * wide)).astype(x.dtype)


def geglu(x: Tensor) -> Tensor:
    """(..., 2C) -> (..., C): the first half times the GELU of the second (arXiv 2002.05202)."""
    if cpu.in_use("geglu"):
        return cpu.geglu()(cpu.upcast(x)).astype(x.dtype)
    value, gate = x.chunk(2, axis=-1)
    return value * gelu(gate)


def add_to_channels(x: Tensor, values: Tensor) -> Tensor:
    """x (N, C, H, W) plus values (N, C)."""
    return (cpu.upcast(x) + cpu.upcast(values).reshape((*values.shape, 1, 1))).astype(x.dtype)


def to_sequence(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H·W, C): the positions, as attention takes them."""
    n, c, h, w = x.shape
    return cpu.upcast(x).reshape((n, c, h * w)).transpose((0, 2, 1)).astype(x.dtype)


def from_sequence(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, H·W, C) -> (N, C, H, W), which is `shape`."""
    return cpu.upcast(x).transpose((0, 2, 1)).reshape(shape).astype(x.dtype)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """(N, C, H·f, W·f) -> (N, C·f², H, W)."""
    return ops.pixel_unshuffle(cpu.upcast(x), factor).astype(x.dtype)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """(N, C·f², H, W) -> (N, C, H·f, W·f)."""
    return ops.pixel_shuffle(cpu.upcast(x), factor).astype(x.dtype)


def repeat_pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W): every pixel four times."""
    size = (x.shape[2] * 2, x.shape[3] * 2)
    return ops.interpolate(cpu.upcast(x), size=size, mode="nearest").astype(x.dtype)


def group_norm(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Tensor:
    """Group normalisation (arXiv 1803.08494). x: (N, C, …), C divisible by `groups`; gamma, beta: (C,)."""
    wide = x.astype(mstype.float32)
    if cpu.in_use("group_norm"):
        return cpu.group_norm()(wide, gamma, beta, cpu.settings(groups, eps, 0)).astype(x.dtype)
    return ops.group_norm(wide, groups, gamma, beta, eps).astype(x.dtype)


def group_norm_silu(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU(group_norm(x)), the pair in front of every convolution of the UNet and the VAE."""
    if cpu.in_use("group_norm"):
        return cpu.group_norm()(x.astype(mstype.float32), gamma, beta, cpu.settings(groups, eps, 1)).astype(x.dtype)
    return silu(group_norm(x, gamma, beta, groups, eps))


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis (arXiv 1607.06450). x: (…, C); gamma, beta: (C,)."""
    wide = x.astype(mstype.float32)
    if cpu.in_use("layer_norm"):
        return cpu.layer_norm()(wide, gamma, beta, cpu.settings(eps)).astype(x.dtype)
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)(wide, gamma, beta)[0].astype(x.dtype)
