"""What UNets and autoencoders are made of, from their specs: what Cells, costs, stages and name maps go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindpangu.spec import UNetSpec, VAESpec

DOWN, MIDDLE, UP = "input_blocks", "middle_block", "output_blocks"  # ldm's names


@dataclass(frozen=True)
class UNetBlock:
    """A numbered block: `kind` "embed" is the first convolution, "down" a downsampler alone, "res" a residual block.

    `inner`: channels that enter it, those of its skip connection included; `outer`: that leave it; `level`: of the
    resolution at which it works, 0 the highest; `place`: which of the level's residual blocks on its way it is;
    `depth`: transformer blocks behind the residual block; `upsamples`: whether an upsampler ends it.
    """

    name: str
    kind: Literal["embed", "res", "down"]
    level: int
    place: int
    inner: int
    outer: int
    depth: int = 0
    upsamples: bool = False

    @property
    def upsampler(self) -> str:
        """The name of the upsampler in it."""
        return f"{self.name}.{2 if self.depth else 1}"


@dataclass(frozen=True)
class UNetLayout:
    """Blocks on the way down, the middle one (residual block, transformers, residual block), blocks on the way up."""

    down: tuple[UNetBlock, ...]
    middle: UNetBlock
    up: tuple[UNetBlock, ...]

    @property
    def skips(self) -> tuple[int, ...]:
        """Channels of the skip connections: every block on the way down leaves one, and the way up takes the last."""
        return tuple(block.outer for block in self.down)


def unet_layout(spec: UNetSpec) -> UNetLayout:
    """The SDXL-shaped UNet (arXiv 2307.01952) of a spec."""
    widths, last = spec.widths, len(spec.channel_mult) - 1
    down = [UNetBlock(f"{DOWN}.0", "embed", 0, 0, spec.in_channels, widths[0])]
    for level, width in enumerate(widths):
        for i in range(spec.num_res_blocks):
            name, depth = f"{DOWN}.{len(down)}", spec.transformer_depth[level]
            down.append(UNetBlock(name, "res", level, i, down[-1].outer, width, depth))
        if level < last:
            down.append(UNetBlock(f"{DOWN}.{len(down)}", "down", level, 0, width, width))
    middle = UNetBlock(MIDDLE, "res", last, 0, widths[-1], widths[-1], spec.depth_in_middle)
    up: list[UNetBlock] = []
    skips, channels = [block.outer for block in down], widths[-1]
    for level in range(last, -1, -1):
        for i in range(spec.num_res_blocks + 1):
            inner, depth = channels + skips.pop(), spec.transformer_depth[level]
            ends = level > 0 and i == spec.num_res_blocks
            up.append(UNetBlock(f"{UP}.{len(up)}", "res", level, i, inner, widths[level], depth, ends))
            channels = widths[level]
    return UNetLayout(tuple(down), middle, tuple(up))


@dataclass(frozen=True)
class VAELevel:
    """One resolution of an autoencoder: `blocks`, the channels (in, out) of each, then a resampler or none."""

    blocks: tuple[tuple[int, int], ...]
    resamples: bool

    @property
    def outer(self) -> int:
        """Channels that leave it."""
        return self.blocks[-1][1]


@dataclass(frozen=True)
class VAELayout:
    """`encoder` and `decoder`: levels, 0 the largest resolution, where the encoder begins and the decoder ends (ldm's
    numbers); `middle`: channels of the smallest one."""

    encoder: tuple[VAELevel, ...]
    decoder: tuple[VAELevel, ...]
    middle: int


def vae_layout(spec: VAESpec) -> VAELayout:
    """The KL autoencoder (arXiv 2112.10752) of a spec."""
    widths = [spec.channels * mult for mult in spec.channel_mult]

    def level(inner: int, outer: int, blocks: int, resamples: bool) -> VAELevel:
        return VAELevel(((inner, outer), *[(outer, outer)] * (blocks - 1)), resamples)

    n, last = spec.num_res_blocks, len(widths) - 1
    encoder = [level(widths[max(i - 1, 0)], width, n, i < last) for i, width in enumerate(widths)]
    decoder = [level(widths[min(i + 1, last)], width, n + 1, i > 0) for i, width in enumerate(widths)]
    return VAELayout(tuple(encoder), tuple(decoder), widths[-1])
