"""Ascend on paper: the least time that a chip's peaks allow, layer by layer. Computed, never run on an NPU.

A layer takes the longest of: its matrix FLOPs at the cube units' peak, its other FLOPs at the vector units' peak, its
traffic at the memory's peak. Layers do not overlap; everything is fp16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mindpangu.ascend_kernels.tiling import ASCEND_910B
from mindpangu.cost.flops import BACKWARD, Layer, unet_layers
from mindpangu.spec import UNetSpec

BYTES = 2  # fp16
OPTIMIZER_BYTES = (
    4 * 7 + 2 * 2
)  # a parameter: fp32 weight and two moments read and written, gradient; fp16 copy, gradient

# The UNets of the release and of SDXL differ in the width of the vector alone.
PANGU = UNetSpec(4, 4, 320, (1, 2, 4), 2, (0, 2, 10), 64, 2048, 1536)
SDXL = UNetSpec(4, 4, 320, (1, 2, 4), 2, (0, 2, 10), 64, 2048, 2816)
SIDE, TOKENS = 128, 77  # latents of 1024 × 1024 pixels

# SDXL in MindSpore on one 910*, 1024 × 1024: published by the MindSpore team, seconds.
PUBLISHED_IMAGE, PUBLISHED_STEPS = 6.78, 40
PUBLISHED_TRAIN_STEP, PUBLISHED_TRAIN_BATCH = 1.07, 4


@dataclass(frozen=True)
class Chip:
    """Peaks: matrix and vector FLOP/s in fp16, bytes/s of main memory."""

    name: str
    cube: float
    vector: float
    memory: float

    def seconds(self, layer: Layer) -> tuple[float, str]:
        """The least time of a layer, and what bounds it."""
        return max(
            (layer.flops / self.cube, "cube"),
            (layer.vector_flops / self.vector, "vector"),
            (layer.numbers * BYTES / self.memory, "memory"),
        )


# Cores × (16·16·16 multiply-adds, or 128 bytes' worth) × 2 × clock, from CANN's platform files; memory of the 910B as
# published, of the 910A 32 bytes a clock and core.
CHIPS = {
    "910b": Chip(
        ASCEND_910B.name, ASCEND_910B.cube_flops, ASCEND_910B.vector * 128 * 2 * ASCEND_910B.clock, ASCEND_910B.memory
    ),
    "910a": Chip("Ascend 910A", 32 * 16**3 * 2 * 1.0e9, 32 * 128 * 2 * 1.0e9, 32 * 32 * 1.0e9),
}


@dataclass(frozen=True)
class Group:
    """Layers of one kind and shape."""

    example: Layer
    count: int
    bound: str
    seconds: float
    share_of_peak: float


def groups(layers: Iterable[Layer], chip: Chip) -> list[Group]:
    """Equal layers together, the longest first."""
    found: dict[tuple, list[Layer]] = {}
    for layer in layers:
        found.setdefault((layer.kind, layer.shape), []).append(layer)
    out = []
    for same in found.values():
        first, count = same[0], len(same)
        seconds, bound = chip.seconds(first)
        share = first.flops / (seconds * chip.cube)
        out.append(Group(first, count, bound, count * seconds, share))
    return sorted(out, key=lambda group: -group.seconds)


def forward_seconds(spec: UNetSpec, rows: int, chip: Chip) -> float:
    """The least time of a forward pass on `rows` latents of 1024 × 1024 pixels."""
    return sum(chip.seconds(layer)[0] for layer in unet_layers(spec, rows, SIDE, SIDE, TOKENS))


def train_step_seconds(spec: UNetSpec, batch: int, chip: Chip) -> float:
    """The least time of a training step on one card: forward, backward, AdamW; no recomputation, no communication."""
    parameters = sum(layer.parameters for layer in unet_layers(spec, 1, SIDE, SIDE, TOKENS))
    return (1 + BACKWARD) * forward_seconds(spec, batch, chip) + parameters * OPTIMIZER_BYTES / chip.memory
