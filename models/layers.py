"""The layers that several nets share."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as mops
from mindspore.common.initializer import initializer

from mindpangu import ops

MAX_PERIOD = 10000.0  # of the sinusoidal embeddings


class GroupNorm(nn.Cell):
    """Group normalisation over (N, C, H, W)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.gamma = Parameter(initializer("ones", (channels,)), name="gamma")
        self.beta = Parameter(initializer("zeros", (channels,)), name="beta")

    def construct(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.gamma, self.beta, self.groups, self.eps)


class GroupNormSiLU(GroupNorm):
    """Group normalisation followed by SiLU."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.group_norm_silu(x, self.gamma, self.beta, self.groups, self.eps)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = Parameter(initializer("ones", (width,)), name="gamma")
        self.beta = Parameter(initializer("zeros", (width,)), name="beta")

    def construct(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.gamma, self.beta, self.eps)


class SinusoidalEmbedding(nn.Cell):
    """(N,) numbers -> (N, width): cosines, then sines, of geometrically spaced frequencies (arXiv 2006.11239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = np.exp(-math.log(MAX_PERIOD) * np.arange(half, dtype=np.float64) / half)
        self.frequencies = Tensor(frequencies.astype(np.float32)[None])

    def construct(self, values: Tensor) -> Tensor:
        angles = values.astype("float32").expand_dims(1) * self.frequencies
        return mops.concat((mops.cos(angles), mops.sin(angles)), 1)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, init: str = "he_uniform") -> nn.Conv2d:
    """A 3×3 convolution with bias that keeps the size (or halves it at stride 2)."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        3,
        stride=stride,
        pad_mode="pad",
        padding=1,
        has_bias=True,
        weight_init=init,
        bias_init="zeros",
    )


def conv1x1(in_channels: int, out_channels: int, init: str = "xavier_uniform") -> nn.Conv2d:
    """A 1×1 convolution with bias."""
    return nn.Conv2d(in_channels, out_channels, 1, has_bias=True, weight_init=init, bias_init="zeros")


def linear(in_channels: int, out_channels: int, bias: bool = True, init: str = "xavier_uniform") -> nn.Dense:
    """A dense layer; biases start at zero."""
    return nn.Dense(in_channels, out_channels, has_bias=bias, weight_init=init, bias_init="zeros")


class Upsample(nn.Cell):
    """Double the size by repeating pixels, then 3×3 convolution: (N, C, H, W) -> (N, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        size = (x.shape[2] * 2, x.shape[3] * 2)
        return self.conv(mops.interpolate(x, size=size, mode="nearest"))
