"""Weights as {name: array}: names below a Cell, names alone, half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

Weight = TypeVar("Weight")  # an array, or one that waits in a file


def unprefixed(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The weights below `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def prefixed(weights: Mapping[str, Weight], prefix: str) -> dict[str, Weight]:
    """The weights with `prefix` before each name."""
    return {prefix + name: value for name, value in weights.items()}


def half(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights in fp16, as the zoo stores them."""
    return {name: value.astype(np.float16) for name, value in weights.items()}
