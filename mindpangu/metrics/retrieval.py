"""Retrieval: which place the right answer takes among all candidates."""

from __future__ import annotations

import numpy as np


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
    similarity = _unit(queries - centre) @ _unit(gallery - centre).T
    right = similarity[np.arange(len(queries)), answers][:, None]
    return (similarity >= right).sum(1)


def recall_at(rank: np.ndarray, k: int) -> float:
    """The share of ranks that are at most `k`."""
    return float((rank <= k).mean())


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
