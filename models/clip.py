"""CLIP (arXiv 2103.00020): two kinds of text encoder, as PanGu-Draw uses them, Chinese-CLIP's, and a vision
transformer.

Parameter names: CLIP's as in transformers' CLIPTextModel (Chinese-CLIP in PanGu-Draw), OpenCLIP's as in OpenCLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as mops
from mindspore.common.initializer import Normal, initializer

from mindpangu import ops
from mindpangu.models.layers import DOWN, UP, Computing, Dense, LayerNorm, cast_to
from mindpangu.spec import ImageEncoderSpec, TextSpec

INIT_STD = 0.02
EPS_BERT = 1e-12
BATCH = 64  # texts that `encode_texts` encodes together


def dense(in_channels: int, out_channels: int) -> Dense:
    """A dense layer with CLIP's initial weights."""
    return Dense(in_channels, out_channels, True, Normal(INIT_STD))


class Embedding(nn.Cell):
    """A lookup table, (ids) -> (ids, width) float32."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding_table = Parameter(initializer(Normal(INIT_STD), (size, width)), name="embedding_table")

    def construct(self, ids: Tensor) -> Tensor:
        return mops.gather(self.embedding_table, ids, 0).astype("float32")


def at_end(features: Tensor, ids: Tensor, end_id: int) -> Tensor:
    """(N, L, C) -> (N, C): the feature of each row's first end token."""
    is_end = (ids == end_id).astype("float32")
    first = is_end * (mops.cumsum(is_end, 1) == 1).astype("float32")
    return (features * first.expand_dims(-1)).sum(1)


# ---- CLIP's text encoder --------------------------------------------------------------------------------------------


class CLIPAttention(nn.Cell):
    """Multi-head self-attention with four projections; `forbidden` as in `ops.attention`."""

    def __init__(self, spec: TextSpec, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.heads, self.scale = spec.heads, (spec.width // spec.heads) ** -0.5
        self.q_proj = dense(spec.width, spec.width)
        self.k_proj = dense(spec.width, spec.width)
        self.v_proj = dense(spec.width, spec.width)
        self.out_proj = dense(spec.width, spec.width)

    def construct(self, x: Tensor, forbidden: Optional[Tensor] = None) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        y = ops.attention(q, k, v, heads=self.heads, scale=self.scale, causal=self.causal, forbidden=forbidden)
        return self.out_proj(y)


class CLIPMLP(nn.Cell):
    """Two dense layers, four times wider between."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.fc1 = dense(spec.width, 4 * spec.width)
        self.fc2 = dense(4 * spec.width, spec.width)
        self.quick = spec.activation == "quick_gelu"

    def construct(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        return self.fc2(ops.quick_gelu(y) if self.quick else ops.gelu(y))


class CLIPLayer(nn.Cell):
    """A pre-norm transformer layer."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(spec.width)
        self.self_attn = CLIPAttention(spec, causal=True)
        self.layer_norm2 = LayerNorm(spec.width)
        self.mlp = CLIPMLP(spec)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEmbeddings(nn.Cell):
    """Token plus position."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.token_embedding = Embedding(spec.vocab_size, spec.width)
        self.position_embedding = Embedding(spec.context_length, spec.width)

    def construct(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.embedding_table


class CLIPEncoder(nn.Cell):
    """The layers, under transformers' name; construct returns the last two states."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.layers = nn.CellList([CLIPLayer(spec) for _ in range(spec.layers_used)])

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = x
        for layer in self.layers:
            before = x
            x = layer(x)
        return before, x


class CLIPTextEncoder(Computing):
    """ids (N, L) int32 -> (features (N, L, C), pooled (N, C): the final-normed ones at the end token).

    The features are final-normed too (output "last"), or those before the last layer, not normed (output "hidden").
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.end_id, self.hidden = spec.end_id, spec.output == "hidden"
        self.embeddings = CLIPEmbeddings(spec)
        self.encoder = CLIPEncoder(spec)
        self.final_layer_norm = LayerNorm(spec.width)

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        before, last = self.encoder(self.cast(self.embeddings(ids)))
        before, normed = before.astype("float32"), self.final_layer_norm(last).astype("float32")
        return before if self.hidden else normed, at_end(normed, ids, self.end_id)


# ---- OpenCLIP's text encoder ----------------------------------------------------------------------------------------


class OpenCLIPAttention(nn.Cell):
    """Multi-head self-attention with one packed input projection."""

    in_proj_lora_down: Parameter  # of an adapted layer
    in_proj_lora_up: Parameter

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.in_proj_weight = Parameter(initializer(Normal(INIT_STD), (3 * width, width)), name="in_proj_weight")
        self.in_proj_bias = Parameter(initializer("zeros", (3 * width,)), name="in_proj_bias")
        self.out_proj = dense(width, width)
        self.adapted, self.lora_scale = False, 1.0

    def adapt(self, rank: int, scale: float) -> None:
        """As `Dense.adapt`: an update each for queries, keys and values, one below the other."""
        stem, width = self.in_proj_weight.name.removesuffix("weight"), self.in_proj_weight.shape[1]
        self.adapted, self.lora_scale = True, scale
        self.in_proj_lora_down = Parameter(initializer("he_uniform", (3 * rank, width)), name=f"{stem}{DOWN}")
        self.in_proj_lora_up = Parameter(initializer("zeros", (3 * width, rank)), name=f"{stem}{UP}")

    def construct(self, x: Tensor) -> Tensor:
        packed = ops.dense(x, cast_to(self.in_proj_weight, x), self.in_proj_bias)
        if self.adapted:
            downs = ops.dense(x, cast_to(self.in_proj_lora_down, x)).chunk(3, axis=-1)
            ups = cast_to(self.in_proj_lora_up, x).chunk(3, axis=0)
            updates = mops.concat([ops.dense(down, up) for down, up in zip(downs, ups)], -1)
            packed = packed + self.lora_scale * updates
        q, k, v = packed.chunk(3, axis=-1)
        return self.out_proj(ops.attention(q, k, v, heads=self.heads, scale=self.scale, causal=self.causal))


class OpenCLIPMLP(nn.Cell):
    """Two dense layers, four times wider between."""

    def __init__(self, width: int, quick: bool) -> None:
        super().__init__()
        self.c_fc = dense(width, 4 * width)
        self.c_proj = dense(4 * width, width)
        self.quick = quick

    def construct(self, x: Tensor) -> Tensor:
        y = self.c_fc(x)
        return self.c_proj(ops.quick_gelu(y) if self.quick else ops.gelu(y))


class ResidualAttentionBlock(nn.Cell):
    """OpenCLIP's pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, quick: bool, causal: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = OpenCLIPAttention(width, heads, causal)
        self.ln_2 = LayerNorm(width)
        self.mlp = OpenCLIPMLP(width, quick)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenCLIPTransformer(nn.Cell):
    """The layers, under OpenCLIP's name; construct returns the last two states."""

    def __init__(self, width: int, layers: int, heads: int, quick: bool, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.CellList([ResidualAttentionBlock(width, heads, quick, causal) for _ in range(layers)])

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = x
        for block in self.resblocks:
            before = x
            x = block(x)
        return before, x


class OpenCLIPTextEncoder(Computing):
    """ids (N, L) int32 -> (features (N, L, C) before the last layer, not normed; pooled (N, projection_dim))."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.end_id = spec.end_id
        self.token_embedding = Embedding(spec.vocab_size, spec.width)
        self.positional_embedding = Parameter(
            initializer(Normal(INIT_STD), (spec.context_length, spec.width)), name="positional_embedding"
        )
        self.transformer = OpenCLIPTransformer(
            spec.width, spec.layers, spec.heads, spec.activation == "quick_gelu", True
        )
        self.ln_final = LayerNorm(spec.width)
        self.text_projection = Parameter(
            initializer(Normal(spec.width**-0.5), (spec.width, spec.projection_dim)), name="text_projection"
        )

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.token_embedding(ids) + self.positional_embedding
        features, last = self.transformer(self.cast(x))
        end = at_end(self.ln_final(last).astype("float32"), ids, self.end_id)
        return features.astype("float32"), mops.matmul(end, cast_to(self.text_projection, end))


# ---- Chinese-CLIP's text encoder ------------------------------------------------------------------------------------


class BertLayer(nn.Cell):
    """A post-norm transformer layer (arXiv 1810.04805)."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.attention = CLIPAttention(spec, causal=False)
        self.attention_norm = LayerNorm(spec.width, EPS_BERT)
        self.mlp = CLIPMLP(spec)
        self.mlp_norm = LayerNorm(spec.width, EPS_BERT)

    def construct(self, x: Tensor, forbidden: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, forbidden))
        return self.mlp_norm(x + self.mlp(x))


class ChineseCLIPTextEncoder(Computing):
    """ids (N, L) int32 -> (features (N, L, C) of the last layer; pooled (N, projection_dim): the projected first).

    Chinese-CLIP's (arXiv 2211.01335): tokens look at all that is no padding.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        assert spec.projection_dim is not None
        self.pad_id = spec.pad_id
        self.token_embedding = Embedding(spec.vocab_size, spec.width)
        self.position_embedding = Embedding(spec.context_length, spec.width)
        self.segment_embedding = Embedding(2, spec.width)  # of a pair of texts; a prompt is the first
        self.norm = LayerNorm(spec.width, EPS_BERT)
        self.layers = nn.CellList([BertLayer(spec) for _ in range(spec.layers_used)])
        self.text_projection = Dense(spec.width, spec.projection_dim, False, Normal(spec.width**-0.5))

    def construct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        forbidden = (ids == self.pad_id).expand_dims(1).expand_dims(1)
        x = self.token_embedding(ids) + self.position_embedding.embedding_table
        x = self.norm(self.cast(x + self.segment_embedding.embedding_table[0]))
        for layer in self.layers:
            x = layer(x, forbidden)
        x = x.astype("float32")
        return x, self.text_projection(x[:, 0])


def text_encoder(spec: TextSpec) -> nn.Cell:
    """The encoder that `spec.output` asks for."""
    kinds = {"penultimate": OpenCLIPTextEncoder, "bert": ChineseCLIPTextEncoder}
    return kinds.get(spec.output, CLIPTextEncoder)(spec)


def encode_texts(
    encoder: nn.Cell, tokenizer: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Features of texts' tokens (M, L, C), and pooled ones (M, P); in batches of one shape, so it is compiled once."""
    tokens: list[np.ndarray] = []
    pooled: list[np.ndarray] = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        outputs = encoder(Tensor(tokenizer([*part, *[""] * (BATCH - len(part))])))
        for kept, output in zip((tokens, pooled), outputs):
            kept.append(output.asnumpy()[: len(part)])
    return np.concatenate(tokens), np.concatenate(pooled)


# ---- image encoder ---------------------------------------------------------------------------------------------------


class ImageEncoder(nn.Cell):
    """A vision transformer: (N, 3, S, S) in [-1, 1] -> (N, projection_dim), the projected mean of the patches."""

    def __init__(self, spec: ImageEncoderSpec) -> None:
        super().__init__()
        patches = (spec.image_size // spec.patch_size) ** 2
        self.patch_size, self.width = spec.patch_size, spec.width
        self.patch_embedding = dense(3 * spec.patch_size**2, spec.width)
        self.positional_embedding = Parameter(
            initializer(Normal(INIT_STD), (patches, spec.width)), name="positional_embedding"
        )
        self.transformer = OpenCLIPTransformer(spec.width, spec.layers, spec.heads, quick=True, causal=False)
        self.ln_post = LayerNorm(spec.width)
        self.projection = Parameter(
            initializer(Normal(spec.width**-0.5), (spec.width, spec.projection_dim)), name="projection"
        )

    def construct(self, x: Tensor) -> Tensor:
        patches = mops.pixel_unshuffle(x, self.patch_size)
        n, channels, h, w = patches.shape
        tokens = self.patch_embedding(patches.reshape((n, channels, h * w)).transpose((0, 2, 1)))
        _, last = self.transformer(tokens + self.positional_embedding)
        return mops.matmul(self.ln_post(last).mean(1), self.projection)
