"""Samplers: free functions with one signature, over a list of σ that ends in 0.

    sampler(denoise, x, sigmas, noise=None, callback=None) -> x0

denoise(x, sigma (N,)) -> x0, a `Denoiser` with its condition bound. x: the latent at sigmas[0]; whatever has +, − and
multiplication by a number will do. noise(i) -> unit Gaussian noise shaped like x for step i; only the stochastic ones
ask for it. callback gets a `StepState` after each prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol, Union

import numpy as np

Denoise = Callable[[Any, np.ndarray], Any]
Noise = Callable[[int], Any]
Sigmas = Union[Sequence[float], np.ndarray]


@dataclass(frozen=True)
class StepState:
    """A sampling at `step` of `steps`, just predicted: the latent x at sigma, and the clean latent `denoised`."""

    step: int
    steps: int
    sigma: float
    x: Any
    denoised: Any


Callback = Callable[[StepState], None]


class Sampler(Protocol):
    """A way from noise to a clean latent; see above."""

    def __call__(
        self,
        denoise: Denoise,
        x: Any,
        sigmas: Sigmas,
        noise: Optional[Noise] = None,
        callback: Optional[Callback] = None,
    ) -> Any: ...


def _predict(denoise: Denoise, x: Any, sigmas: Sigmas, i: int, callback: Optional[Callback]) -> Any:
    denoised = denoise(x, np.full(x.shape[0], float(sigmas[i])))
    if callback is not None:
        callback(StepState(i, len(sigmas) - 1, float(sigmas[i]), x, denoised))
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


def heun(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """Heun's method (arXiv 2206.00364, algorithm 1): Euler's step, then half of it again with the slope at its end.

    Order 2, with two predictions a step; the last step, to 0, is Euler's. The callback sees the first prediction.
    """
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        now, after = float(sigmas[i]), float(sigmas[i + 1])
        ratio = after / now
        ahead = x * ratio + denoised * (1 - ratio)
        if after > 0:
            there = _predict(denoise, ahead, sigmas, i + 1, None)
            slope = (x - denoised) * (0.5 / now) + (ahead - there) * (0.5 / after)
            ahead = x + slope * (after - now)
        x = ahead
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


def _extrapolated(denoised: Any, previous: Any, sigmas: Sigmas, i: int) -> Any:
    """The prediction half a step ahead of sigmas[i], in λ = −log σ, from it and the one before (None at the start)."""
    if previous is None:
        return denoised
    r = math.log(sigmas[i - 1] / sigmas[i]) / math.log(sigmas[i] / sigmas[i + 1])
    return denoised * (1 + 1 / (2 * r)) - previous * (1 / (2 * r))


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
        estimate = _extrapolated(denoised, previous, sigmas, i)
        ratio = float(sigmas[i + 1] / sigmas[i])
        x = x * ratio + estimate * (1 - ratio)
        previous = denoised
    return x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """SDE-DPM-Solver++(2M), midpoint form, with η = 1 (arXiv 2211.01095, section 5) and λ = −log σ.

    The last step, to 0, takes the prediction.
    """
    draw = _need(noise, "dpmpp_2m_sde")
    previous: Any = None
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        if sigmas[i + 1] == 0:
            return denoised
        h = math.log(sigmas[i] / sigmas[i + 1])
        estimate = _extrapolated(denoised, previous, sigmas, i)
        kept, fresh = math.exp(-2 * h), float(sigmas[i + 1]) * math.sqrt(-math.expm1(-2 * h))
        x = x * kept + estimate * (1 - kept) + draw(i) * fresh
        previous = denoised
    return x


def unipc(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """UniPC-2 (arXiv 2302.04867, algorithm 5) on x0, with B(h) = e^h − 1 and λ = −log σ.

    Each prediction also corrects the latent that it was made for. Order 3 where the corrector has two earlier
    predictions; the last step, to 0, takes the prediction.
    """
    start: Any = None  # the latent and the prediction that the present one was stepped from
    base: Any = None
    before: Any = None  # the prediction before that
    for i in range(len(sigmas) - 1):
        denoised = _predict(denoise, x, sigmas, i, callback)
        if sigmas[i + 1] == 0:
            return denoised
        if i > 0:
            x = _unipc_step(start, base, before, denoised, sigmas, i - 1)
        start, base, before = x, denoised, base
        x = _unipc_step(start, base, before, None, sigmas, i)
    return x


def _unipc_step(start: Any, base: Any, before: Any, ahead: Any, sigmas: Sigmas, i: int) -> Any:
    """From sigmas[i] to sigmas[i + 1]: the predictor, or with the prediction `ahead` at its end the corrector."""
    h = math.log(sigmas[i] / sigmas[i + 1])
    ratio = float(sigmas[i + 1] / sigmas[i])
    x = start * ratio + base * (1 - ratio)
    if before is None:
        weight_before, weight_ahead, r = 0.0, 0.5, 1.0
    else:
        r = -math.log(sigmas[i - 1] / sigmas[i]) / h
        if ahead is None:
            weight_before, weight_ahead = 0.5, 0.0
        else:
            # Two equations, Σ ρ_k r_k^(n−1) = b_n for n = 1, 2, with r_k of the earlier prediction and 1 of `ahead`.
            phi = math.expm1(-h) / -h - 1
            b1 = phi / math.expm1(-h)
            b2 = 2 * (phi / -h - 0.5) / math.expm1(-h)
            weight_before = (b1 - b2) / (1 - r)
            weight_ahead = b1 - weight_before
    if before is not None:
        x = x + (before - base) * (weight_before / r * (1 - ratio))
    if ahead is not None:
        x = x + (ahead - base) * (weight_ahead * (1 - ratio))
    return x


def lcm(
    denoise: Denoise,
    x: Any,
    sigmas: Sigmas,
    noise: Optional[Noise] = None,
    callback: Optional[Callback] = None,
) -> Any:
    """Multistep consistency sampling (arXiv 2303.01469, algorithm 1): predict, then fresh noise at the next σ.

    For nets distilled to be consistent (arXiv 2310.04378), in a few steps.
    """
    draw = _need(noise, "lcm")
    for i in range(len(sigmas) - 1):
        x = _predict(denoise, x, sigmas, i, callback)
        if sigmas[i + 1] > 0:
            x = x + draw(i) * float(sigmas[i + 1])
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "ddim": ddim,
    "unipc": unipc,
    "lcm": lcm,
}
