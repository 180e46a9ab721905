"""How well bridges carry a picture between two models' latents: the learned one, and the one by way of pixels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mindpangu.images import to_model
from mindpangu.infer.coop import CoopDraw, ImageBridge
from mindpangu.metrics.scores import psnr

BATCH = 8


def bridge_errors(together: CoopDraw, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """For every learned bridge of a recipe, and the image bridge of the same way, over real pictures (H, W, 3) uint8:

    `error`: root mean square of the bridged latent minus the picture's own latent over there, over that latent's;
    `psnr`: of the bridged latent, decoded, against the picture; `ms`: a picture, in batches of 8.
    """
    found: dict[str, Any] = {}
    for name, row in together.config.weights.items():
        for other, influence in row.items():
            if influence.bridge is not None:
                j, i = together.names.index(other), together.names.index(name)
                source, target = together.models[j].vae, together.models[i].vae
                ways = {
                    "learned": together.learned(j, i, influence.bridge),
                    "image": ImageBridge(source, target, together.sides[j], together.sides[i]),
                }
                found[f"{other} to {name}"] = {
                    kind: _measured(bridge, source, target, together.sides[j], together.sides[i], pictures)
                    for kind, bridge in ways.items()
                }
    return found


def _measured(
    bridge: Any, source: Any, target: Any, before: tuple[int, int], after: tuple[int, int], pictures: Sequence[Any]
) -> dict[str, float]:
    from mindspore import Tensor

    squares, fidelity, spent = [], [], 0.0
    for start in range(-BATCH, len(pictures) - BATCH + 1, BATCH):  # the first batch twice: compilation
        part = [Image.fromarray(p) for p in pictures[max(start, 0) : max(start, 0) + BATCH]]
        here, there = ([np.asarray(p.resize(size, Image.Resampling.LANCZOS)) for p in part] for size in (before, after))
        z, wanted = source.encode(Tensor(to_model(here))), target.encode(Tensor(to_model(there))).asnumpy()
        begun = time.monotonic()
        bridged = bridge(z).asnumpy()
        took = time.monotonic() - begun
        if start >= 0:
            spent += took
            squares.append([((bridged - wanted) ** 2).mean(), (wanted**2).mean()])
            decoded = target.decode(Tensor(bridged)).asnumpy()
            shown = np.clip((decoded.transpose(0, 2, 3, 1) + 1) * 127.5, 0, 255)
            fidelity.append(psnr(np.stack(there), shown))
    error, whole = np.mean(squares, axis=0)
    return {
        "error": float(np.sqrt(error / whole)),
        "psnr": float(np.mean(np.concatenate(fidelity))),
        "ms": 1000 * spent / (len(squares) * BATCH),
    }
