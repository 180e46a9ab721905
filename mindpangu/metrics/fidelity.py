"""Pixel fidelity."""

from __future__ import annotations

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair of uint8 pictures, (N, H, W, 3) -> (N,)."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return 10 * np.log10(255.0**2 / np.maximum(error.mean((1, 2, 3)), 1e-10))
