"""How well a picture keeps to a drawing: edges against edges, with a tolerance."""

from __future__ import annotations

import numpy as np


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
