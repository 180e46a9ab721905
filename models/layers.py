"""The layers that several nets share.

Weights of layers may lie in 16 bits (see `loading.empty`): each is cast to its input's dtype as it is used. A whole net
takes and gives float32, and between computes in `runtime.compute_dtype` (see `Computing`).
"""

from __future__ import annotations

import math
from typing import Union

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype
from mindspore import ops as mops
from mindspore.common.initializer import Initializer, initializer

from mindpangu import ops, runtime

DOWN, UP = "lora_down", "lora_up"  # what the names of an adapted layer's two matrices end with
MAX_PERIOD = 10000.0  # of the sinusoidal embeddings


DTYPES = {"fp32": mstype.float32, "bf16": mstype.bfloat16, "fp16": mstype.float16}


class Computing(nn.Cell):
    """A whole net: activations and products are in `runtime.compute_dtype` as it was when the net was made.

    `wide`: activations are too large for fp16, so that it computes in float32 there.
    """

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        dtype = runtime.compute_dtype()
        self.compute_dtype = DTYPES["fp32" if wide and dtype == "fp16" else dtype]

    def cast(self, x: Tensor) -> Tensor:
        """x as the net computes."""
        return x.astype(self.compute_dtype)


def cast_to(weight: Tensor, x: Tensor) -> Tensor:
    """`weight` in x's dtype, not before x is there: a graph would else cast every layer's weights at its start."""
    return weight if weight.dtype == x.dtype else mops.depend(weight, x).astype(x.dtype)


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


class Conv2d(nn.Cell):
    """Convolution with bias. Zeros are put `before` (top, left) and `after` (bottom, right)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, before: int, after: int, init: str
    ) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after
        self.weight = Parameter(initializer(init, (out_channels, in_channels, kernel, kernel)), name="weight")
        self.bias = Parameter(initializer("zeros", (out_channels,)), name="bias")

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution itself, for those that do something before or after it."""
        return ops.conv2d(x, cast_to(self.weight, x), self.bias, self.stride, self.before, self.after)

    def construct(self, x: Tensor) -> Tensor:
        return self.convolve(x)


class Dense(nn.Cell):
    """x · weightᵀ + bias over the last axis; biases start at zero."""

    lora_down: Parameter  # of an adapted layer
    lora_up: Parameter

    def __init__(self, in_channels: int, out_channels: int, bias: bool, init: Union[str, Initializer]) -> None:
        super().__init__()
        self.weight = Parameter(initializer(init, (out_channels, in_channels)), name="weight")
        self.bias = Parameter(initializer("zeros", (out_channels,)), name="bias") if bias else None
        self.adapted, self.scale = False, 1.0

    def adapt(self, rank: int, scale: float) -> None:
        """Add scale · up · down (O, rank) · (rank, C) to the weight; up begins at zero (LoRA, arXiv 2106.09685)."""
        stem = self.weight.name.removesuffix("weight")
        (out, inner), self.adapted, self.scale = self.weight.shape, True, scale
        self.lora_down = Parameter(initializer("he_uniform", (rank, inner)), name=f"{stem}{DOWN}")
        self.lora_up = Parameter(initializer("zeros", (out, rank)), name=f"{stem}{UP}")

    def construct(self, x: Tensor) -> Tensor:
        y = ops.dense(x, cast_to(self.weight, x), self.bias)
        if self.adapted:
            y = y + self.scale * ops.dense(ops.dense(x, cast_to(self.lora_down, x)), cast_to(self.lora_up, x))
        return y


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, init: str = "he_uniform") -> Conv2d:
    """A 3×3 convolution that keeps the size (or halves it at stride 2)."""
    return Conv2d(in_channels, out_channels, 3, stride, 1, 1, init)


def conv1x1(in_channels: int, out_channels: int, init: str = "xavier_uniform") -> Conv2d:
    """A 1×1 convolution."""
    return Conv2d(in_channels, out_channels, 1, 1, 0, 0, init)


def linear(in_channels: int, out_channels: int, bias: bool = True, init: str = "xavier_uniform") -> Dense:
    """A dense layer."""
    return Dense(in_channels, out_channels, bias, init)


class Upsample(nn.Cell):
    """Double the size by repeating pixels, then 3×3 convolution: (N, C, H, W) -> (N, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(ops.repeat_pixels(x))
