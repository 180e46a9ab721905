"""Denoisers: denoise(x, sigma, cond) -> x0, the one contract between nets and samplers, and what combines them.

x is a σ-space latent (N, C, h, w), x = x0 + σ·noise, as a NumPy array or a MindSpore Tensor; sigma (N,) is a host array
of float64, so that choosing by σ costs no device synchronisation; cond is what the net takes beside x and t. `Guided`
and `Conditioned` hold a condition of their own, so that samplers and combinators need not know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from mindpangu.diffusion.schedule import NoiseSchedule

Prediction = Literal["epsilon", "v", "x0"]


class Denoiser(Protocol):
    """Anything that predicts the clean latent."""

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any: ...


def column(values: np.ndarray, like: Any) -> Any:
    """(N,) -> (N, 1, 1, 1) float32, as an array of `like`'s kind."""
    shaped = np.asarray(values, np.float32).reshape(-1, 1, 1, 1)
    return shaped if isinstance(like, np.ndarray) else type(like)(shaped)


def repeat_rows(x: Any, times: int) -> Any:
    """`times` copies of x, one below the other."""
    if isinstance(x, np.ndarray):
        return np.concatenate([x] * times)
    from mindspore import ops

    return ops.concat([x] * times)


class NetDenoiser:
    """A denoiser from a net that takes (variance-preserving latent, t, *cond) and predicts ε, v or x0.

    With c = 1/√(1 + σ²) = √ᾱ: ε: x0 = x − σ·out; v (arXiv 2202.00512): x0 = c²·x − σc·out; x0: x0 = out.
    """

    def __init__(self, net: Callable[..., Any], schedule: NoiseSchedule, prediction: Prediction) -> None:
        self.net, self.schedule, self.prediction = net, schedule, prediction

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        c = 1 / np.sqrt(1 + sigma**2)
        t = np.asarray(self.schedule.t(sigma), np.float32)
        out = self.net(x * column(c, x), t if isinstance(x, np.ndarray) else type(x)(t), *cond)
        if self.prediction == "epsilon":
            return x - column(sigma, x) * out
        if self.prediction == "v":
            return column(c * c, x) * x - column(sigma * c, x) * out
        return out


def training_target(prediction: Prediction, x0: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    """What the net should output for the latent alpha·x0 + sigma·noise, with alpha² + sigma² = 1."""
    if prediction == "epsilon":
        return noise
    if prediction == "v":
        return alpha * noise - sigma * x0
    return x0


class TimeDecoupled:
    """One of several denoisers, by σ (PanGu-Draw, section 3.2; eDiff-I, arXiv 2211.01324); no lag.

    `experts`: from the noisiest levels down, structure before texture; `switches[i]`: the lowest σ that experts[i]
    draws, for all but the last.
    """

    def __init__(self, experts: Sequence[Denoiser], switches: Sequence[float]) -> None:
        if len(experts) != len(switches) + 1:
            raise ValueError(f"{len(experts)} experts and {len(switches)} switches; one switch fewer is needed")
        self.experts, self.switches = tuple(experts), np.asarray(switches, np.float64)

    def chosen(self, sigma: np.ndarray) -> int:
        """The number of the expert for a batch. Raises: ValueError where it lies on both sides of a switch."""
        numbers = (np.asarray(sigma)[:, None] < self.switches).sum(1)
        if (numbers != numbers[0]).any():
            raise ValueError(
                f"one batch has σ on both sides of a switch ({self.switches}): {sigma.min()} … {sigma.max()}"
            )
        return int(numbers[0])

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        """Raises: ValueError where one batch mixes both sides of a switch."""
        return self.experts[self.chosen(sigma)](x, sigma, cond)


class LaggingTimeDecoupled(TimeDecoupled):
    """The switch of the released PanGu-Draw code, for parity: it looks at the step before, so structure draws one more.

    For one sampling.
    """

    def __init__(self, experts: Sequence[Denoiser], switches: Sequence[float]) -> None:
        super().__init__(experts, switches)
        self.next = 0

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        """The noise level decides at the next call only."""
        now, self.next = self.next, self.chosen(sigma)
        return self.experts[now](x, sigma, cond)


class Inpainted:
    """A denoiser that knows the latent `known` where `mask` is 0; the one it wraps decides where it is 1.

    Sampling that starts at known + σ·noise stays at it there, whatever the sampler; (1, 1, h, w) and (1, C, h, w).
    """

    def __init__(self, denoiser: Denoiser, known: Any, mask: Any) -> None:
        self.denoiser, self.kept, self.mask = denoiser, known * (1 - mask), mask

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        return self.denoiser(x, sigma, cond) * self.mask + self.kept


class Conditioned:
    """A denoiser with a condition of its own, not guided."""

    def __init__(self, denoiser: Denoiser, cond: Sequence[Any]) -> None:
        self.denoiser, self.cond = denoiser, cond

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        return self.denoiser(x, sigma, self.cond)


def standard_deviation(x: Any) -> Any:
    """(N, C, h, w) -> (N, 1, 1, 1)."""
    rows = x.reshape((x.shape[0], -1))
    variance = (rows * rows).mean(1) - rows.mean(1) ** 2
    return variance.reshape((-1, 1, 1, 1)) ** 0.5


class Guided:
    """Classifier-free guidance with style rows: D = D_u + s (D_c − D_u) + Σ_k s_k (D_k − D_c).

    `cond`: R·N rows for a batch of N: unconditional, conditional, then one block a style. `rescale` φ > 0 pulls the
    result's standard deviation towards D_c's: D · (φ · std(D_c) / std(D) + 1 − φ) (arXiv 2305.08891, section 3.4, there
    on the net's output, here on the clean latent, so that it means the same for every kind of net). At σ outside
    `between` the conditional row stands alone (arXiv 2404.07724), and no other is computed.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Sequence[Any],
        scale: float,
        styles: Sequence[float] = (),
        rescale: float = 0.0,
        between: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        self.denoiser, self.cond, self.scale, self.styles = denoiser, tuple(cond), scale, tuple(styles)
        self.rescale = rescale
        self.lowest, self.highest = between

    @property
    def weights(self) -> tuple[float, ...]:
        """The factor of each block of rows; they add up to 1."""
        return (1 - self.scale, self.scale - sum(self.styles), *self.styles)

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        n, blocks = x.shape[0], len(self.weights)
        if not self.lowest <= float(np.min(sigma)) <= self.highest:
            return self.denoiser(x, sigma, tuple(one[n : 2 * n] for one in self.cond))
        rows = self.denoiser(repeat_rows(x, blocks), np.tile(sigma, blocks), self.cond)
        guided = rows[:n] * self.weights[0]
        for k, weight in enumerate(self.weights[1:], start=1):
            guided = guided + rows[k * n : (k + 1) * n] * weight
        if self.rescale:
            factor = standard_deviation(rows[n : 2 * n]) / standard_deviation(guided)
            guided = guided * (factor * self.rescale + (1 - self.rescale))
        return guided
