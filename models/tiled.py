"""The autoencoder in tiles: the same pictures and latents, but of the features only a tile's are on the device.

Decoder and encoder are walked layer by layer. A layer's whole map lies in the host's memory; the device sees a tile
of it with a border of one. Group normalisation takes its mean and variance from the whole map, so no seam is hidden.
All is in float32, whatever the autoencoder computes in otherwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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


class Ending(nn.Cell):
    """Not tiled either: the encoder's features (N, C, h, w) before its middle -> latents, shifted and scaled."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, features: Tensor) -> Tensor:
        vae = self.vae
        out = vae.encoder.conv_out(vae.encoder.norm_out(vae.encoder.mid(features)))
        return (vae.quant_conv(out).chunk(2, axis=1)[0] - vae.shift) * vae.scale


class _Tiled(ABC):
    """What tiled decoders and encoders have in common."""

    def __init__(self, vae: AutoencoderKL, side: int) -> None:
        """`side`: of a tile, in pixels, where features are narrowest; where they are wider a tile is smaller."""
        self.vae = vae
        self._area = side**2 * vae.spec.channels * min(vae.spec.channel_mult)

    def __call__(self, x: Tensor) -> Tensor:
        """One picture after the other."""
        return mops.concat([self._one(x[i : i + 1]) for i in range(x.shape[0])])

    @abstractmethod
    def _one(self, x: Tensor) -> Tensor:
        """A batch of one picture."""

    def _block(self, block: ResnetBlock, x: np.ndarray) -> np.ndarray:
        h = self._convolve(block.conv1, x, block.norm1)
        h = self._convolve(block.conv2, h, block.norm2)
        h += self._convolve(block.nin_shortcut, x) if block.changes_width else x
        return h

    def _convolve(
        self, conv: Conv2d, x: np.ndarray, norm: Optional[GroupNormSiLU] = None, times: int = 1
    ) -> np.ndarray:
        """`conv` of (1, C, H, W), normalised and activated if `norm`, every pixel repeated `times` along both axes."""
        outer, inner, kernel = conv.weight.shape[:3]
        added = conv.before + conv.after - kernel
        height, width = ((times * side + added) // conv.stride + 1 for side in x.shape[2:])
        side = max(1, math.isqrt(self._area // max(outer, inner)))
        out = np.empty((1, outer, height, width), np.float32)
        weight, bias = Tensor(conv.weight.asnumpy().astype(np.float32)), Tensor(conv.bias.asnumpy())
        if norm is not None:
            scale, shift = map(Tensor, scale_and_shift(norm, x))
        for rows in _tiles(height, side):
            for columns in _tiles(width, side):
                part, inside = map(Tensor, _cut(x, [_seen(conv, tile, kernel) for tile in (rows, columns)], times))
                if norm is not None:
                    part = ops.silu(scale * part + shift)
                out[:, :, rows, columns] = ops.conv2d(part * inside, weight, bias, conv.stride, 0, 0).asnumpy()
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


class TiledDecoder(_Tiled):
    """Called as `AutoencoderKL.decode` is, and equal to it but for rounding."""

    def __init__(self, vae: AutoencoderKL, side: int) -> None:
        super().__init__(vae, side)
        self._beginning = Beginning(vae)

    def _one(self, x: Tensor) -> Tensor:
        decoder = self.vae.decoder
        features = self._beginning(x).asnumpy()
        for level in reversed(list(decoder.up)):
            for block in level.block:
                features = self._block(block, features)
            if level.resamples:
                features = self._convolve(level.upsample.conv, features, times=2)
        out = Tensor(self._convolve(decoder.conv_out, features, decoder.norm_out))
        return mops.pixel_shuffle(out, decoder.patch) if decoder.patch > 1 else out


class TiledEncoder(_Tiled):
    """Called as `AutoencoderKL.encode` is, and equal to it but for rounding."""

    def __init__(self, vae: AutoencoderKL, side: int) -> None:
        super().__init__(vae, side)
        self._ending = Ending(vae)

    def _one(self, x: Tensor) -> Tensor:
        encoder = self.vae.encoder
        picture = mops.pixel_unshuffle(x, encoder.patch) if encoder.patch > 1 else x
        features = self._convolve(encoder.conv_in, picture.asnumpy())
        for level in encoder.down:
            for block in level.block:
                features = self._block(block, features)
            if level.resamples:
                features = self._convolve(level.downsample.conv, features)
        return self._ending(Tensor(features))


def _seen(conv: Conv2d, tile: slice, kernel: int) -> range:
    """The positions along an axis that a tile of the convolution's output is made of; some may be outside."""
    return range(tile.start * conv.stride - conv.before, (tile.stop - 1) * conv.stride + kernel - conv.before)


def _cut(x: np.ndarray, seen: Sequence[range], times: int) -> tuple[np.ndarray, np.ndarray]:
    """What is seen of x, whose pixels stand `times` along both axes; and 1 where that is inside the picture."""
    picked, inside = [], []
    for positions, length in zip(seen, x.shape[2:]):
        at = np.array(positions) // times
        inside.append((at >= 0) & (at < length))
        picked.append(at.clip(0, length - 1))
    part = x[:, :, picked[0][:, None], picked[1]]
    return part, np.outer(*inside).astype(np.float32)[None, None]
