"""The autoencoder's decoder in tiles: the same picture, with only a tile's features beside the weights on the device.

The decoder is walked layer by layer. A layer's whole map lies in the host's memory; the device sees a tile of it with a
border of one. Group normalisation takes its mean and variance from the whole map, so there is no seam to hide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Optional

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu import ops
from mindpangu.models.layers import Conv2d, GroupNormSiLU
from mindpangu.models.vae import AutoencoderKL, ResnetBlock


class Beginning(nn.Cell):
    """What is not tiled: latents (N, z_channels, h, w), shifted and scaled, -> the middle's features (N, C, h, w)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, latents: Tensor) -> Tensor:
        vae = self.vae
        return vae.decoder.mid(vae.decoder.conv_in(vae.post_quant_conv(latents / vae.scale + vae.shift)))


class TiledDecoder:
    """Called as `AutoencoderKL.decode` is, and equal to it but for rounding."""

    def __init__(self, vae: AutoencoderKL, side: int) -> None:
        """`side`: of a tile, in pixels, where features are narrowest; where they are wider a tile is smaller."""
        self.vae = vae
        self._area = side**2 * vae.spec.channels * min(vae.spec.channel_mult)
        self._beginning = Beginning(vae)

    def __call__(self, latents: Tensor) -> Tensor:
        """(N, z_channels, h, w) -> (N, 3, h·f, w·f), one picture after the other."""
        return mops.concat([self._picture(latents[i : i + 1]) for i in range(latents.shape[0])])

    def _picture(self, latents: Tensor) -> Tensor:
        decoder = self.vae.decoder
        features = self._beginning(latents).asnumpy()
        for level in reversed(list(decoder.up)):
            for block in level.block:
                features = self._block(block, features)
            if level.up:
                features = self._convolve(level.upsample.conv, features, times=2)
        out = Tensor(self._convolve(decoder.conv_out, features, decoder.norm_out))
        return mops.pixel_shuffle(out, decoder.patch) if decoder.patch > 1 else out

    def _block(self, block: ResnetBlock, x: np.ndarray) -> np.ndarray:
        h = self._convolve(block.conv1, x, block.norm1)
        h = self._convolve(block.conv2, h, block.norm2)
        h += self._convolve(block.nin_shortcut, x) if block.changes_width else x
        return h

    def _convolve(
        self, conv: Conv2d, x: np.ndarray, norm: Optional[GroupNormSiLU] = None, times: int = 1
    ) -> np.ndarray:
        """`conv` of (1, C, H, W), normalised and activated if `norm`, every pixel repeated `times` along both axes."""
        height, width = (times * side for side in x.shape[2:])
        outer, inner = conv.weight.shape[:2]
        side = max(1, math.isqrt(self._area // max(outer, inner)))
        out = np.empty((1, outer, height, width), np.float32)
        weight, bias = Tensor(conv.weight.asnumpy().astype(np.float32)), Tensor(conv.bias.asnumpy())
        if norm is not None:
            scale, shift = map(Tensor, scale_and_shift(norm, x))
        for rows in _tiles(height, side):
            for columns in _tiles(width, side):
                part, inside = map(Tensor, _cut(x, rows, columns, conv.before, times))
                if norm is not None:
                    part = ops.silu(scale * part + shift)
                out[:, :, rows, columns] = ops.conv2d(part * inside, weight, bias, 1, 0, 0).asnumpy()
        return out


def _tiles(length: int, side: int) -> Iterator[slice]:
    """Equal tiles that cover `length`; the last overlaps the one before."""
    side = min(side, length)
    for start in range(0, length, side):
        stop = min(start + side, length)
        yield slice(stop - side, stop)


def scale_and_shift(norm: GroupNormSiLU, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group normalisation of the whole of x (1, C, H, W) as scale·x + shift, (1, C, 1, 1) float32 each."""
    groups = x.reshape(norm.groups, -1)
    mean = np.array([group.mean(dtype=np.float64) for group in groups])
    variance = np.array([group.var(dtype=np.float64) for group in groups])
    each = x.shape[1] // norm.groups
    scale = norm.gamma.asnumpy() * np.repeat(1 / np.sqrt(variance + norm.eps), each)
    shift = norm.beta.asnumpy() - np.repeat(mean, each) * scale
    return scale.astype(np.float32).reshape(1, -1, 1, 1), shift.astype(np.float32).reshape(1, -1, 1, 1)


def _cut(x: np.ndarray, rows: slice, columns: slice, border: int, times: int) -> tuple[np.ndarray, np.ndarray]:
    """A tile of x, whose pixels stand `times` along both axes, and its border; and 1 where it is inside the picture."""
    picked, inside = [], []
    for tile, length in zip((rows, columns), x.shape[2:]):
        at = np.arange(tile.start - border, tile.stop + border) // times
        inside.append((at >= 0) & (at < length))
        picked.append(at.clip(0, length - 1))
    part = x[:, :, picked[0][:, None], picked[1]]
    return part, np.outer(*inside).astype(np.float32)[None, None]
