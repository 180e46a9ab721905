"""Noise schedules: inverses, known values, monotony."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.diffusion import NoiseSchedule, ScheduleSpec, karras_sigmas, uniform_sigmas

KINDS = ("scaled_linear", "linear", "cosine")


@pytest.mark.parametrize("kind", KINDS)
def test_sigma_grows_with_t(kind):
    schedule = NoiseSchedule(ScheduleSpec(kind=kind))
    assert (np.diff(schedule.sigma(np.linspace(0, 999, 3001))) > 0).all()


@given(st.sampled_from(KINDS), st.floats(0, 999))
def test_t_is_the_inverse_of_sigma(kind, t):
    schedule = NoiseSchedule(ScheduleSpec(kind=kind))
    assert abs(float(schedule.t(schedule.sigma(np.float64(t)))) - t) < 1e-6


@given(st.sampled_from(KINDS), st.integers(0, 999))
def test_alpha_bar_is_the_table_at_whole_steps(kind, t):
    schedule = NoiseSchedule(ScheduleSpec(kind=kind))
    assert float(schedule.alpha_bar(np.float64(t))) == pytest.approx(float(schedule.alphas_cumprod[t]), rel=1e-9)


def test_the_releases_numbers():
    """Measured in the released model: σ 0.029 … 14.615, σ(500) = 1.618, ᾱ(500) = 0.276."""
    schedule = NoiseSchedule(ScheduleSpec())
    assert schedule.sigma_min == pytest.approx(0.029, abs=5e-4)
    assert schedule.sigma_max == pytest.approx(14.615, abs=5e-3)
    assert float(schedule.sigma(np.float64(500))) == pytest.approx(1.618, abs=5e-3)
    assert float(schedule.alpha_bar(np.float64(500))) == pytest.approx(0.276, abs=2e-3)


@given(st.integers(1, 200), st.booleans())
def test_sigma_lists_fall_to_zero(steps, karras):
    schedule = NoiseSchedule(ScheduleSpec())
    sigmas = (karras_sigmas if karras else uniform_sigmas)(schedule, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(schedule.sigma_max)
    assert sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()


def test_a_wrong_spec_is_refused():
    with pytest.raises(ValueError, match="beta_start"):
        ScheduleSpec(beta_start=0.5, beta_end=0.1)


def test_zero_terminal_snr_leaves_nothing_of_the_picture_at_the_last_t():
    """As diffusers' rescale_zero_terminal_snr, but that σ stays finite."""
    plain, zero = (NoiseSchedule(ScheduleSpec(zero_terminal_snr=flag)) for flag in (False, True))
    root = np.sqrt(plain.alphas_cumprod)
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(zero.alphas_cumprod[:-1], expected[:-1], rtol=1e-9)
    assert zero.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0])
    assert 4000 < zero.sigma_max < 5000 and (np.diff(zero.log_sigmas) > 0).all()
