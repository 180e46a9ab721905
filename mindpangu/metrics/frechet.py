"""The Fréchet distance between two sets of features (arXiv 1706.08500), as if each were Gaussian."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of features (N, F) and (M, F).

    With centred rows A/√(N−1) and B/√(M−1) the trace of the root is the nuclear norm of A·Bᵀ: no F×F matrix is formed.
    Few samples bias it upwards: compare sets of equal size only.
    """
    mean_a, mean_b = a.mean(0, dtype=np.float64), b.mean(0, dtype=np.float64)
    rows_a = (a - mean_a) / np.sqrt(len(a) - 1)
    rows_b = (b - mean_b) / np.sqrt(len(b) - 1)
    root = np.linalg.norm(rows_a @ rows_b.T, "nuc")
    return float(((mean_a - mean_b) ** 2).sum() + (rows_a**2).sum() + (rows_b**2).sum() - 2 * root)
