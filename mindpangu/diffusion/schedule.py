"""Noise schedules: t ↔ ᾱ ↔ σ, and the lists of σ of samplers. All float64, all pure functions.

The variance-preserving latent √ᾱ x0 + √(1−ᾱ) ε, divided by √ᾱ, is the σ-space latent x0 + σ ε with σ = √((1−ᾱ)/ᾱ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Union

import numpy as np

MAX_BETA = 0.999  # arXiv 2102.09672
LEAST_ALPHA_BAR = 2.0**-24  # σ 4096


@dataclass(frozen=True)
class ScheduleSpec:
    """A discrete schedule of `steps` steps. "cosine" (arXiv 2102.09672) has no betas of its own.

    `zero_terminal_snr`: √ᾱ is shifted and scaled so that nothing of the picture is left at the last t (arXiv
    2305.08891, algorithm 1), up to LEAST_ALPHA_BAR, with which σ stays finite.
    """

    kind: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"steps {self.steps}, beta_start {self.beta_start}, beta_end {self.beta_end}: "
                "steps ≥ 2 and 0 < beta_start ≤ beta_end < 1 are needed"
            )


def betas(spec: ScheduleSpec) -> np.ndarray:
    """β_0 … β_{steps−1}: linear (arXiv 2006.11239), linear in √β (latent diffusion), or cosine."""
    if spec.kind == "linear":
        return np.linspace(spec.beta_start, spec.beta_end, spec.steps)
    if spec.kind == "scaled_linear":
        return np.linspace(spec.beta_start**0.5, spec.beta_end**0.5, spec.steps) ** 2
    s = 0.008
    f = np.cos((np.arange(spec.steps + 1) / spec.steps + s) / (1 + s) * math.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], MAX_BETA)


class NoiseSchedule:
    """The tables of a spec. t may be fractional: log σ is linear in t between whole steps."""

    def __init__(self, spec: ScheduleSpec) -> None:
        self.spec = spec
        self.alphas_cumprod = np.cumprod(1 - betas(spec))
        if spec.zero_terminal_snr:
            root = np.sqrt(self.alphas_cumprod)
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            self.alphas_cumprod = np.maximum(root**2, LEAST_ALPHA_BAR)
        self.log_sigmas = 0.5 * (np.log1p(-self.alphas_cumprod) - np.log(self.alphas_cumprod))

    @property
    def sigma_min(self) -> float:
        """σ at t = 0."""
        return float(math.exp(self.log_sigmas[0]))

    @property
    def sigma_max(self) -> float:
        """σ at the last t."""
        return float(math.exp(self.log_sigmas[-1]))

    def sigma(self, t: Union[float, np.ndarray]) -> np.ndarray:
        """σ(t) for t in [0, steps − 1]; beyond the ends, the end's."""
        return np.exp(np.interp(t, np.arange(len(self.log_sigmas)), self.log_sigmas))

    def t(self, sigma: np.ndarray) -> np.ndarray:
        """The inverse of `sigma`; beyond the ends, the end's t."""
        return np.interp(np.log(sigma), self.log_sigmas, np.arange(len(self.log_sigmas)))

    def alpha_bar(self, t: Union[float, np.ndarray]) -> np.ndarray:
        """ᾱ(t) = 1 / (1 + σ(t)²)."""
        return 1 / (1 + self.sigma(t) ** 2)


def uniform_sigmas(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """`steps` values of σ at t spaced evenly from the last to 0, then a final 0; (steps + 1,)."""
    t = np.linspace(schedule.spec.steps - 1, 0, steps)
    return np.append(schedule.sigma(t), 0.0)


def karras_sigmas(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> np.ndarray:
    """`steps` values evenly spaced in σ^(1/ρ) (arXiv 2206.00364, equation 5), then a final 0; (steps + 1,)."""
    high, low = schedule.sigma_max ** (1 / rho), schedule.sigma_min ** (1 / rho)
    return np.append(np.linspace(high, low, steps) ** rho, 0.0)


SIGMA_LISTS = {"uniform": uniform_sigmas, "karras": karras_sigmas}
