"""Coop-Diffusion (PanGu-Draw, algorithm 1): denoisers of different latent spaces draw one picture together.

Fusing the ε of two models, as printed, is fusing what they predict: with ε̃ = (z − √ᾱ·z̃0)/√(1−ᾱ) the fused
d·ε̃ + (1−d)·ε belongs to d·z̃0 + (1−d)·ẑ0. So for any number of members all of the algorithm is

    x0_i ← Σ_j w_ij(σ) · B_{j→i}(x0_j)

with bridges B between their spaces, and members that share one list of σ. Sub-module 1 is constant weights;
sub-module 2 moves the weight from a low-resolution member to a high-resolution one, which begins with fresh noise.
Weights may be negative: with two members that look at one latent, one steered by a control and one not, +w and −w add
the control's effect to another's prediction, without the guest's own colours and style (the composition of effects of
arXiv 2206.01714).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Optional

import numpy as np

from mindpangu.diffusion.denoiser import Denoiser
from mindpangu.diffusion.samplers import Sampler, Sigmas, StepState

Bridge = Callable[[Any], Any]  # a clean latent of one space -> of another
Weights = Callable[[float], np.ndarray]  # σ -> (members, members): row i says what member i's prediction is made of
NoiseOf = Callable[[int, int], Any]  # (member, number of the draw) -> unit Gaussian noise in its space


class Latents:
    """Several latents that are sampled as one: sums with others of the same spaces, products with numbers."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The first one's; all have the same batch."""
        return tuple(self.parts[0].shape)

    def __add__(self, other: Latents) -> Latents:
        return Latents([a + b for a, b in zip(self.parts, other.parts)])

    def __sub__(self, other: Latents) -> Latents:
        return Latents([a - b for a, b in zip(self.parts, other.parts)])

    def __mul__(self, number: float) -> Latents:
        return Latents([part * number for part in self.parts])


class Coop:
    """A denoiser of `Latents`: the members `drawn`, each of whose predictions is made of the members' it asks for.

    `members`: all of them, conditions bound; `bridges`: by (from, to), where `weights` ask for one. `beside`: members
    with no latent of their own, by the member at whose latent they look.
    """

    def __init__(
        self,
        members: Sequence[Denoiser],
        bridges: Mapping[tuple[int, int], Bridge],
        weights: Weights,
        drawn: Optional[Sequence[int]] = None,
        beside: Optional[Mapping[int, int]] = None,
    ) -> None:
        self.members, self.bridges, self.weights = tuple(members), bridges, weights
        self.beside = beside or {}
        self.drawn = tuple(range(len(members)) if drawn is None else drawn)

    def __call__(self, x: Latents, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Latents:
        """Raises: ValueError where a member is asked for that is not drawn."""
        table = self.weights(float(sigma[0]))
        states = dict(zip(self.drawn, x.parts))
        asked = [j for j in range(len(self.members)) if any(table[i, j] for i in self.drawn)]
        absent = [j for j in asked if self.looks_at(j) not in states]
        if absent:
            raise ValueError(f"members {absent} are asked for at σ {float(sigma[0]):.4g} but not drawn")
        predicted = {j: self.members[j](states[self.looks_at(j)], sigma, cond) for j in asked}
        return Latents([self.fused(i, predicted, table) for i in self.drawn])

    def looks_at(self, j: int) -> int:
        """The member whose latent member j denoises."""
        return self.beside.get(j, j)

    def fused(self, i: int, predicted: Mapping[int, Any], table: np.ndarray) -> Any:
        """Σ_j w_ij · B_{j→i}(x0_j) over the members j that have predicted."""
        return reduce(add, (self.bridged(j, i, x0) * float(table[i, j]) for j, x0 in predicted.items() if table[i, j]))

    def bridged(self, j: int, i: int, x0: Any) -> Any:
        """A clean latent of member j in member i's space."""
        return x0 if i == j else self.bridges[j, i](x0)


@dataclass(frozen=True)
class Stage:
    """A stretch of the sampling, sigmas[first] … sigmas[last], during which the same members are drawn.

    `woken`: those that begin here, from what the others predict at sigmas[first], and fresh noise.
    """

    first: int
    last: int
    drawn: tuple[int, ...]
    woken: tuple[int, ...]


def stages(weights: Weights, sigmas: Sigmas, output: int, beside: Optional[Mapping[int, int]] = None) -> list[Stage]:
    """Which members must be drawn when, so that member `output` is a picture at the end; none is drawn in vain.

    A member whose own prediction counts for nothing down to some σ need not be drawn before: there it wakes, made of
    what its row of weights named one step earlier.
    """
    steps, looks_at = len(sigmas) - 1, beside or {}
    tables = [weights(float(sigma)) for sigma in sigmas[:steps]]
    members = len(tables[0])
    first = [next((k for k in range(steps) if tables[k][i, i]), 0) for i in range(members)]
    drawn, needed = [], {output}
    for k in reversed(range(steps)):
        needed = needed | {looks_at.get(j, j) for i in needed for j in range(members) if tables[k][i, j]}
        drawn.append(tuple(sorted(needed)))
        waking = {i for i in needed if 0 < first[i] == k}
        needed = (needed - waking) | {looks_at.get(j, j) for i in waking for j in range(members) if tables[k - 1][i, j]}
    drawn.reverse()
    found: list[Stage] = []
    for k in range(steps):
        if found and found[-1].drawn == drawn[k]:
            found[-1] = Stage(found[-1].first, k + 1, drawn[k], found[-1].woken)
        else:
            before = found[-1].drawn if found else drawn[k]
            found.append(Stage(k, k + 1, drawn[k], tuple(i for i in drawn[k] if i not in before)))
    return found


@dataclass(frozen=True)
class MemberState(StepState):
    """A step of a member's latents: the output's, or, while it is not drawn yet, those of the first that is."""

    member: int


def sample(
    sampler: Sampler,
    coop: Coop,
    sigmas: Sigmas,
    output: int,
    noise: NoiseOf,
    callback: Optional[Callable[[MemberState], None]] = None,
) -> Any:
    """Draw the picture of member `output` with the others' help: its clean latent.

    noise(member, 0) starts a member, noise(member, 1) is what it wakes with, later numbers are the sampler's.
    """
    plan, top = stages(coop.weights, sigmas, output, coop.beside), float(sigmas[0])
    states = {i: noise(i, 0) * float(np.sqrt(1 + top**2)) for i in plan[0].drawn}
    for stage in plan:
        for i in stage.woken:
            states[i] = _woken(coop, states, i, sigmas, stage.first) + noise(i, 1) * float(sigmas[stage.first])

        def fresh(step: int, stage: Stage = stage) -> Latents:
            return Latents([noise(i, 2 + stage.first + step) for i in stage.drawn])

        def report(state: StepState, stage: Stage = stage) -> None:
            if callback is not None:
                member = output if output in stage.drawn else stage.drawn[0]
                x, denoised = (one.parts[stage.drawn.index(member)] for one in (state.x, state.denoised))
                callback(MemberState(stage.first + state.step, len(sigmas) - 1, state.sigma, x, denoised, member))

        now = Coop(coop.members, coop.bridges, coop.weights, stage.drawn, coop.beside)
        out = sampler(
            now,
            Latents([states[i] for i in stage.drawn]),
            sigmas[stage.first : stage.last + 1],
            noise=fresh,
            callback=report,
        )
        states = dict(zip(stage.drawn, out.parts))
    return states[output]


def _woken(coop: Coop, states: Mapping[int, Any], i: int, sigmas: Sigmas, k: int) -> Any:
    """The clean latent that member i begins with at sigmas[k]: its row of the step before, of predictions made here."""
    table = coop.weights(float(sigmas[k - 1]))
    sources = [j for j in range(len(coop.members)) if table[i, j]]
    sigma = np.full(states[coop.looks_at(sources[0])].shape[0], float(sigmas[k]))
    return coop.fused(i, {j: coop.members[j](states[coop.looks_at(j)], sigma, ()) for j in sources}, table)
