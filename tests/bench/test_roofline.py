"""The roofline is a maximum of three bounds, and no faster than the peak."""

from __future__ import annotations

import pytest

from mindpangu.bench.roofline import CHIPS, PANGU, SIDE, TOKENS, Chip, forward_seconds, groups, train_step_seconds
from mindpangu.cost.flops import Layer, unet_layers


def test_a_layer_takes_its_slowest_bound():
    chip = Chip("one", cube=100.0, vector=10.0, memory=4.0)
    assert chip.seconds(Layer("a", "dense", (), 0, 300, 10, 1, 1)) == (3.0, "cube")
    assert chip.seconds(Layer("b", "norm", (), 0, 0, 50, 1, 1)) == (5.0, "vector")
    assert chip.seconds(Layer("c", "norm", (), 0, 100, 10, 4, 4)) == (4.0, "memory")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_release_is_never_faster_than_its_flops(chip):
    layers = list(unet_layers(PANGU, 1, SIDE, SIDE, TOKENS))
    grouped = groups(layers, chip)
    assert sum(group.count for group in grouped) == len(layers)
    assert sum(group.seconds for group in grouped) == pytest.approx(forward_seconds(PANGU, 1, chip))
    assert forward_seconds(PANGU, 1, chip) > sum(layer.flops for layer in layers) / chip.cube
    assert all(group.share_of_peak <= 1 for group in grouped)
    assert train_step_seconds(PANGU, 4, chip) > 3 * forward_seconds(PANGU, 4, chip)


def test_peaks_are_the_published_ones():
    assert CHIPS["910b"].cube == pytest.approx(353.9e12, rel=1e-3)
    assert CHIPS["910a"].cube == pytest.approx(262.1e12, rel=1e-3)
