"""The measuring rods themselves: perfect pictures score one, empty ones score nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindpangu.data.scenes import Scene, Thing
from mindpangu.errors import UserError
from mindpangu.evaluation.judge import (
    Galleries,
    Pictures,
    composition_prompt,
    counts_prompt,
    is_blank,
    judge_compositions,
    judge_counts,
    judge_natural,
    judge_pairs,
    prompt_for,
    round_trip,
    shapes_on_ground,
)
from mindpangu.evaluation.noise_levels import judge_noise_levels
from mindpangu.images import to_model
from mindpangu.infer.pipeline import PanGuDraw
from tests.tiny import STYLES

SAMPLE = Path(__file__).parents[1] / "data" / "sample"


def pixels(pictures):
    """Features of a judge that looks at 8×8 pixels."""
    small = [Image.fromarray(p).resize((8, 8), Image.Resampling.BOX) for p in pictures]
    return np.stack([np.asarray(p, np.float32).ravel() for p in small])


@pytest.fixture(scope="module")
def pictures():
    return Pictures.open(SAMPLE, tuple(STYLES), None)


def test_real_pictures_are_recognised_and_blank_ones_are_not(pictures):
    galleries = Galleries(pictures, pixels)
    chosen = pictures.records[:20]
    assert galleries.recall(chosen, [pictures.render(r) for r in chosen]) == {"R@1": 1.0, "R@5": 1.0}
    blank = [np.full((128, 128, 3), 255, np.uint8)] * len(chosen)
    assert galleries.recall(chosen, blank)["R@1"] < 0.2


def test_the_gallery_is_everything_and_only_some_groups_are_asked_for(pictures):
    some = Pictures.open(SAMPLE, tuple(STYLES), ("food-drink",))
    assert some.records == pictures.records
    assert {r.group for r in some.asked("train")} == {"food-drink"}
    assert {r.group for r in pictures.asked("train")} > {"food-drink"}
    with pytest.raises(UserError, match=r"no pictures of group foods; there are .*food-drink"):
        Pictures.open(SAMPLE, tuple(STYLES), ("foods",))


def test_pairs_are_judged_beside_their_yardsticks(pictures, model_folder):
    by_prompt = {prompt_for(r, x): r for r in pictures.records for x in ("en", "zh")}
    result = judge_pairs(
        PanGuDraw.from_pretrained(str(model_folder)),
        pictures,
        Galleries(pictures, pixels),
        "train",
        10,
        0,
        lambda prompts: [pictures.render(by_prompt[p]) for p in prompts],
    )
    assert result["pairs"] == 10
    assert result["drawn_en"] == result["drawn_zh"] == {"R@1": 1.0, "R@5": 1.0}
    assert result["other_artist"]["R@1"] < 1.0
    assert 0 <= result["ceiling"]["R@5"] <= 1  # an untrained autoencoder


def test_compositions_of_real_pictures_pass_and_blank_ones_do_not(pictures):
    blank = np.full((128, 128, 3), 255, np.uint8)
    result = judge_compositions(pictures, pixels, 16, 0, lambda prompts: [blank] * len(prompts))
    assert result["real"]["background"] == 1.0
    assert result["real"]["picture_at_place"] > 0.9
    assert result["drawn_en"]["background"] == 0.25  # white is one colour of four
    assert result["drawn_zh"]["all_right"] < 0.1


def test_composition_prompts_read_like_the_captions():
    assert (
        composition_prompt(["fox", "tree"], ["left", "right"], "fluent_3d", "blue", "en")
        == "a fox on the left, a tree on the right, blue background, 3D style"
    )
    zh = composition_prompt(["狐狸", "树"], ["left", "right"], "fluent_3d", "blue", "zh")
    assert zh == "狐狸在左边，树在右边，蓝色背景，3D风格"


def test_counts_are_right_where_the_scene_is_drawn_and_wrong_where_another_is(pictures):
    """A perfect system scores 1, one that draws a single copy 0."""
    asked = {}
    for record in pictures.asked("train"):
        for number in (2, 3, 4):
            for colour in ("white", "blue", "yellow", "green"):
                for language in ("en", "zh"):
                    asked[counts_prompt(record, number, colour, language)] = (record, number, colour)

    def draw(prompts, most=9):
        scenes = []
        for prompt in prompts:
            record, number, colour = asked[prompt]
            thing = Thing(pictures.places[record.file], count=min(number, most))
            scenes.append(pictures.examples["train"].image(Scene(128, 128, colour, (thing,))))
        return scenes

    perfect = judge_counts(pictures, pixels, 8, 0, draw)
    assert perfect["scenes"] > 2
    assert perfect["drawn_en"] == perfect["drawn_zh"] == {"copy_at_place": 1.0, "number": 1.0, "all_right": 1.0}
    single = judge_counts(pictures, pixels, 8, 0, lambda prompts: draw(prompts, 1))
    assert single["drawn_en"]["number"] == single["drawn_en"]["all_right"] == 0


def test_shapes_are_counted_and_blank_pictures_known():
    picture = np.full((128, 128, 3), 250, np.uint8)
    assert is_blank(picture)
    assert shapes_on_ground(picture) == 0
    for left in (10, 60, 100):
        picture[50:70, left : left + 15] = (200, 30, 30)
    picture[5:8, 5:8] = 0  # a speck
    assert shapes_on_ground(picture) == 3
    assert not is_blank(picture)


def test_natural_wording_stands_beside_template_wording(pictures):
    """A system that knows what is meant scores as well in both; one that draws nothing scores nothing."""
    from mindpangu.data.lexicon import natural_prompts

    known = {r.concept: r for r in pictures.asked("train")}
    meant = {p.prompt: next((known[c] for c in p.concepts if c in known), None) for p in natural_prompts()}
    plain = {record.name[x]: record for record in known.values() for x in ("en", "zh")}

    def draw(prompts):
        found = [meant.get(p) or plain.get(p) or plain.get(p.split(",")[0]) for p in prompts]
        return [pictures.render(record) for record in found]

    result = judge_natural(pictures, Galleries(pictures, pixels), draw)
    for language in ("en", "zh"):
        assert result[language]["prompts"] > 0
        assert result[language]["natural"]["R@1"] == result[language]["template"]["R@1"] == 1
        assert result[language]["ratio"] == 1
        assert not result[language]["missed"]


def test_a_model_that_denoises_perfectly_loses_nothing_at_any_noise_level(pictures, model_folder, monkeypatch):
    """Each level begins at its own σ, from the picture asked for, with the expert that draws there."""
    from mindspore import Tensor

    model = PanGuDraw.from_pretrained(str(model_folder))
    galleries = Galleries(pictures, pixels)
    by_prompt = {prompt_for(r, "en"): r for r in pictures.records}
    begun, asked = [], {}

    class Knowing:
        """Answers with the clean latent of what the prompt asks for."""

        def __init__(self, request, prompts):
            self.clean = model.vae.encode(Tensor(to_model([pictures.render(by_prompt[p]) for p in prompts])))
            asked.update(dict.fromkeys(prompts))
            self.called = False

        def __call__(self, x, sigma, cond=()):
            if not self.called:
                begun.append((float(sigma[0]), float((x - self.clean).asnumpy().std())))
            self.called = True
            return self.clean

    monkeypatch.setattr(model, "guided", Knowing)
    rows = list(judge_noise_levels(model, pictures, galleries, count=18, levels=3, steps=6, seed=0))
    assert [(row["t"], row["expert"]) for row in rows] == [(200, "texture"), (599, "structure"), (999, "structure")]
    chosen = [by_prompt[prompt] for prompt in asked]
    whole = galleries.recall(chosen, round_trip(model, [pictures.render(r) for r in chosen]))
    assert all({key: row[key] for key in whole} == whole for row in rows)
    for sigma, deviation in begun[:4]:
        assert deviation == pytest.approx(sigma, rel=0.03)
    assert sorted({round(sigma, 2) for sigma, _ in begun}) == [0.57, 2.28, 14.61]


def test_features_of_real_pictures_are_kept_for_the_next_run(pictures, tmp_path):
    """By what the pictures show: a picture that has changed is judged anew, and no other."""
    seen = []

    class Judge:
        name = "pixels"

        def __call__(self, images):
            seen.append(len(images))
            return pixels(images)

    kept = tmp_path / "judge.safetensors"
    some = replace(pictures, records=pictures.records[:4])
    first = Galleries(some, Judge(), kept)
    again = Galleries(pictures, Judge(), kept)
    assert seen == [4, len(pictures.records) - 4]
    Galleries(pictures, Judge(), kept)
    assert len(seen) == 2
    np.testing.assert_array_equal(first.features(some.records), again.features(some.records))
