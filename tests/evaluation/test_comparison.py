"""Models side by side: a recipe's models make one row, and real pictures win."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindpangu.evaluation.comparison import BINS, Comparison, recipes, table
from mindpangu.evaluation.judge import Galleries, Pictures, prompt_for
from mindpangu.infer.pipeline import PanGuDraw
from tests.evaluation.test_judge import pixels
from tests.tiny import STYLES

SAMPLE = Path(__file__).parents[1] / "data" / "sample"


@pytest.fixture(scope="module")
def pictures():
    return Pictures.open(SAMPLE, tuple(STYLES), ("food-drink",))


def test_real_pictures_are_found_and_at_no_distance(pictures):
    trained = pictures.asked("train")
    small = {trained[0].file, trained[1].file}
    comparison = Comparison(pictures, Galleries(pictures, pixels), small)
    by_prompt = {prompt_for(r, x): pictures.render(r) for r in trained for x in ("en", "zh")}
    figures, drawn = comparison.measure(lambda prompts: [by_prompt[p] for p in prompts])
    assert figures["R@5"] == figures["R@5_large"] == figures["R@5_small"] == 1.0
    assert figures["frechet"] == pytest.approx(0, abs=1e-3 * np.square(comparison.real).sum(1).mean())
    assert len(drawn) == 2 * len(trained)
    # A model that draws the small pictures alone wrongly: that is where it shows.
    wrong = {prompt_for(r, x) for r in trained[:2] for x in ("en", "zh")}
    blank = np.full((128, 128, 3), 255, np.uint8)
    worse, _ = comparison.measure(lambda prompts: [blank if p in wrong else by_prompt[p] for p in prompts])
    assert worse["R@5_small"] < worse["R@5"] < 1.0 == worse["R@5_large"]
    assert worse["frechet"] > figures["frechet"]


def test_numbers_at_the_end_are_seeds_of_one_recipe():
    found = recipes(["boost-0", "t-500-0", "t-500-12", "emoji-128"])
    assert found == {"boost-0": ["boost-0"], "t-500": ["t-500-0", "t-500-12"], "emoji-128": ["emoji-128"]}
    figures = {
        "boost-0": {"R@5": 0.25, "frechet": 10.0},
        "mono-0": {"R@5": 0.5, "frechet": 30.0},
        "boost-1": {"R@5": 0.75, "frechet": 20.0},
    }
    lines = table(figures).splitlines()
    assert lines[0] == "|  | models | R@5 | Fréchet |"
    assert lines[2:] == ["| boost | 2 | 0.500 ± 0.354 | 15.0 ± 7.1 |", "| mono-0 | 1 | 0.500 | 30.0 |"]


def test_the_strip_shows_few_of_many_at_one_size():
    shown = Comparison.shown([np.full((64, 64, 3), 255, np.uint8)] * 50)
    assert shown.size == (12 * 128, 128)


def test_losses_are_of_large_small_and_held_out_pictures(pictures, model_folder, uncompiled):
    """An untrained net's velocity is no better than none, whose loss is that of the target."""
    trained = pictures.asked("train")
    comparison = Comparison(pictures, Galleries(pictures, pixels), {trained[0].file})
    losses = comparison.losses(PanGuDraw.from_pretrained(str(model_folder)))
    assert set(losses) == {"trained", "large", "small", "heldout"}
    assert all(len(one) == BINS for one in losses.values())
    count = len(trained)
    together = (np.array(losses["small"]) + (count - 1) * np.array(losses["large"])) / count
    np.testing.assert_allclose(losses["trained"], together, rtol=1e-5)
