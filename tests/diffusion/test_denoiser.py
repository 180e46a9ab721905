"""ε, v and x0 say the same thing; guidance is linear; the switch does not lag."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.diffusion import (
    SAMPLERS,
    Conditioned,
    Guided,
    Inpainted,
    LaggingTimeDecoupled,
    NetDenoiser,
    NoiseSchedule,
    ScheduleSpec,
    TimeDecoupled,
    uniform_sigmas,
)
from mindpangu.diffusion.denoiser import training_target

SCHEDULE = NoiseSchedule(ScheduleSpec())


@given(st.sampled_from(("epsilon", "v", "x0")), st.floats(1, 998), st.integers(0, 99))
@settings(deadline=None)
def test_a_net_that_hits_its_training_target_gives_x0_back(prediction, t, seed):
    rng = np.random.default_rng(seed)
    x0, noise = rng.standard_normal((2, 2, 3, 4, 4))
    alpha_bar = float(SCHEDULE.alpha_bar(np.float64(t)))
    alpha, sigma_vp = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    seen = {}

    def net(z, t_seen):
        seen["z"], seen["t"] = z, t_seen
        return training_target(prediction, x0, noise, alpha, sigma_vp)

    sigma = np.full(2, sigma_vp / alpha)
    out = NetDenoiser(net, SCHEDULE, prediction)(x0 + sigma[0] * noise, sigma, ())
    np.testing.assert_allclose(out, x0, atol=1e-4)
    np.testing.assert_allclose(seen["z"], alpha * x0 + sigma_vp * noise, atol=1e-4)
    np.testing.assert_allclose(seen["t"], t, atol=1e-2)


def labelled(value):
    return lambda x, sigma, cond: np.full_like(x, value)


@given(st.integers(1, 60))
def test_structure_draws_exactly_the_steps_at_t_struct_or_above(steps):
    sigma_struct = float(SCHEDULE.sigma(np.float64(500)))
    denoiser = TimeDecoupled([labelled(1.0), labelled(2.0)], [sigma_struct])
    for t, sigma in zip(np.linspace(999, 0, steps), uniform_sigmas(SCHEDULE, steps)):
        out = denoiser(np.zeros((1, 1, 2, 2)), np.array([sigma]), ())
        assert out.flat[0] == (1.0 if t >= 500 else 2.0)


def test_the_releases_switch_draws_one_step_more_with_structure():
    """21 + 19 of 40 Euler steps, as the released loop does."""
    denoiser = LaggingTimeDecoupled([labelled(1.0), labelled(2.0)], [float(SCHEDULE.sigma(np.float64(500)))])
    sigmas = uniform_sigmas(SCHEDULE, 40)[:-1]
    drawn = [denoiser(np.zeros((1, 1, 2, 2)), np.array([sigma]), ()).flat[0] for sigma in sigmas]
    assert drawn == [1.0] * 21 + [2.0] * 19


def test_the_switch_itself_belongs_to_structure():
    denoiser = TimeDecoupled([labelled(1.0), labelled(2.0)], [1.5])
    assert denoiser(np.zeros((1, 1, 1, 1)), np.array([1.5]), ()).item() == 1.0


def test_any_number_of_experts_share_the_levels():
    denoiser = TimeDecoupled([labelled(float(i)) for i in range(4)], [8.0, 3.0, 1.0])
    drawn = [denoiser(np.zeros((1, 1, 1, 1)), np.array([sigma]), ()).item() for sigma in (9, 8, 5, 3, 2, 1, 0.5, 0.01)]
    assert drawn == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="2 experts and 2 switches"):
        TimeDecoupled([labelled(1), labelled(2)], [2.0, 1.0])


def test_a_batch_on_both_sides_of_the_switch_is_refused():
    with pytest.raises(ValueError, match="both sides"):
        TimeDecoupled([labelled(1), labelled(2)], [1.0])(np.zeros((2, 1, 1, 1)), np.array([2.0, 0.5]), ())


@given(st.floats(0, 10), st.lists(st.floats(-3, 3), max_size=3))
def test_guidance_is_the_releases_formula(scale, styles):
    n, rows = 2, 2 + len(styles)
    values = np.random.default_rng(0).standard_normal((rows, n))

    def net(x, sigma, cond):
        assert x.shape[0] == sigma.shape[0] == rows * n
        return values.reshape(-1, 1, 1, 1) * np.ones_like(x)

    out = Guided(net, (), scale, styles)(np.zeros((n, 1, 2, 2)), np.ones(n))
    u, c = values[0], values[1]
    expected = u + scale * (c - u) + sum(w * (values[2 + k] - c) for k, w in enumerate(styles))
    np.testing.assert_allclose(out[:, 0, 0, 0], expected, atol=1e-9)


def test_guidance_of_one_is_the_conditional_prediction():
    out = Guided(lambda x, s, c: np.array([5.0, 7.0]).reshape(2, 1, 1, 1), (), 1.0)(np.zeros((1, 1, 1, 1)), np.ones(1))
    assert out.item() == 7.0


@given(st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_rescaled_guidance_has_the_conditional_predictions_deviation(rescale, seed):
    rows = np.random.default_rng(seed).standard_normal((4, 3, 8, 8)) * 2 + 0.5
    plain = Guided(lambda x, s, c: rows, (), 7.0)(np.zeros((2, 3, 8, 8)), np.ones(2))
    out = Guided(lambda x, s, c: rows, (), 7.0, rescale=rescale)(np.zeros((2, 3, 8, 8)), np.ones(2))
    for one, guided, conditional in zip(out, plain, rows[2:]):
        expected = rescale * conditional.std() + (1 - rescale) * guided.std()
        np.testing.assert_allclose(one.std(), expected, rtol=1e-9)
        np.testing.assert_allclose(one / one.std(), guided / guided.std(), rtol=1e-6)


def test_models_that_are_told_different_things_share_the_levels():
    def told(x, sigma, cond):
        return np.full_like(x, cond[0])

    both = TimeDecoupled([Conditioned(told, (1.0,)), Conditioned(told, (2.0,))], [1.0])
    drawn = [both(np.zeros((1, 1, 1, 1)), np.array([sigma]), ()).item() for sigma in (3.0, 0.5)]
    assert drawn == [1.0, 2.0]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_what_is_known_stays_and_the_rest_is_drawn(name):
    """Where the mask is 0 every sampler ends at the known latent; elsewhere it ends where it would without."""
    rng = np.random.default_rng(0)
    known, mask = rng.standard_normal((1, 3, 4, 4)), np.zeros((1, 1, 4, 4))
    mask[..., 2:] = 1
    sigmas = uniform_sigmas(SCHEDULE, 8)[3:]
    x = known + sigmas[0] * rng.standard_normal((2, 3, 4, 4))

    def noise(step):
        return np.random.default_rng([1, step]).standard_normal((2, 3, 4, 4))

    def free(x, sigma, cond):
        return np.tanh(x)

    inpainted = Inpainted(free, known, mask)
    out = SAMPLERS[name](lambda x, s: inpainted(x, s, ()), x, sigmas, noise)
    without = SAMPLERS[name](lambda x, s: free(x, s, ()), x, sigmas, noise)
    np.testing.assert_allclose(out[..., :2], np.broadcast_to(known, out.shape)[..., :2], atol=1e-9)
    np.testing.assert_allclose(out[..., 2:], without[..., 2:], atol=1e-9)


def test_outside_its_interval_guidance_is_not_computed():
    seen = []

    def net(x, sigma, cond):
        seen.append((len(x), float(sigma[0]), cond[0][0]))
        return x * 0 + cond[0].reshape(-1, 1, 1, 1)

    cond, x = (np.array([1.0, 1.0, 3.0, 3.0]),), np.zeros((2, 1, 2, 2))  # two pictures: unconditional, conditional
    guided = Guided(net, cond, 2.0, between=(1.0, 4.0))
    for sigma, rows, value in ((5.0, 2, 3.0), (4.0, 4, 5.0), (1.0, 4, 5.0), (0.5, 2, 3.0)):
        np.testing.assert_allclose(guided(x, np.full(2, sigma)), value)
        assert seen[-1] == (rows, sigma, 3.0 if rows == 2 else 1.0)
