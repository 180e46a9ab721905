"""Samplers: free functions with one signature, walking a list of σ down to 0.

    sampler(denoise, x, sigmas, noise=None, callback=None) -> x0

denoise(x, sigma (N,)) -> x0, a `Denoiser` with its condition bound. x: the latent at sigmas[0]; whatever has +, − and
multiplication by a number will do. noise(i) -> unit Gaussian noise shaped like x for step i; only the stochastic ones
ask for it. callback gets {"step", "steps", "sigma", "x", "denoised"} after each prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import numpy as np

Denoise = Callable[[Any, np.ndarray], Any]
Noise = Callable[[int], Any]
Sigmas = Union[Sequence[float], np.ndarray]
Callback = Callable[[dict], None]
Sampler = Callable[..., Any]


def _predict(denoise: Denoise, x: Any, sigmas: Sigmas, i: int, callback: Optional[Callback]) -> Any:
    denoised = denoise(x, np.full(x.shape[0], float(sigmas[i])))
    if callback is not None:
        callback({"step": i, "steps": len(sigmas) - 1, "sigma": float(sigmas[i]), "x": x, "denoised": denoised})
    return denoised


def _need(noise: Optional[Noise], name: str) -> Noise:
    if noise is None:
        raise ValueError(f"{name} is stochastic: pass noise(step)")
    return noise


def euler(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """Euler's method on dx/dσ = (x − D(x, σ)) / σ (arXiv 2206.00364, algorithm 1 without its second stage). Order 1."""
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        ratio = float(sigmas[i + 1] / sigmas[i])
        x = x * ratio + denoised * (1 - ratio)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """Euler to σ_down, then fresh noise up to σ_next: the DDPM posterior (arXiv 2006.11239) in σ-space."""
    draw = _need(noise, "euler_ancestral")
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        now, after = float(sigmas[i]), float(sigmas[i + 1])
        up = min(after, math.sqrt(max(0.0, after**2 * (now**2 - after**2) / now**2)))
        ratio = math.sqrt(after**2 - up**2) / now
        x = x * ratio + denoised * (1 - ratio)
        if up > 0:
            x = x + draw(i) * up
    return x


def ddim(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """DDIM with η = 0 (arXiv 2010.02502, equation 12), stepped in the variance-preserving latent as published.

    Mathematically it is Euler's method in σ-space; it is kept for the name that users know and checked against it.
    """
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        alpha_bar = 1 / (1 + float(sigmas[i]) ** 2)
        after = 1 / (1 + float(sigmas[i + 1]) ** 2)
        z = x * math.sqrt(alpha_bar)
        epsilon = (z - denoised * math.sqrt(alpha_bar)) * (1 / math.sqrt(1 - alpha_bar))
        z = denoised * math.sqrt(after) + epsilon * math.sqrt(1 - after)
        x = z * (1 / math.sqrt(after))
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) with λ = −log σ. Order 2; the last step, to 0, is Euler's."""
    previous: Any = None
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        if sigmas[i + 1] == 0:
            return denoised
        estimate = denoised
        if previous is not None:
            r = math.log(sigmas[i - 1] / sigmas[i]) / math.log(sigmas[i] / sigmas[i + 1])
            estimate = denoised * (1 + 1 / (2 * r)) - previous * (1 / (2 * r))
        ratio = float(sigmas[i + 1] / sigmas[i])
        x = x * ratio + estimate * (1 - ratio)
        previous = denoised
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "ddim": ddim,
}
