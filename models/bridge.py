"""The learned latent bridge: clean latents of one model -> of another, another size included; no picture between."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu.models.layers import conv3x3
from mindpangu.models.vae import ResnetBlock
from mindpangu.spec import BridgeSpec

LANCZOS = 3  # lobes


def resampling(before: int, after: int) -> np.ndarray:
    """(after, before) float32: Lanczos resampling of a line of pixels, antialiased where it shrinks."""
    scale = max(1.0, before / after)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    x = (np.arange(before)[None] - centres[:, None]) / scale
    weights = np.where(np.abs(x) < LANCZOS, np.sinc(x) * np.sinc(x / LANCZOS), 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Resize(nn.Cell):
    """(N, C, h, w) resampled from one (width, height) to another."""

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        self.changes = tuple(before) != tuple(after)
        self.columns = Tensor(np.ascontiguousarray(resampling(before[0], after[0]).T))
        self.rows = Tensor(resampling(before[1], after[1]))

    def construct(self, x: Tensor) -> Tensor:
        return mops.matmul(self.rows, mops.matmul(x, self.columns)) if self.changes else x


class LatentBridge(nn.Cell):
    """construct(x0 (N, in_channels, h, w)) -> (N, out_channels, h', w'): what the picture's latent is over there."""

    def __init__(self, spec: BridgeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv_in = conv3x3(spec.in_channels, spec.channels)
        self.resize = Resize(spec.in_size, spec.out_size)
        self.blocks = nn.CellList(
            [ResnetBlock(spec.channels, spec.channels, spec.norm_groups) for _ in range(spec.blocks)]
        )
        self.conv_out = conv3x3(spec.channels, spec.out_channels, init="xavier_uniform")

    def construct(self, x0: Tensor) -> Tensor:
        h = self.resize(self.conv_in(x0))
        for block in self.blocks:
            h = block(h)
        return self.conv_out(h)
