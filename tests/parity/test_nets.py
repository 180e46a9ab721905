"""Our nets compute diffusers' numbers, in the layout of every family, from the same weights by the name tables."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime

runtime.start("CPU")

from mindspore import GRAPH_MODE, PYNATIVE_MODE, set_context  # noqa: E402

from mindpangu.selftest import nets  # noqa: E402
from mindpangu.selftest.check import error  # noqa: E402
from mindpangu.selftest.narrow import TEXTS, UNETS, VAES, golden  # noqa: E402

TOLERANCE = 1e-5  # of the largest value


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32 throughout; without graphs, whose compilation would take longer than these nets."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    set_context(mode=PYNATIVE_MODE)
    yield
    set_context(mode=GRAPH_MODE)


def check(found):
    """Each output is the peer's."""
    for key, value in found.items():
        assert error(value, golden()[key].astype(np.float64)) <= TOLERANCE, key


@pytest.mark.parametrize("family", sorted(UNETS))
def test_unet(family):
    check(nets.unet(family))


@pytest.mark.parametrize("family", sorted(VAES))
def test_vae(family):
    check(nets.vae(family))


@pytest.mark.parametrize("family", sorted(TEXTS))
def test_text_encoder(family):
    check(nets.text(family))


def test_transformer_block_at_full_width():
    check(nets.transformer_block())


def test_vae_middle_at_full_width():
    check(nets.vae_middle())
