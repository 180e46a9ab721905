"""What is made of features and pictures: Fréchet distance, retrieval, edges kept, pixel fidelity."""

from __future__ import annotations

from collections.abc import Sequence

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


def ranks(queries: np.ndarray, gallery: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The rank (1: best) of gallery[answers[i]] for queries[i], by cosine after subtracting the gallery's mean.

    Args:
        queries: (Q, F).
        gallery: (G, F).
        answers: (Q,) row of the gallery that is right.

    Returns:
        (Q,) int. Ties count against the answer.
    """
    centre = gallery.mean(0)
    similarity = unit(queries - centre) @ unit(gallery - centre).T
    right = similarity[np.arange(len(queries)), answers][:, None]
    return (similarity >= right).sum(1)


def ranks_of_any(queries: np.ndarray, gallery: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same for the best of several right rows; the other right ones do not count. `right`: (Q, G) bool."""
    centre = gallery.mean(0)
    similarity = unit(queries - centre) @ unit(gallery - centre).T
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    return 1 + ((similarity >= best) & ~right).sum(1)


class StyleClassifier:
    """A linear classifier of features (N, F): ridge regression of the class, one of many against the rest."""

    RIDGE = 1e-2  # of the features' mean variance, times their number

    def __init__(self, features: np.ndarray, classes: Sequence[str]) -> None:
        """Fitted to features whose classes are known."""
        self.names = sorted(set(classes))
        wanted = np.array([[name == one for one in self.names] for name in classes], np.float64)
        self.centre, self.mean = features.mean(0), wanted.mean(0)
        x = unit(features - self.centre)
        gram = x.T @ x
        ridge = self.RIDGE * np.trace(gram) / len(gram)
        self.weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ (wanted - self.mean))

    def __call__(self, features: np.ndarray) -> list[str]:
        """The class of each row."""
        scores = unit(features - self.centre) @ self.weights + self.mean
        return [self.names[i] for i in scores.argmax(1)]


def recall_at(rank: np.ndarray, k: int) -> float:
    """The share of ranks that are at most `k`."""
    return float((rank <= k).mean())


def unit(x: np.ndarray) -> np.ndarray:
    """(N, F) rows of length one."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def edge_f1(given: np.ndarray, found: np.ndarray, tolerance: float = 2.0) -> float:
    """The F1 of `found` edges for `given` ones, (H, W) bool: an edge counts within `tolerance` pixels of the other's.

    1 where both are empty, 0 where one is.
    """
    from scipy.ndimage import distance_transform_edt

    if not given.any() or not found.any():
        return float(not given.any() and not found.any())
    precision = (distance_transform_edt(~given)[found] <= tolerance).mean()
    recall = (distance_transform_edt(~found)[given] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair of uint8 pictures, (N, H, W, 3) -> (N,)."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return 10 * np.log10(255.0**2 / np.maximum(error.mean((1, 2, 3)), 1e-10))
