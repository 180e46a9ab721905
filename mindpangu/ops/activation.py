"""Activations of the CLIP and the UNet's feed-forward layers."""

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
