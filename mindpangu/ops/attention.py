"""Scaled dot-product attention, the one function through which every net attends.

The back end follows the device: on Ascend MindSpore's FlashAttentionScore, our AscendC kernels or composed operators,
see `runtime.ascend_attention` (none of them run on an NPU by us: written from the documentation); our own operator on a
CPU where it could be built, composed operators elsewhere.
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

WIDTHS = 16  # FlashAttentionScore takes heads whose width is a multiple of this


@constexpr
def _ascend_back_end() -> str:
    """Evaluated while the graph is compiled: the back end costs nothing at run time. Empty on other devices."""
    return runtime.ascend_attention() if context.get_context("device_target") == "Ascend" else ""


@constexpr
def _future(queries: int, keys: int) -> Tensor:
    """(queries, keys) bool: True where a query may not look, at keys after it."""
    return Tensor(np.triu(np.ones((queries, keys), bool), k=1))


@constexpr
def _half_scores() -> bool:
    return runtime.ascend_scores() == "half"


@constexpr
def _deterministic() -> bool:
    return bool(context.get_context("deterministic") == "ON")


_kernel = constexpr(flash_attention.operator)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    scale: float,
    causal: bool = False,
    forbidden: Optional[Tensor] = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v for each head.

    Args:
        q: (N, S, heads·D), any S.
        k, v: (N, T, heads·D), any T.
        heads: number of heads; head h owns channels h·D … (h+1)·D.
        scale: usually 1/√D.
        causal: query i looks at keys 0 … i alone.
        forbidden: (N, 1, 1, T) bool, True for the keys of a row at which none of its queries may look; None for none.

    Returns:
        (N, S, heads·D), in q's dtype; the softmax is in float32. On Ascend float32 is multiplied in bfloat16,
        as FlashAttentionScore and our kernels take half and bfloat16 alone; on a CPU as `runtime.cpu_operators` says.
    """
    back_end = _ascend_back_end()
    if back_end == "mindpangu" and forbidden is None:
        half = _half_scores()
        kernel = _kernel(heads, scale, causal, half, _deterministic())
        return kernel(_narrow(q), _narrow(k), _narrow(v), heads, scale, causal, half)[0].astype(q.dtype)
    if back_end in ("mindspore", "mindpangu"):
        return _flash(q, k, v, heads, scale, causal, forbidden)
    wide = (cpu.upcast(q), cpu.upcast(k), cpu.upcast(v))
    if cpu.in_use("attention") and forbidden is None:
        return cpu.attention()(*wide, cpu.settings(heads, scale, causal, cpu.bf16())).astype(q.dtype)
    return _composed(*wide, heads, scale, causal, forbidden).astype(q.dtype)


def _composed(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, causal: bool, forbidden: Optional[Tensor]
) -> Tensor:
    n, s, channels = q.shape
    t, d = k.shape[1], channels // heads
    q = (q * scale).reshape((n, s, heads, d)).transpose((0, 2, 1, 3))
    k = k.reshape((n, t, heads, d)).transpose((0, 2, 1, 3))
    v = v.reshape((n, t, heads, d)).transpose((0, 2, 1, 3))
    scores = ops.BatchMatMul(transpose_b=True)(q, k).astype(mstype.float32)
    if causal:
        scores = ops.masked_fill(scores, _future(s, t), -1e9)
    if forbidden is not None:
        scores = ops.masked_fill(scores, forbidden, -1e9)
    out = ops.BatchMatMul()(ops.softmax(scores, -1).astype(v.dtype), v)
    return out.transpose((0, 2, 1, 3)).reshape((n, s, channels))


def _narrow(x: Tensor) -> Tensor:
    return x.astype(mstype.bfloat16) if x.dtype == mstype.float32 else x


def _flash(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, causal: bool, forbidden: Optional[Tensor]
) -> Tensor:
    """Ascend only. FlashAttentionScore takes a boolean mask, True where attention is forbidden."""
    n, s, channels = q.shape
    t, d = k.shape[1], channels // heads
    mask = _future(s, t) if causal else None
    if forbidden is not None:
        rows = ops.broadcast_to(forbidden, (n, 1, s, t))
        mask = rows if mask is None else ops.logical_or(rows, mask)
    lacking = -d % WIDTHS

    def wider(x: Tensor) -> Tensor:
        heads_apart = _narrow(x).reshape((n, x.shape[1], heads, d))
        return ops.pad(heads_apart, (0, lacking)) if lacking else heads_apart

    out = ops.flash_attention_score(
        wider(q), wider(k), wider(v), heads, attn_mask=mask, scalar_value=scale, input_layout="BSND"
    )
    return out[..., :d].reshape((n, s, channels)).astype(q.dtype)
