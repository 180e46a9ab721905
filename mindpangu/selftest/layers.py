"""The layers of PanGu-Draw 3.0's UNet at 1024 × 1024, one by one: time beside the roofline's, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
from mindspore import Tensor, nn

from mindpangu import ops, runtime
from mindpangu.bench.roofline import CHIPS, PANGU, SIDE, TOKENS, Group, groups
from mindpangu.cost.flops import Layer, unet_layers
from mindpangu.models.layers import DTYPES
from mindpangu.selftest.check import Check, Outcome

RUNS, WARM = 20, 3


class OfKind(nn.Cell):
    """A layer of `cost.flops`, run by our operators; attention and dense layers take (rows, channels)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.kind, self.shape = layer.kind, layer.shape

    def construct(self, *inputs: Tensor) -> Tensor:
        if self.kind == "conv":
            edge = self.shape[3] // 2
            x, weight, bias = inputs
            return ops.conv2d(x, weight, bias, self.shape[6], edge, edge)
        if self.kind == "dense":
            return ops.dense(*inputs)
        if self.kind == "norm":
            x, gamma, beta = inputs
            return ops.layer_norm(x, gamma, beta, 1e-5)
        heads, channels = self.shape[1:3]
        q, k, v = inputs
        return ops.attention(q, k, v, heads=heads, scale=(channels // heads) ** -0.5)


def inputs_of(layer: Layer) -> list[Tensor]:
    """Gaussian numbers, in what nets compute in; vectors in float32."""
    rng = np.random.default_rng(0)
    if layer.kind == "conv":
        batch, inner, outer, kernel, height, width, _ = layer.shape
        shapes: list[tuple[int, ...]] = [(batch, inner, height, width), (outer, inner, kernel, kernel), (outer,)]
    elif layer.kind == "dense":
        rows, inner, outer, bias = layer.shape
        shapes = [(rows, inner), (outer, inner), *([(outer,)] if bias else [])]
    elif layer.kind == "norm":
        shapes = [layer.shape, layer.shape[1:], layer.shape[1:]]
    else:
        batch, _, channels, queries, keys = layer.shape
        shapes = [(batch, length, channels) for length in (queries, keys, keys)]
    made = [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    return [x.astype(DTYPES[runtime.compute_dtype()]) if x.ndim > 1 else x for x in made]


def measured(group: Group, chip: str) -> Outcome:
    """The median of some runs, each waited for; what is queued together takes less."""
    import mindspore

    net, given = OfKind(group.example), inputs_of(group.example)
    times = []
    for _ in range(WARM + RUNS):
        started = time.perf_counter()
        net(*given)
        mindspore.runtime.synchronize()
        times.append(time.perf_counter() - started)
    median, least = float(np.median(times[WARM:])), CHIPS[chip].seconds(group.example)[0]
    peak = mindspore.runtime.max_memory_allocated() / 2**20
    return Outcome(
        1e3 * median,
        "ms",
        note=f"{group.count} of them; roofline {1e3 * least:.3f} ms ({least / median:.0%}), bound by {group.bound}; "
        f"peak memory {peak:.0f} MiB",
    )


def checks() -> Iterator[Check]:
    """A check of each shape, those first that would take longest; for information."""
    chip = "910a" if runtime.ascend_chip() == "ascend910" else "910b"
    for group in groups(unet_layers(PANGU, 1, SIDE, SIDE, TOKENS), CHIPS[chip]):
        yield Check("5B layer", f"{group.example.kind} {group.example.name}", partial(measured, group, chip), False)
