"""Samplers equal diffusers' schedulers, step by step, on the same σ, denoiser and noise."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.diffusion import SAMPLERS
from tests.parity.golden_samplers import GOLDEN, denoise, noise

with np.load(GOLDEN) as file:
    ARRAYS = dict(file)
CASES = sorted({name.split(".")[0] for name in ARRAYS})


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_diffusers(case):
    sigmas, path = ARRAYS[f"{case}.sigmas"], ARRAYS[f"{case}.path"]
    steps = []
    sampler = SAMPLERS[str(ARRAYS[f"{case}.sampler"])]
    out = sampler(denoise, noise(-1) * sigmas[0], sigmas, noise, lambda state: steps.append(state.x))
    ours = np.stack([*steps, out])
    assert ours.shape == path.shape
    scale = np.abs(path).max(axis=(1, 2, 3, 4))
    error = np.abs(ours - path).max(axis=(1, 2, 3, 4)) / scale
    assert error.max() <= 1e-5, f"{case}: {error}"


def test_every_sampler_has_a_peer():
    assert {str(ARRAYS[f"{case}.sampler"]) for case in CASES} == set(SAMPLERS)
