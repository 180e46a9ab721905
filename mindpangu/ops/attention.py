"""Scaled dot-product attention, the one function through which every net attends.

The back end follows the device: on Ascend MindSpore's FlashAttentionScore or, with MINDPANGU_ASCEND_ATTENTION=mindpangu
and where there is no mask, our AscendC kernels (neither run on an NPU by us: written from the documentation); our own
operator on a CPU where it could be built, composed operators elsewhere.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
from mindspore import Tensor, context, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from mindpangu import runtime
from mindpangu.ascend_kernels import flash_attention
from mindpangu.ops import cpu


def causal_mask(length: int) -> Tensor:
    """(length, length) float32: 0 where a token may look (itself and before), -1e9 elsewhere."""
    return Tensor(np.triu(np.full((length, length), -1e9, np.float32), k=1))


@constexpr
def _on_ascend() -> bool:
    """Evaluated while the graph is compiled: the back end costs nothing at run time."""
    return bool(context.get_context("device_target") == "Ascend")


@constexpr
def _with_own_kernel() -> bool:
    return runtime.ascend_attention() == "mindpangu"


_kernel = constexpr(flash_attention.operator)


def attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float, mask: Optional[Tensor] = None) -> Tensor:
    """softmax(scale · q kᵀ + mask) v for each head.

    Args:
        q: (N, S, heads·D), any S.
        k, v: (N, T, heads·D), any T.
        heads: number of heads; head h owns channels h·D … (h+1)·D.
        scale: usually 1/√D.
        mask: (S, T), or (N, 1, 1, T) for each row's own, added to the scores, or None.

    Returns:
        (N, S, heads·D), in q's dtype.
    """
    if _on_ascend():
        if mask is None and _with_own_kernel() and q.dtype != mstype.float32:
            return _kernel()(q, k, v, heads, scale, False)[0]
        return _flash(q, k, v, heads, scale, mask)
    if cpu.in_use("attention") and (mask is None or mask.ndim == 2):
        return cpu.attention()(
            q, k, v, cpu.settings(0.0) if mask is None else mask, cpu.settings(heads, scale, cpu.bf16())
        )
    return _composed(q, k, v, heads, scale, mask)


def _composed(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Optional[Tensor]) -> Tensor:
    n, s, channels = q.shape
    t, d = k.shape[1], channels // heads
    q = (q * scale).reshape((n, s, heads, d)).transpose((0, 2, 1, 3))
    k = k.reshape((n, t, heads, d)).transpose((0, 2, 1, 3))
    v = v.reshape((n, t, heads, d)).transpose((0, 2, 1, 3))
    scores = ops.BatchMatMul(transpose_b=True)(q, k)
    if mask is not None:
        scores = scores + mask
    out = ops.BatchMatMul()(ops.softmax(scores, -1), v)
    return out.transpose((0, 2, 1, 3)).reshape((n, s, channels))


def _flash(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Optional[Tensor]) -> Tensor:
    """Ascend only. FlashAttentionScore takes a boolean mask, True where attention is forbidden."""
    forbidden = None
    if mask is not None:
        forbidden = ops.broadcast_to(mask < 0, (*mask.shape[:-2], q.shape[1], k.shape[1]))
    return ops.flash_attention_score(q, k, v, heads, attn_mask=forbidden, scalar_value=scale, input_layout="BSH")
