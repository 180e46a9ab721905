"""The nets whose outputs are known: every family's layout, narrow; weights and inputs are drawn, see `weights`.

golden.npz holds what diffusers' and transformers' nets make of them, and the losses of ten training steps of a small
UNet with PyTorch's AdamW; tests/parity/golden_nets.py wrote it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from mindpangu.selftest.weights import inputs
from mindpangu.spec import TextSpec, UNetSpec, VAESpec

GOLDEN = Path(__file__).with_name("golden.npz")
TOKENS = 7
SIDE = 16
SIZE_DIM = 8
WIDE, WIDE_CONTEXT, VAE_WIDTH = 1280, 2048, 512

# The layouts of the families, narrow: (spec, where the vector goes in, are the projections convolutions?).
UNETS = {
    "pangu_draw": (UNetSpec(4, 4, 32, (1, 2, 4), 2, (0, 2, 3), 8, 48, 24), "class_embedding", False),
    "sdxl": (UNetSpec(4, 4, 32, (1, 2, 4), 2, (0, 2, 3), 8, 48, 64), "add_embedding", False),
    "sdxl_refiner": (
        UNetSpec(4, 4, 32, (1, 2, 4, 4), 2, (0, 2, 2, 0), 8, 48, 64, middle_depth=2),
        "add_embedding",
        False,
    ),
    "sd15": (
        UNetSpec(4, 4, 32, (1, 2, 4, 4), 2, (1, 1, 1, 0), 0, 48, 0, heads=8, middle_depth=1),
        None,
        True,
    ),
    "sd21": (UNetSpec(4, 4, 32, (1, 2, 4, 4), 2, (1, 1, 1, 0), 8, 48, 0, middle_depth=1), None, False),
}
VAES = {"sd": VAESpec(4, 32, (1, 2, 4, 4), 2)}
# CLIP-L as in SD 1.x and SDXL, OpenCLIP's bigG as in SDXL, Chinese-CLIP's own; the end token has the largest id, where
# CLIP looks for it.
TEXTS = {
    "clip_l": TextSpec(99, 98, 32, 4, 4, "quick_gelu", "last", 11),
    "clip_l_skip_1": TextSpec(99, 98, 32, 4, 4, "quick_gelu", "last", 11, skip_last=1),
    "clip_l_hidden": TextSpec(99, 98, 32, 4, 4, "quick_gelu", "hidden", 11),
    "open_clip": TextSpec(99, 98, 32, 4, 4, "gelu", "penultimate", 11, 24),
    "chinese_clip": TextSpec(99, 98, 32, 4, 4, "gelu", "bert", 11, 24),
}


def unet_inputs(spec: UNetSpec) -> dict[str, np.ndarray]:
    """x, t, context, and for nets with a vector its two halves: pooled text, and six sizes (SDXL) or none."""
    sizes = np.array([[1024, 768, 0, 16, 1024, 1024], [512, 512, 8, 0, 512, 640]], np.float32)
    return {
        "x": inputs(2, spec.in_channels, SIDE, SIDE),
        "t": np.array([981.0, 17.0], np.float32),
        "context": inputs(2, TOKENS, spec.context_dim, seed=1),
        "pooled": inputs(2, 16, seed=2),
        "vector": inputs(2, spec.vector_dim, seed=2),
        "sizes": sizes,
    }


def text_ids(spec: TextSpec) -> np.ndarray:
    """Three prompts with their end token early, late and last; zeros behind it."""
    ids = np.random.default_rng(12).integers(1, spec.end_id, (3, spec.context_length)).astype(np.int32)
    for row, end in zip(ids, (2, 7, spec.context_length - 1)):
        row[end], row[end + 1 :] = spec.end_id, 0
    return ids


def wide_inputs() -> tuple[np.ndarray, np.ndarray]:
    """16 positions, 77 tokens."""
    return inputs(1, 16, WIDE, seed=5), inputs(1, 77, WIDE_CONTEXT, seed=6)


# Ten steps of AdamW: a UNet small enough to compile in seconds, another batch at each step.
TRAINED = UNetSpec(4, 4, 32, (1, 2), 1, (0, 1), 8, 48, 24)
STEPS, BATCH, RATE, DECAY, MAX_NORM = 10, 4, 1e-3, 0.01, 1.0
BETAS = (0.9, 0.99)


def training_batch(step: int) -> tuple[np.ndarray, ...]:
    """x, t, context, vector and target of a step, from 0."""
    seed = 100 + 10 * step
    latents = (BATCH, TRAINED.in_channels, SIDE, SIDE)
    t = np.random.default_rng(seed).uniform(0, 999, BATCH).astype(np.float32)
    context, vector = (
        inputs(BATCH, TOKENS, TRAINED.context_dim, seed=seed + 1),
        inputs(BATCH, TRAINED.vector_dim, seed=seed + 2),
    )
    return inputs(*latents, seed=seed), t, context, vector, inputs(*latents, seed=seed + 3)


@cache
def golden() -> dict[str, np.ndarray]:
    """{name: the peer's numbers}."""
    with np.load(GOLDEN) as file:
        return dict(file)
