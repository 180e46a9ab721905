"""The SDXL-shaped UNet (arXiv 2307.01952) of PanGu-Draw's structure and texture generators; ldm's parameter names."""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu import ops
from mindpangu.layout import UNetBlock, unet_layout
from mindpangu.models.layers import (
    Computing,
    Conv2d,
    GroupNorm,
    GroupNormSiLU,
    LayerNorm,
    SinusoidalEmbedding,
    Upsample,
    conv1x1,
    conv3x3,
    linear,
)
from mindpangu.spec import UNetSpec

RES_EPS, TRANSFORMER_EPS = 1e-5, 1e-6


class ResBlock(nn.Cell):
    """Residual block; the embedding is added between the convolutions."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.CellList(
            [GroupNormSiLU(in_channels, groups, RES_EPS), nn.Identity(), conv3x3(in_channels, out_channels)]
        )
        self.emb_layers = nn.CellList([nn.Identity(), linear(embedding, out_channels)])
        self.out_layers = nn.CellList(
            [
                GroupNormSiLU(out_channels, groups, RES_EPS),
                nn.Identity(),
                nn.Identity(),
                conv3x3(out_channels, out_channels, init="zeros"),
            ]
        )
        self.changes_width = in_channels != out_channels
        if self.changes_width:
            self.skip_connection = conv1x1(in_channels, out_channels)

    def construct(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (N, C, h, w); embedding: (N, E), after SiLU."""
        h = self.in_layers[2](self.in_layers[0](x))
        h = ops.add_to_channels(h, self.emb_layers[1](embedding))
        h = self.out_layers[3](self.out_layers[0](h))
        return (self.skip_connection(x) if self.changes_width else x) + h


class Attention(nn.Cell):
    """Multi-head attention of x (N, S, C) to context (N, T, K)."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.to_q = linear(channels, channels, bias=False)
        self.to_k = linear(context_dim, channels, bias=False)
        self.to_v = linear(context_dim, channels, bias=False)
        self.to_out = nn.CellList([linear(channels, channels)])

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        if not self.training:  # a graph would else make every block's keys and values at its start
            context = mops.depend(context, x)
        y = ops.attention(self.to_q(x), self.to_k(context), self.to_v(context), heads=self.heads, scale=self.scale)
        return self.to_out[0](y)


class GEGLU(nn.Cell):
    """Dense layer to twice the width, gated (arXiv 2002.05202)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = linear(channels, 2 * inner)

    def construct(self, x: Tensor) -> Tensor:
        return ops.geglu(self.proj(x))


class FeedForward(nn.Cell):
    """GEGLU, then back to the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.CellList([GEGLU(channels, 4 * channels), nn.Identity(), linear(4 * channels, channels)])

    def construct(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Cell):
    """Self-attention, cross-attention where there is a context, feed-forward; each pre-normed and residual."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, heads)
        self.crosses = context_dim > 0
        if self.crosses:
            self.attn2 = Attention(channels, context_dim, heads)
        self.ff = FeedForward(channels)
        self.norm1 = LayerNorm(channels)
        if self.crosses:
            self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def construct(self, x: Tensor, context: Optional[Tensor]) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        if self.crosses:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Cell):
    """Transformer blocks over the positions of (N, C, h, w), residual as a whole."""

    def __init__(self, channels: int, depth: int, spec: UNetSpec) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, spec.norm_groups, TRANSFORMER_EPS)
        self.proj_in = linear(channels, channels)
        self.transformer_blocks = nn.CellList(
            [TransformerBlock(channels, spec.context_dim, spec.heads_of(channels)) for _ in range(depth)]
        )
        self.proj_out = linear(channels, channels, init="zeros")

    def construct(self, x: Tensor, context: Optional[Tensor]) -> Tensor:
        y = self.proj_in(ops.to_sequence(self.norm(x)))
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + ops.from_sequence(self.proj_out(y), x.shape)


class PatchEmbed(Conv2d):
    """Patches of `patch`×`patch` latents onto channels (arXiv 2212.09748), then a 3×3 convolution."""

    def __init__(self, patch: int, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels * patch**2, out_channels, 3, 1, 1, 1, "he_uniform")
        self.patch = patch

    def construct(self, x: Tensor) -> Tensor:
        return self.convolve(ops.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)


class Unpatch(Conv2d):
    """A 3×3 convolution, which starts at zero, then its channels back onto patches of latents."""

    def __init__(self, patch: int, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels * patch**2, 3, 1, 1, 1, "zeros")
        self.patch = patch

    def construct(self, x: Tensor) -> Tensor:
        x = self.convolve(x)
        return ops.pixel_shuffle(x, self.patch) if self.patch > 1 else x


class Downsample(nn.Cell):
    """3×3 convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = conv3x3(channels, channels, stride=2)

    def construct(self, x: Tensor) -> Tensor:
        return self.op(x)


class UNetEncoder(Computing):
    """What a UNet and a ControlNet have in common: the embeddings, the way down and the middle."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        embedding = 4 * spec.model_channels
        self.timestep = SinusoidalEmbedding(spec.model_channels)
        self.time_embed = nn.CellList(
            [linear(spec.model_channels, embedding), nn.Identity(), linear(embedding, embedding)]
        )
        self.has_vector = spec.vector_dim > 0
        if self.has_vector:
            inner = nn.CellList([linear(spec.vector_dim, embedding), nn.Identity(), linear(embedding, embedding)])
            self.label_emb = nn.CellList([inner])
        layout = unet_layout(spec)
        self.skip_channels = layout.skips
        self.input_blocks = nn.CellList([self.cells_of_block(block, embedding) for block in layout.down])
        self.middle_block = self.cells_of_block(layout.middle, embedding)
        self.middle_block.append(ResBlock(layout.middle.outer, layout.middle.outer, embedding, spec.norm_groups))

    def cells_of_block(self, block: UNetBlock, embedding: int) -> nn.CellList:
        """What stands under the name of a block."""
        if block.kind == "embed":
            return nn.CellList([PatchEmbed(self.spec.patch, block.inner, block.outer)])
        if block.kind == "down":
            return nn.CellList([Downsample(block.outer)])
        layers: list[nn.Cell] = [ResBlock(block.inner, block.outer, embedding, self.spec.norm_groups)]
        if block.depth:
            layers.append(SpatialTransformer(block.outer, block.depth, self.spec))
        if block.upsamples:
            layers.append(Upsample(block.outer))
        return nn.CellList(layers)

    @staticmethod
    def through(layers: nn.CellList, x: Tensor, embedding: Tensor, context: Optional[Tensor]) -> Tensor:
        """What stands under one number of input_blocks or output_blocks, called in order."""
        for layer in layers:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x

    def embed(self, t: Tensor, vector: Optional[Tensor]) -> Tensor:
        """t (N,), vector (N, V) -> (N, E), after SiLU: what every ResBlock is told."""
        embedding = self.time_embed[2](ops.silu(self.time_embed[0](self.cast(self.timestep(t)))))
        if self.has_vector:
            embedding = embedding + self.label_emb[0][2](ops.silu(self.label_emb[0][0](self.cast(vector))))
        return ops.silu(embedding)

    def enter(
        self, x: Tensor, t: Tensor, context: Optional[Tensor], vector: Optional[Tensor]
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """x, embedding and context as the blocks take them."""
        return self.cast(x), self.embed(t, vector), None if context is None else self.cast(context)


class UNet(UNetEncoder):
    """construct(x (N, C, h, w), t (N,), context (N, T, K) or None, vector (N, V) or None, control
    or None) -> (N, out_channels, h, w).

    t counts 0 … 999 and may be fractional. What the output means (ε, v, x0) is `mindpangu.diffusion`'s business.
    `control`: what a ControlNet gives: a tensor for each skip connection, then one for the middle; they are added.
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec)
        self.shallow = spec.num_res_blocks + 1  # stages at full resolution, down as well as up
        layout, embedding = unet_layout(spec), 4 * spec.model_channels
        self.output_blocks = nn.CellList([self.cells_of_block(block, embedding) for block in layout.up])
        self.out = nn.CellList(
            [
                GroupNormSiLU(spec.widths[0], spec.norm_groups, RES_EPS),
                nn.Identity(),
                Unpatch(spec.patch, spec.widths[0], spec.out_channels),
            ]
        )

    @staticmethod
    def _join(x: Tensor, skip: Tensor, control: Optional[tuple[Tensor, ...]], number: int) -> Tensor:
        """x beside skip connection `number`, steered where there is a control."""
        return mops.concat((x, skip if control is None else skip + control[number].astype(skip.dtype)), 1)

    def down_shallow(self, x: Tensor, embedding: Tensor, context: Optional[Tensor]) -> list[Tensor]:
        """The full-resolution stages on the way down; their outputs."""
        skips = []
        for i in range(self.shallow):
            x = self.through(self.input_blocks[i], x, embedding, context)
            skips.append(x)
        return skips

    def deep(
        self,
        x: Tensor,
        embedding: Tensor,
        context: Optional[Tensor],
        control: Optional[tuple[Tensor, ...]] = None,
    ) -> Tensor:
        """All that lies below the full resolution: from `down_shallow`'s last output to what `up_shallow` takes."""
        skips = []
        for i in range(self.shallow, len(self.input_blocks)):
            x = self.through(self.input_blocks[i], x, embedding, context)
            skips.append(x)
        x = self.through(self.middle_block, x, embedding, context)
        if control is not None:
            x = x + control[len(self.input_blocks)].astype(x.dtype)
        for i in range(len(self.output_blocks) - self.shallow):
            x = self._join(x, skips[-1 - i], control, len(self.input_blocks) - 1 - i)
            x = self.through(self.output_blocks[i], x, embedding, context)
        return x

    def up_shallow(
        self,
        x: Tensor,
        skips: list[Tensor],
        embedding: Tensor,
        context: Optional[Tensor],
        control: Optional[tuple[Tensor, ...]] = None,
    ) -> Tensor:
        """The full-resolution stages on the way up, and the output, float32."""
        for i in range(self.shallow):
            x = self._join(x, skips[-1 - i], control, self.shallow - 1 - i)
            x = self.through(self.output_blocks[i - self.shallow], x, embedding, context)
        return self.out[2](self.out[0](x)).astype("float32")

    def construct(
        self,
        x: Tensor,
        t: Tensor,
        context: Optional[Tensor] = None,
        vector: Optional[Tensor] = None,
        control: Optional[tuple[Tensor, ...]] = None,
    ) -> Tensor:
        x, embedding, context = self.enter(x, t, context, vector)
        skips = self.down_shallow(x, embedding, context)
        deep = self.deep(skips[-1], embedding, context, control)
        return self.up_shallow(deep, skips, embedding, context, control)


class UNetWithDeep(nn.Cell):
    """A UNet's output together with its deep features, for `UNetReusingDeep` at the next steps (arXiv 2312.00858)."""

    def __init__(self, unet: UNet) -> None:
        super().__init__(auto_prefix=False)
        self.unet = unet

    def construct(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x, embedding, context = self.unet.enter(x, t, context, vector)
        skips = self.unet.down_shallow(x, embedding, context)
        deep = self.unet.deep(skips[-1], embedding, context)
        return self.unet.up_shallow(deep, skips, embedding, context), deep


class UNetReusingDeep(nn.Cell):
    """A UNet's full-resolution stages around the deep features (N, C, h, w) of an earlier step."""

    def __init__(self, unet: UNet) -> None:
        super().__init__(auto_prefix=False)
        self.unet = unet

    def construct(self, deep: Tensor, x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        x, embedding, context = self.unet.enter(x, t, context, vector)
        return self.unet.up_shallow(deep, self.unet.down_shallow(x, embedding, context), embedding, context)
