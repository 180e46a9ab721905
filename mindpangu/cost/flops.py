"""What a net costs, on paper: every layer with its parameters, FLOPs and bytes, from the spec alone.

Nothing is allocated, so the 2.57B release is counted as fast as the zoo's net.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from mindpangu.layout import UNetBlock, unet_layout, vae_layout
from mindpangu.spec import TextSpec, UNetSpec, VAESpec

BACKWARD = 2  # times the forward pass's FLOPs, for the gradients of inputs and of weights


@dataclass(frozen=True)
class Layer:
    """One operator of a forward pass.

    `shape`: the arguments, after the name, of the function of this module that made it, which its `kind` names.
    `flops`: multiplications and additions of matrix products, 2 per multiply-add. `vector_flops`: other arithmetic.
    `read`, `written`: elements of activations, each once.
    """

    name: str
    kind: Literal["conv", "dense", "attention", "norm"]
    shape: tuple[int, ...]
    parameters: int
    flops: int
    vector_flops: int
    read: int
    written: int

    @property
    def numbers(self) -> int:
        """Elements read and written, weights included: times an element's bytes, the least traffic with main memory."""
        return self.read + self.written + self.parameters


Size = tuple[int, int]


def dense(name: str, rows: int, inner: int, outer: int, bias: bool = True) -> Layer:
    """(rows, inner) -> (rows, outer)."""
    parameters = inner * outer + bias * outer
    return Layer(
        name,
        "dense",
        (rows, inner, outer, int(bias)),
        parameters,
        2 * rows * inner * outer,
        0,
        rows * inner,
        rows * outer,
    )


def conv(name: str, batch: int, inner: int, outer: int, kernel: int, size: Size, stride: int = 1) -> Layer:
    """(batch, inner, *size) -> (batch, outer, *size / stride)."""
    read, written = batch * prod(size), batch * prod(size) // stride**2
    parameters = inner * outer * kernel**2 + outer
    flops = 2 * written * inner * outer * kernel**2
    return Layer(
        name, "conv", (batch, inner, outer, kernel, *size, stride), parameters, flops, 0, read * inner, written * outer
    )


def norm(name: str, rows: int, channels: int) -> Layer:
    """A normalisation with scale and shift, about 8 operations a number."""
    return Layer(name, "norm", (rows, channels), 2 * channels, 0, 8 * rows * channels, rows * channels, rows * channels)


def attention(name: str, batch: int, heads: int, channels: int, queries: int, keys: int) -> Layer:
    """Scores, softmax (about 8 operations a score) and weighted sum, without a table of scores in memory."""
    flops = 4 * batch * queries * keys * channels
    read, written = batch * channels * (queries + 2 * keys), batch * channels * queries
    shape = (batch, heads, channels, queries, keys)
    return Layer(name, "attention", shape, 0, flops, 8 * batch * heads * queries * keys, read, written)


def unet_layers(spec: UNetSpec, batch: int, height: int, width: int, tokens: int) -> Iterator[Layer]:
    """The layers of `models.unet.UNet` on (batch, C, height, width) latents and `tokens` text tokens, in order.

    Element-wise operators are taken as fused into their neighbours.
    """
    layout, embedding, patch = unet_layout(spec), 4 * spec.model_channels, spec.patch
    sizes = [(height // patch >> level, width // patch >> level) for level in range(len(spec.channel_mult))]

    def layers_of(block: UNetBlock) -> Iterator[Layer]:
        size = sizes[block.level]
        if block.kind == "embed":
            yield conv(f"{block.name}.0", batch, block.inner * patch**2, block.outer, 3, size)
            return
        if block.kind == "down":
            yield conv(f"{block.name}.0.op", batch, block.inner, block.outer, 3, size, stride=2)
            return
        yield from _res_block(f"{block.name}.0", batch, block.inner, block.outer, embedding, size)
        if block.depth:
            yield from _transformer(f"{block.name}.1", spec, block.depth, batch, block.outer, size, tokens)
        if block.upsamples:
            yield conv(f"{block.upsampler}.conv", batch, block.outer, block.outer, 3, sizes[block.level - 1])

    # Embeddings.
    yield dense("time_embed.0", batch, spec.model_channels, embedding)
    yield dense("time_embed.2", batch, embedding, embedding)
    if spec.vector_dim:
        yield dense("label_emb.0.0", batch, spec.vector_dim, embedding)
        yield dense("label_emb.0.2", batch, embedding, embedding)
    for block in layout.down:
        yield from layers_of(block)
    middle = layout.middle
    yield from layers_of(middle)
    second = f"{middle.name}.{2 if middle.depth else 1}"
    yield from _res_block(second, batch, middle.outer, middle.outer, embedding, sizes[-1])
    for block in layout.up:
        yield from layers_of(block)
    yield norm("out.0", batch * prod(sizes[0]), spec.widths[0])
    yield conv("out.2", batch, spec.widths[0], spec.out_channels * patch**2, 3, sizes[0])


def unet_flops(spec: UNetSpec, height: int, width: int, tokens: int) -> int:
    """FLOPs of the matrix products of one pass over the latent of one picture."""
    return sum(layer.flops for layer in unet_layers(spec, 1, height, width, tokens))


def _res_block(name: str, batch: int, inner: int, outer: int, embedding: int, size: Size) -> Iterator[Layer]:
    pixels = batch * prod(size)
    yield norm(f"{name}.in_layers.0", pixels, inner)
    yield conv(f"{name}.in_layers.2", batch, inner, outer, 3, size)
    yield dense(f"{name}.emb_layers.1", batch, embedding, outer)
    yield norm(f"{name}.out_layers.0", pixels, outer)
    yield conv(f"{name}.out_layers.3", batch, outer, outer, 3, size)
    if inner != outer:
        yield conv(f"{name}.skip_connection", batch, inner, outer, 1, size)


def _transformer(
    name: str, spec: UNetSpec, depth: int, batch: int, channels: int, size: Size, tokens: int
) -> Iterator[Layer]:
    positions = prod(size)
    rows = batch * positions
    yield norm(f"{name}.norm", rows, channels)
    yield dense(f"{name}.proj_in", rows, channels, channels)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        seen = [(channels, positions), (spec.context_dim, tokens)] if spec.context_dim else [(channels, positions)]
        for number, (inner, keys) in enumerate(seen, start=1):
            one = f"{block}.attn{number}"
            yield norm(f"{block}.norm{number}", rows, channels)
            yield dense(f"{one}.to_q", rows, channels, channels, False)
            yield dense(f"{one}.to_k", batch * keys, inner, channels, False)
            yield dense(f"{one}.to_v", batch * keys, inner, channels, False)
            yield attention(one, batch, spec.heads_of(channels), channels, positions, keys)
            yield dense(f"{one}.to_out.0", rows, channels, channels)
        yield norm(f"{block}.norm3", rows, channels)
        yield dense(f"{block}.ff.net.0.proj", rows, channels, 8 * channels)
        yield dense(f"{block}.ff.net.2", rows, 4 * channels, channels)
    yield dense(f"{name}.proj_out", rows, channels, channels)


def decoder_layers(spec: VAESpec, batch: int, height: int, width: int) -> Iterator[Layer]:
    """The layers of `AutoencoderKL.decode` on (batch, z_channels, height, width) latents, in order."""
    layout = vae_layout(spec)
    size, channels = (height, width), layout.middle

    def block(name: str, inner: int, outer: int) -> Iterator[Layer]:
        yield norm(f"{name}.norm1", batch * prod(size), inner)
        yield conv(f"{name}.conv1", batch, inner, outer, 3, size)
        yield norm(f"{name}.norm2", batch * prod(size), outer)
        yield conv(f"{name}.conv2", batch, outer, outer, 3, size)
        if inner != outer:
            yield conv(f"{name}.nin_shortcut", batch, inner, outer, 1, size)

    yield conv("post_quant_conv", batch, spec.z_channels, spec.z_channels, 1, size)
    yield conv("decoder.conv_in", batch, spec.z_channels, channels, 3, size)
    yield from block("decoder.mid.block_1", channels, channels)
    yield norm("decoder.mid.attn_1.norm", batch * prod(size), channels)
    for projection in "qkv":
        yield conv(f"decoder.mid.attn_1.{projection}", batch, channels, channels, 1, size)
    yield attention("decoder.mid.attn_1", batch, 1, channels, prod(size), prod(size))
    yield conv("decoder.mid.attn_1.proj_out", batch, channels, channels, 1, size)
    yield from block("decoder.mid.block_2", channels, channels)
    for number, level in reversed(list(enumerate(layout.decoder))):
        for i, (inner, outer) in enumerate(level.blocks):
            yield from block(f"decoder.up.{number}.block.{i}", inner, outer)
        if level.resamples:
            size = (2 * size[0], 2 * size[1])
            yield conv(f"decoder.up.{number}.upsample.conv", batch, level.outer, level.outer, 3, size)
    yield norm("decoder.norm_out", batch * prod(size), layout.decoder[0].outer)
    yield conv("decoder.conv_out", batch, layout.decoder[0].outer, 3 * spec.patch**2, 3, size)


def text_layers(spec: TextSpec, batch: int) -> Iterator[Layer]:
    """The layers of a text encoder on `batch` prompts, embedding tables left out; three projections as one layer."""
    rows, width = batch * spec.context_length, spec.width
    for i in range(spec.layers_used):
        yield norm(f"{i}.norm1", rows, width)
        yield dense(f"{i}.qkv", rows, width, 3 * width)
        yield attention(f"{i}.attention", batch, spec.heads, width, spec.context_length, spec.context_length)
        yield dense(f"{i}.out", rows, width, width)
        yield norm(f"{i}.norm2", rows, width)
        yield dense(f"{i}.mlp.1", rows, width, 4 * width)
        yield dense(f"{i}.mlp.2", rows, 4 * width, width)
    yield norm("norm", rows, width)
    if spec.projection_dim:
        yield dense("projection", batch, width, spec.projection_dim, False)
