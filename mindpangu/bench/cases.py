"""What is measured, and on which numbers: the same for every contender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

TOKENS = 40
PROMPTS = (
    "a fox, 3D style",
    "一只老虎, 3D风格",
    "a red apple on a yellow background",
    "火箭, 扁平风格, 蓝色背景",
    "a house, Noto style",
    "公共汽车, 绿色背景",
    "a dog on the left, a tree on the right",
    "一只狐狸在左边，一棵树在右边，蓝色背景",
)
STEPS, GUIDANCE = 30, 4.0


@dataclass(frozen=True)
class Case:
    """One row of the table. `side`: latents along a side; `optimizer`: a training step's, ours alone knows Muon."""

    kind: Literal["unet", "train", "encode", "decode", "draw"]
    batch: int
    side: int
    optimizer: Literal["adamw", "muon"] = "adamw"

    @property
    def name(self) -> str:
        """For people."""
        words = {"unet": "UNet forward", "train": "train step", "encode": "VAE encode", "decode": "VAE decode"}
        if self.kind == "draw":
            return f"draw {self.batch} pictures, {STEPS} steps"
        muon = ", Muon" if self.optimizer == "muon" else ""
        return f"{words[self.kind]}, batch {self.batch}, {self.side}×{self.side} latents{muon}"

    def inputs(self, in_channels: int, context_dim: int, vector_dim: int, factor: int) -> dict[str, np.ndarray]:
        """x and target (N, C, s, s), t (N,), context (N, TOKENS, K), vector (N, V), image (N, 3, f·s, f·s)."""
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal((self.batch, *shape), np.float32)

        latents = (in_channels, self.side, self.side)
        return {
            "x": normal(*latents),
            "target": normal(*latents),
            "t": rng.uniform(0, 999, self.batch).astype(np.float32),
            "context": normal(TOKENS, context_dim),
            "vector": normal(vector_dim),
            "image": np.tanh(normal(3, factor * self.side, factor * self.side)),
        }


CASES = {
    "draw": (
        *(Case("unet", batch, side) for batch in (1, 8, 32) for side in (16, 32)),
        Case("encode", 8, 16),
        Case("decode", 8, 16),
        Case("draw", len(PROMPTS), 16),
    ),
    "train": (Case("train", 8, 16), Case("train", 32, 16), Case("train", 8, 32)),
    "operators": (Case("unet", 16, 16), Case("train", 32, 16, "muon")),
}
