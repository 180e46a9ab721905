"""PanGu-Draw's conditioning: two text towers on the same prompt, and the index of the size asked for."""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu.models.clip import text_tower
from mindpangu.models.layers import SinusoidalEmbedding
from mindpangu.models.spec import TextSpec


class PanGuConditioner(nn.Cell):
    """construct(ids_a (N, L), ids_b (N, L), size_index (N,)) -> (context (N, L, A + B), vector (N, P + size_dim)).

    The context joins both towers' features channel by channel; the vector joins tower B's pooled output and the
    sinusoidal embedding of the size's index in the model's list of sizes.
    """

    def __init__(self, text_a: TextSpec, text_b: TextSpec, size_dim: int) -> None:
        super().__init__()
        self.text_a, self.text_b = text_tower(text_a), text_tower(text_b)
        self.size_embedding = SinusoidalEmbedding(size_dim)

    def construct(self, ids_a: Tensor, ids_b: Tensor, size_index: Tensor) -> tuple[Tensor, Tensor]:
        features_a, _ = self.text_a(ids_a)
        features_b, pooled = self.text_b(ids_b)
        context = mops.concat((features_a, features_b), -1)
        return context, mops.concat((pooled, self.size_embedding(size_index)), -1)
