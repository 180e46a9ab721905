"""Other text encoders for a trained UNet: what they say is mapped to what the net knows, and the maps join its weights.

A UNet meets words in two places: in the keys and values W·c of its cross-attention, c the features of a token, and in
`label_emb`, which takes the pooled features p as V·p + b. With c = A·c' + a and p = M·p' + m of the new encoders'
features c' and p', W·A, V·M and b + V·m take the place of W, V and b; of W·a, what keys have in common changes no
attention, and that of the values goes through the output projection into its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.checkpoint.store import load_tensors, save_checkpoint

KEYS, VALUES, OUT = "attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out.0."
VECTOR_WEIGHT, VECTOR_BIAS = "label_emb.0.0.weight", "label_emb.0.0.bias"


@dataclass(frozen=True)
class TextMap:
    """Linear maps from new features to known ones: tokens' (C', C) and (C,), pooled ones' (P', P) and (P,); float32."""

    tokens: np.ndarray
    tokens_bias: np.ndarray
    pooled: np.ndarray
    pooled_bias: np.ndarray

    @classmethod
    def load(cls, path: Path) -> TextMap:
        """Of a file that `save` wrote. Raises: UserError."""
        return cls(**load_tensors(path))

    def save(self, path: Path, card: Mapping[str, Any]) -> None:
        """Write the maps, and beside them `card`."""
        save_checkpoint(path, vars(self), card)

    def folded(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A UNet's weights for the new features."""
        changed = dict(weights)
        for name, value in weights.items():
            if name.endswith((KEYS, VALUES)):
                changed[name] = (value @ self.tokens.T).astype(value.dtype)
            if name.endswith(VALUES):
                out = name[: -len(VALUES)] + OUT
                in_common = weights[out + "weight"] @ (value @ self.tokens_bias)
                changed[out + "bias"] = (weights[out + "bias"] + in_common).astype(value.dtype)
        vector, known = weights[VECTOR_WEIGHT], len(self.pooled_bias)
        words, numbers = vector[:, :known], vector[:, known:]
        changed[VECTOR_WEIGHT] = np.concatenate([words @ self.pooled.T, numbers], 1).astype(vector.dtype)
        changed[VECTOR_BIAS] = (weights[VECTOR_BIAS] + words @ self.pooled_bias).astype(vector.dtype)
        return changed
