"""Denoising beyond the size that a net was trained at: window by window (MultiDiffusion, arXiv 2302.08113)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindpangu.diffusion.denoiser import Denoiser


def starts(length: int, window: int) -> list[int]:
    """Where windows begin along an axis: evenly, overlapping by at least half, the first at one end, the last at the
    other.

    Raises:
        ValueError: the window is longer than the axis.
    """
    if window > length:
        raise ValueError(f"a window of {window} does not fit into {length}")
    count = 1 + -(-(length - window) // max(1, window // 2))
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def tent(window: int) -> np.ndarray:
    """Weights along a window, highest in its middle, above 0 at its ends; float32."""
    return np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1)).astype(np.float32)


class Windowed:
    """A denoiser of latents of any size at least `window` (height, width) from one of windows.

    What the windows say of a place is averaged, those counting most in whose middle it lies: the clean latent that fits
    all of them best.
    """

    def __init__(self, denoiser: Denoiser, window: tuple[int, int]) -> None:
        self.denoiser, self.window = denoiser, window
        self._weight = np.outer(*map(tent, window))[None, None]

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        """Raises: ValueError where x is smaller than a window."""
        of, (height, width) = type(x) if not isinstance(x, np.ndarray) else np.asarray, x.shape[2:]
        (tall, wide), total, weights = self.window, 0.0, np.zeros((1, 1, height, width), np.float32)
        for top in starts(height, tall):
            for left in starts(width, wide):
                inside = np.zeros_like(weights)
                inside[:, :, top : top + tall, left : left + wide] = self._weight
                weights += inside
                predicted = self.denoiser(x[:, :, top : top + tall, left : left + wide], sigma, cond)
                total = total + placed(predicted * of(self._weight), (height, width), (top, left))
        return total / of(weights)


def placed(part: Any, size: tuple[int, int], at: tuple[int, int]) -> Any:
    """(N, C, h, w) at (top, left) within zeros of `size` (height, width)."""
    margins = [(start, whole - start - side) for start, whole, side in zip(at, size, part.shape[2:])]
    if isinstance(part, np.ndarray):
        return np.pad(part, [(0, 0), (0, 0), *margins])
    from mindspore import ops

    (above, below), (before, after) = margins
    return ops.pad(part, (before, after, above, below))
