"""Coop-Diffusion's mathematics: one line for all of algorithm 1, checked against the printed one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.diffusion import SAMPLERS, NoiseSchedule, ScheduleSpec, uniform_sigmas
from mindpangu.diffusion.coop import Coop, Latents, Stage, sample, stages

SCHEDULE = NoiseSchedule(ScheduleSpec())
SIGMAS = uniform_sigmas(SCHEDULE, 12)
SHAPE = (2, 3, 4, 4)


def gaussian(mean, deviation):
    """The denoiser of N(mean, deviation²), known in closed form."""

    def denoise(x, sigma, cond):
        share = (deviation**2 / (deviation**2 + sigma**2)).reshape(-1, 1, 1, 1)
        return mean + (x - mean) * share

    return denoise


def constant(table):
    return lambda sigma: np.asarray(table, float)


def noise(i, draw):
    return np.random.default_rng([i, draw]).standard_normal(SHAPE)


def alone(denoise, sampler, i=0):
    start = noise(i, 0) * np.sqrt(1 + SIGMAS[0] ** 2)
    return sampler(lambda x, s: denoise(x, s, ()), start, SIGMAS, noise=lambda step: noise(i, 2 + step))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_member_that_is_asked_alone_draws_what_it_draws_alone(sampler):
    members = [gaussian(1.0, 0.5), gaussian(-2.0, 0.3)]
    for output in (0, 1):
        coop = Coop(members, {}, constant(np.eye(2)))
        drawn = sample(sampler, coop, SIGMAS, output, noise)
        np.testing.assert_allclose(drawn, alone(members[output], sampler, output), atol=1e-12)


@given(d=st.floats(0, 1))
def test_two_equal_members_in_one_space_with_one_noise_are_one(d):
    member = gaussian(0.7, 0.5)
    coop = Coop([member, member], {(0, 1): lambda x: x, (1, 0): lambda x: x}, constant([[1 - d, d], [d, 1 - d]]))
    drawn = sample(SAMPLERS["euler"], coop, SIGMAS, 0, lambda i, draw: noise(0, draw))
    np.testing.assert_allclose(drawn, alone(member, SAMPLERS["euler"]), atol=1e-9)


def test_point_masses_are_mixed_by_their_weights():
    """Members that are sure of a, and of b in a space twice as large: the pictures are the weighted means."""
    members = [gaussian(1.0, 0.0), gaussian(6.0, 0.0)]
    bridges = {(0, 1): lambda x: 2 * x, (1, 0): lambda x: x / 2}
    table = [[0.75, 0.25], [0.4, 0.6]]
    for output, expected in ((0, 0.75 * 1 + 0.25 * 3), (1, 0.4 * 2 + 0.6 * 6)):
        drawn = sample(SAMPLERS["dpmpp_2m"], Coop(members, bridges, constant(table)), SIGMAS, output, noise)
        np.testing.assert_allclose(drawn, expected, atol=1e-9)


def as_printed(epsilons, decode, encode, d, z, steps):
    """Sub-module 1 of algorithm 1, line by line: variance-preserving latents, ε, one ᾱ for both, DDIM as S."""
    t = SCHEDULE.t(SIGMAS[:-1])
    bars = np.append(SCHEDULE.alpha_bar(t), 1.0)
    z = list(z)
    for k in range(steps):
        bar, after = bars[k], bars[k + 1]
        eps = [epsilons[i](z[i], k) for i in (0, 1)]
        fused = []
        for i in (0, 1):
            j = 1 - i
            clean = (z[j] - np.sqrt(1 - bar) * eps[j]) / np.sqrt(bar)
            bridged = encode[i](decode[j](clean))
            tilde = (z[i] - np.sqrt(bar) * bridged) / np.sqrt(1 - bar)
            fused.append(d * tilde + (1 - d) * eps[i])
        for i in (0, 1):
            clean = (z[i] - np.sqrt(1 - bar) * fused[i]) / np.sqrt(bar)
            z[i] = np.sqrt(after) * clean + np.sqrt(1 - after) * fused[i]
    return z


@pytest.mark.parametrize("d", [0.0, 0.3, 0.5, 1.0])
def test_sub_module_1_as_printed(d):
    members = [gaussian(0.8, 0.5), gaussian(-1.5, 0.4)]
    decode, encode = [lambda x: x + 0.1, lambda x: x / 3], [lambda x: x - 0.1, lambda x: 3 * x]

    def epsilon(member):
        def predict(z, k):
            x, sigma = z * np.sqrt(1 + SIGMAS[k] ** 2), SIGMAS[k]
            return (x - member(x, np.full(len(x), sigma), ())) / sigma

        return predict

    steps = len(SIGMAS) - 1
    printed = as_printed([epsilon(m) for m in members], decode, encode, d, [noise(0, 0)] * 2, steps)
    bridges = {(j, i): lambda x, j=j, i=i: encode[i](decode[j](x)) for j, i in ((0, 1), (1, 0))}
    for output in (0, 1):
        coop = Coop(members, bridges, constant([[1 - d, d], [d, 1 - d]]))
        drawn = sample(SAMPLERS["ddim"], coop, SIGMAS, output, lambda i, draw: noise(0, draw))
        np.testing.assert_allclose(drawn, printed[output], atol=1e-5)


def test_sub_module_2_as_printed():
    """Low resolution down to T_low; decode, enlarge, encode; fresh noise; high resolution from there."""
    low, high = gaussian(0.8, 0.5), gaussian(-1.5, 0.4)
    k = 5
    bridges = {(0, 1): lambda x: 3 * x.repeat(2, 2).repeat(2, 3)}

    def weights(sigma):
        return np.array([[1.0, 0.0], [1.0, 0.0]] if sigma > SIGMAS[k] else [[1.0, 0.0], [0.0, 1.0]])

    large = (*SHAPE[:2], 8, 8)

    def drawn_noise(i, draw):
        return np.random.default_rng([i, draw]).standard_normal(large if i else SHAPE)

    calls = [0, 0]

    def counted(i, member):
        def denoise(x, sigma, cond):
            calls[i] += 1
            return member(x, sigma, cond)

        return denoise

    coop = Coop([counted(0, low), counted(1, high)], bridges, weights)
    drawn = sample(SAMPLERS["euler"], coop, SIGMAS, 1, drawn_noise)
    assert calls == [k + 1, len(SIGMAS) - 1 - k]
    x = drawn_noise(0, 0) * np.sqrt(1 + SIGMAS[0] ** 2)
    x = SAMPLERS["euler"](lambda x, s: low(x, s, ()), x, SIGMAS[: k + 1])
    clean = bridges[0, 1](low(x, np.full(2, SIGMAS[k]), ()))
    z = clean + SIGMAS[k] * drawn_noise(1, 1)
    expected = SAMPLERS["euler"](lambda x, s: high(x, s, ()), z, SIGMAS[k:])
    np.testing.assert_allclose(drawn, expected, atol=1e-9)


def test_no_member_is_drawn_in_vain():
    fading = lambda sigma: np.array([[1.0, 0.0], [0.5, 0.5] if sigma > SIGMAS[4] else [0.0, 1.0]])  # noqa: E731
    steps = len(SIGMAS) - 1
    assert stages(fading, SIGMAS, 1) == [Stage(0, 4, (0, 1), ()), Stage(4, steps, (1,), ())]
    assert stages(fading, SIGMAS, 0) == [Stage(0, steps, (0,), ())]
    calls = []

    def guest(x, sigma, cond):
        calls.append(1)
        return gaussian(0.0, 1.0)(x, sigma, cond)

    sample(SAMPLERS["euler"], Coop([guest, gaussian(1.0, 0.5)], {(0, 1): lambda x: x}, fading), SIGMAS, 1, noise)
    assert len(calls) == 4


def test_the_callback_counts_through_the_stages():
    weights = lambda sigma: np.array([[1.0, 0.0], [1.0, 0.0] if sigma > SIGMAS[3] else [0.0, 1.0]])  # noqa: E731
    seen = []
    coop = Coop([gaussian(0.0, 1.0), gaussian(1.0, 0.5)], {(0, 1): lambda x: x}, weights)
    sample(SAMPLERS["euler"], coop, SIGMAS, 1, noise, lambda state: seen.append((state.step, state.steps)))
    assert seen == [(k, len(SIGMAS) - 1) for k in range(len(SIGMAS) - 1)]


def test_a_member_that_is_not_drawn_cannot_be_asked():
    coop = Coop([gaussian(0.0, 1.0)] * 2, {(1, 0): lambda x: x}, constant([[0.5, 0.5], [0.0, 1.0]]), drawn=[0])
    with pytest.raises(ValueError, match=r"members \[1\] are asked for at σ 2 but not drawn"):
        coop(Latents([np.zeros(SHAPE)]), np.full(2, 2.0))


def test_a_controls_effect_is_added_without_the_guests_own_picture():
    """Guests that are sure of g + e with their control and of g without: e is added to the host's picture, g is not."""
    members = [gaussian(1.0, 0.5), gaussian(7.0, 0.0), gaussian(4.0, 0.0)]  # host, guest with control, without
    bridges = {(1, 0): lambda x: 2 * x, (2, 0): lambda x: 2 * x}
    table = constant([[1, 0.5, -0.5], [0, 1, 0], [0, 0, 1]])
    looked = []

    def without(x, sigma, cond):
        looked.append(x)
        return members[2](x, sigma, cond)

    coop = Coop([*members[:2], without], bridges, table, beside={2: 1})
    assert stages(table, SIGMAS, 0, {2: 1}) == [Stage(0, len(SIGMAS) - 1, (0, 1), ())]
    drawn = sample(SAMPLERS["euler"], coop, SIGMAS, 0, noise)
    plain = gaussian(1.0, 0.5)
    expected = alone(lambda x, s, cond: plain(x, s, cond) + 0.5 * 2 * (7.0 - 4.0), SAMPLERS["euler"])
    np.testing.assert_allclose(drawn, expected, atol=1e-9)
    np.testing.assert_allclose(looked[0], noise(1, 0) * np.sqrt(1 + SIGMAS[0] ** 2))  # the guest's own latent
