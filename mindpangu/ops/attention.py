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

WHOLE = 16  # FlashAttentionScore takes heads whose width is a multiple of this; a 910A's kernels queries, too


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


@constexpr
def _coupled() -> bool:
    """Whether the chip is a 910A, whose cores are cube and vector core in one, and which has no bfloat16."""
    return runtime.ascend_chip() == "ascend910"


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
        (N, S, heads·D), in q's dtype; the softmax is in float32. On Ascend float32 is multiplied in bfloat16, on a 910A
        in half, as FlashAttentionScore and our kernels take 16 bits alone; on a CPU as `runtime.cpu_operators` says.
    """
    back_end = _ascend_back_end()
    if back_end == "mindpangu" and forbidden is None:
        return _ours(q, k, v, heads, scale, causal)
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
    if x.dtype != mstype.float32:
        return x
    return x.astype(mstype.float16) if _coupled() else x.astype(mstype.bfloat16)


def _wider(x: Tensor, heads: int) -> Tensor:
    """(N, S, H·D) -> (N, S, H, D'), D' the next multiple of 16, by zeros."""
    n, s, channels = x.shape
    apart = x.reshape((n, s, heads, channels // heads))
    lacking = -(channels // heads) % WHOLE
    return ops.pad(apart, (0, lacking)) if lacking else apart


def _ours(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, causal: bool) -> Tensor:
    """Ascend only. A 910A takes whole fractals of channels and of queries: the rest is zeros, and cut off again."""
    half, (n, s, channels) = _half_scores(), q.shape
    kernel, d = _kernel(heads, scale, causal, half, _deterministic()), channels // heads
    if not _coupled() or (d % WHOLE == 0 and s % WHOLE == 0):
        return kernel(_narrow(q), _narrow(k), _narrow(v), heads, scale, causal, half)[0].astype(q.dtype)
    whole = [_wider(_narrow(x), heads) for x in (q, k, v)]
    width = whole[0].shape[-1]
    whole = [x.reshape((n, x.shape[1], heads * width)) for x in whole]
    queries = ops.pad(whole[0], (0, 0, 0, -s % WHOLE)) if s % WHOLE else whole[0]
    out = kernel(queries, whole[1], whole[2], heads, scale, causal, half)[0]
    return out[:, :s].reshape((n, s, heads, width))[..., :d].reshape((n, s, channels)).astype(q.dtype)


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
    whole = [_wider(_narrow(x), heads) for x in (q, k, v)]
    out = ops.flash_attention_score(*whole, heads, attn_mask=mask, scalar_value=scale, input_layout="BSND")
    return out[..., :d].reshape((n, s, channels)).astype(q.dtype)
