"""What conditions the UNets: the features of one or two text encoders on the same prompt, and added conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu.models.clip import text_encoder
from mindpangu.models.layers import SinusoidalEmbedding
from mindpangu.spec import TextSpec


class Conditioner(nn.Cell):
    """construct(ids, a tuple of (N, L), one an encoder; numbers (N, K) or None) -> (context,) or (context, vector).

    The context (N, L, ΣC) joins the text encoders' features channel by channel. The vector (N, P + K·size_dim), where
    there are numbers, joins the last encoder's pooled output and the sinusoidal embedding of each number: the index of
    the size in the model's list of sizes for PanGu-Draw, six lengths for SDXL (arXiv 2307.01952, section 2.2).
    """

    def __init__(self, texts: Sequence[TextSpec], size_dim: int) -> None:
        super().__init__()
        self.text_encoders = nn.CellList([text_encoder(spec) for spec in texts])
        self.size_dim = size_dim
        if size_dim:
            self.size_embedding = SinusoidalEmbedding(size_dim)

    def construct(self, ids: tuple[Tensor, ...], numbers: Optional[Tensor] = None) -> tuple[Tensor, ...]:
        context, pooled = self.text_encoders[0](ids[0])
        if len(self.text_encoders) == 2:
            more, pooled = self.text_encoders[1](ids[1])
            context = mops.concat((context, more), -1)
        if not self.size_dim or numbers is None:
            return (context,)
        n, count = numbers.shape
        embedded = self.size_embedding(numbers.reshape((n * count,))).reshape((n, count * self.size_dim))
        return context, mops.concat((pooled, embedded), -1)
