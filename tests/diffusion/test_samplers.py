"""Samplers against data distributions whose denoiser is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.diffusion import SAMPLERS, NoiseSchedule, ScheduleSpec, karras_sigmas, uniform_sigmas

SCHEDULE = NoiseSchedule(ScheduleSpec())
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}
DETERMINISTIC = tuple(ORDERS)
STOCHASTIC = ("dpmpp_2m_sde", "euler_ancestral", "lcm")
SHAPE = (2, 3, 4, 4)


def gaussian_denoiser(mean: float, std: float):
    """E[x0 | x] for x0 ~ N(mean, std²): the posterior mean."""

    def denoise(x, sigma):
        s2 = sigma.reshape(-1, 1, 1, 1) ** 2
        return (std**2 * x + s2 * mean) / (std**2 + s2)

    return denoise


def gaussian_flow(x, sigma: float, mean: float, std: float):
    """Where the probability-flow ODE from (x, sigma) ends at σ = 0: deviations shrink as √(std² + σ²)."""
    return mean + (x - mean) * std / np.sqrt(std**2 + sigma**2)


@given(st.floats(-3, 3), st.integers(2, 40), st.sampled_from(DETERMINISTIC), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_point_mass_is_recovered_exactly(value, steps, name, karras):
    sigmas = (karras_sigmas if karras else uniform_sigmas)(SCHEDULE, steps)
    x = np.random.default_rng(0).standard_normal(SHAPE) * sigmas[0]
    out = SAMPLERS[name](lambda x, sigma: np.full_like(x, value), x, sigmas)
    np.testing.assert_allclose(out, value, atol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_on_a_gaussian(name):
    """Halving the steps in log σ divides the error by 2^order, between σ = 10 and 0.1, where nothing is cut."""
    mean, std, high, low = 0.7, 0.5, 10.0, 0.1
    x = np.random.default_rng(1).standard_normal(SHAPE) * high
    exact = mean + (x - mean) * np.sqrt((std**2 + low**2) / (std**2 + high**2))
    errors = []
    for steps in (64, 128, 256):
        sigmas = np.geomspace(high, low, steps + 1)
        errors.append(np.abs(SAMPLERS[name](gaussian_denoiser(mean, std), x, sigmas) - exact).max())
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(measured, ORDERS[name], atol=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_gaussian_is_recovered_with_many_steps(name):
    sigmas = karras_sigmas(SCHEDULE, 400)
    x = np.random.default_rng(2).standard_normal(SHAPE) * sigmas[0]
    out = SAMPLERS[name](gaussian_denoiser(-0.4, 0.8), x, sigmas)
    np.testing.assert_allclose(out, gaussian_flow(x, sigmas[0], -0.4, 0.8), atol=0.02)


def test_ddim_without_noise_is_euler_in_sigma_space():
    sigmas = uniform_sigmas(SCHEDULE, 12)
    x = np.random.default_rng(3).standard_normal(SHAPE) * sigmas[0]
    a, b = (SAMPLERS[n](gaussian_denoiser(0.2, 0.6), x, sigmas) for n in ("euler", "ddim"))
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde"])
def test_a_stochastic_sampler_keeps_a_gaussians_mean_and_spread(name):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((4000, 1, 1, 1)) * SCHEDULE.sigma_max
    sigmas = karras_sigmas(SCHEDULE, 60)
    out = SAMPLERS[name](gaussian_denoiser(1.0, 0.5), x, sigmas, lambda i: rng.standard_normal(x.shape))
    assert abs(out.mean() - 1.0) < 0.04
    assert abs(out.std() - 0.5) < 0.04


def test_lcm_draws_from_a_consistent_net_in_any_number_of_steps():
    """A consistency function of a Gaussian maps (x, σ) to where its flow ends, so every level gives the data again."""
    rng = np.random.default_rng(5)
    sigmas = karras_sigmas(SCHEDULE, 4)
    x = rng.standard_normal((4000, 1, 1, 1)) * np.sqrt(0.5**2 + SCHEDULE.sigma_max**2) + 1.0

    def consistent(x, sigma):
        return gaussian_flow(x, sigma.reshape(-1, 1, 1, 1), 1.0, 0.5)

    out = SAMPLERS["lcm"](consistent, x, sigmas, lambda i: rng.standard_normal(x.shape))
    assert abs(out.mean() - 1.0) < 0.03
    assert abs(out.std() - 0.5) < 0.03


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_asks_for_noise(name):
    with pytest.raises(ValueError, match="noise"):
        SAMPLERS[name](lambda x, s: x, np.zeros(SHAPE), [1.0, 0.0])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_callback_sees_every_step(name):
    seen = []
    sigmas = uniform_sigmas(SCHEDULE, 5)
    SAMPLERS[name](lambda x, s: x * 0, np.ones(SHAPE), sigmas, lambda i: np.zeros(SHAPE), seen.append)
    assert [s.step for s in seen] == [0, 1, 2, 3, 4]
    assert [s.sigma for s in seen] == [float(s) for s in sigmas[:-1]]
