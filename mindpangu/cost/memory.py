"""How much memory drawing takes on a CPU, on paper: from the specs, and constants that were measured.

MindSpore 2.9 takes a CPU's memory in blocks of 1 GiB, and walks through a block before it uses a part of it again: a
graph touches about half of all that its layers write, until the blocks are full that hold what is alive at once. The
CPU operators keep one more copy of a layer's tensors, in oneDNN's layout. docs/results/speed.md has the measurements.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from mindpangu.checkpoint.name_map import Shapes
from mindpangu.cost.flops import Layer, decoder_layers, text_layers, unet_layers
from mindpangu.images import parse_size
from mindpangu.spec import ModelSpec

MB = 10**6
STARTED = 475 * MB  # Python, MindSpore and this package, after the first graph
A_LAYER = 0.6 * MB  # of a compiled graph
TOUCHED = 0.55  # of what layers write, the first time
BLOCK = 2**30
FLOAT = 4  # bytes; activations are float32
ITEMSIZE = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes: `weights` in the Cells, `waiting`: those of UNets that take turns in one Cell, `working`: all else."""

    weights: int
    waiting: int
    working: int

    @property
    def peak(self) -> int:
        """Of the process."""
        return self.weights + self.waiting + self.working


def drawing(
    spec: ModelSpec,
    shapes: Mapping[str, Shapes],
    size: str,
    pictures: int,
    dtype: str = "fp32",
    offload: bool = False,
) -> Memory:
    """What drawing `pictures` together, with guidance, takes; the files' weights are taken to be fp16.

    `shapes`: of each part's parameters, by name.

    Raises:
        ValueError: `size` is no "WxH".
    """
    width, height = (side // spec.vae.factor for side in parse_size(size))
    rows = pictures * (2 + len(spec.pipeline.default_styles) if spec.texts else 1)
    users = Counter(spec.unets.values())
    first = {unet: name for name, unet in reversed(spec.unets.items())}
    resident = [*first.values(), "vae", *spec.texts]
    weights = sum(_bytes(shape, dtype) for part in resident for shape in shapes[part].values())
    shared = [
        sum(_bytes(s, "fp16") for s in shapes[name].values()) for name, unet in spec.unets.items() if users[unet] > 1
    ]
    waiting = 0 if offload else sum(shared)
    graphs: list[Iterable[Layer]] = [unet_layers(unet, rows, height, width, spec.tokens) for unet in users]
    graphs += [decoder_layers(spec.vae, pictures, height, width)]
    graphs += [text_layers(text, rows) for text in spec.texts.values()]
    layers = [layer for graph in graphs for layer in graph]
    working = STARTED + A_LAYER * len(layers) + _pooled(layers) + _reordered(layers)
    return Memory(weights, waiting, round(working))


def _pooled(layers: Sequence[Layer]) -> float:
    """Bytes that MindSpore's pool touches. What is alive: a layer's tensors, its block's input, and the skips."""
    widest = max(layer.read + layer.written + max(layer.read, layer.written) for layer in layers)
    skips = sum(layer.written for layer in layers if layer.name.startswith("input_blocks.") and layer.kind == "conv")
    alive = FLOAT * (widest + skips / 2)
    return min(TOUCHED * FLOAT * sum(layer.written for layer in layers), math.ceil(alive / BLOCK) * BLOCK)


def _reordered(layers: Sequence[Layer]) -> float:
    """Bytes of the CPU operators' buffers, the largest of each kind."""
    products = [layer for layer in layers if layer.kind in ("conv", "dense")]
    return FLOAT * sum(max(getattr(layer, kind) for layer in products) for kind in ("read", "written", "parameters"))


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return prod(shape) * (ITEMSIZE[dtype] if len(shape) > 1 else FLOAT)
