"""Weights that two implementations draw for themselves: a function of the peer's parameter name and shape alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from mindpangu.checkpoint.name_map import Place


def draw(name: str, shape: tuple[int, ...], norms: bool = False) -> np.ndarray:
    """float32; matrices and kernels keep a signal's size, a norm's scale (`norms`) is near 1, biases are small."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(shape)
    if len(shape) > 1:
        return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return (1 + 0.1 * values if norms else 0.1 * values).astype(np.float32)


def is_norm_scale(name: str) -> bool:
    """Whether the peer's parameter is the scale of a normalisation."""
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and "norm" in owner.rpartition(".")[2]


def of_ours(net, places: Mapping[str, Place]) -> None:
    """Give a Cell the same weights, by the places of its parameters in the peer."""
    from mindspore import Tensor

    for parameter in net.get_parameters():
        parameter.set_data(Tensor(value_of(places[parameter.name], tuple(parameter.shape))))


def value_of(place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """Our parameter of `shape` where the peer's tensors are drawn; theirs may have axes of one at the end."""
    theirs = shape[::-1] if place.transposed else (shape[0] // len(place.names), *shape[1:])
    return place.read(shape, lambda name: draw(name, theirs, is_norm_scale(name)))


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    """Unit Gaussian, float32."""
    return np.random.default_rng([11, seed]).standard_normal(shape, np.float32)
