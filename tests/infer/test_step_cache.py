"""Which steps compute deep features, and that a drawing with them is one."""

from __future__ import annotations

import numpy as np

from mindpangu.infer.pipeline import StepCache


class Recorder:
    """In the place of a SharedUNet: says what was asked of it."""

    def __init__(self):
        self.asked = []

    def with_deep(self, x):
        self.asked.append("whole")
        return x, f"deep of {x}"

    def reusing_deep(self, deep, x):
        self.asked.append(deep)
        return x


def test_deep_features_are_renewed_at_every_interval():
    recorder = Recorder()
    net = StepCache(recorder, 3)
    assert [net(i) for i in range(5)] == list(range(5))
    assert recorder.asked == ["whole", "deep of 0", "deep of 0", "whole", "deep of 3"]


def test_a_cached_drawing_differs_a_little_and_the_next_one_is_whole_again(model_folder):
    from mindpangu import PanGuDraw

    model = PanGuDraw.from_pretrained(model_folder)

    def draw(**options):
        return np.asarray(model("a fox", steps=4, seed=1, **options)[0].image, float)

    whole, cached = draw(), draw(cache_interval=2)
    assert 0 < np.abs(whole - cached).mean() < 40
    np.testing.assert_array_equal(draw(), whole)
