"""Scenes say what they show: places, colours, captions in both languages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.data.captions import COLOUR_WORDS, PLACE_WORDS, caption
from mindpangu.data.examples import DataConfig, Examples, parse_size, to_model, to_pictures
from mindpangu.data.scenes import CENTRES, COLOURS, draw_scene, nearest_colour, render
from tests.tiny import SAMPLE

SIZES = ("128x128", "160x96", "96x160", "256x64", "64x256")


@pytest.fixture(scope="module")
def examples():
    return Examples(DataConfig(SAMPLE, sizes=SIZES, size_weights=(1.0,) * 5, compositions=0.6))


@given(st.integers(0, 10**6), st.sampled_from(SIZES), st.integers(1, 3), st.sampled_from(sorted(COLOURS)))
@settings(max_examples=80, deadline=None)
def test_pictures_stand_where_the_scene_says(seed, size, count, background):
    rng = np.random.default_rng(seed)
    width, height = parse_size(size)
    scene = draw_scene(rng, (width, height), list(range(count)), True, background)
    assert len(scene.placed) == count
    for one in scene.placed:
        assert one.side / 2 - 1 <= one.x <= width - one.side / 2 + 1
        assert one.side / 2 - 1 <= one.y <= height - one.side / 2 + 1
        if one.place == "left":
            assert one.x < width / 2
        if one.place == "bottom":
            assert one.y > height / 2
    overlaps = [
        max(abs(a.x - b.x), abs(a.y - b.y)) + 1.5 < (a.side + b.side) / 2
        for i, a in enumerate(scene.placed)
        for b in scene.placed[i + 1 :]
    ]
    assert not any(overlaps)


def test_an_example_is_a_function_of_seed_and_index(examples):
    again = Examples(examples.config)
    other = Examples(examples.config, seed=1)
    for i in (0, 7, 1000):
        assert examples.scene(i) == again.scene(i)
        assert examples.caption(examples.scene(i), i) == again.caption(again.scene(i), i)
    assert any(examples.scene(i) != other.scene(i) for i in range(5))


def test_each_round_shows_every_picture_once(examples):
    n = len(examples.records)
    for start in (0, n):
        first = {examples.scene(i).placed[0].picture for i in range(start, start + n)}
        assert first == set(range(n))


def test_training_never_sees_a_heldout_picture(examples):
    assert {r.split for r in examples.records} == {"train"}
    heldout = Examples(examples.config, "heldout")
    assert not {r.file for r in heldout.records} & {r.file for r in examples.records}


def test_captions_name_what_is_there(examples):
    for i in range(200):
        scene = examples.scene(i)
        for language in ("en", "zh"):
            text = examples.caption(scene, i, language)
            for one in scene.placed:
                assert examples.records[one.picture].name[language] in text
                if scene.is_composition:
                    assert any(words in text for words in PLACE_WORDS[language][one.place])
            if scene.background != "white":
                assert (scene.background if language == "en" else COLOUR_WORDS[scene.background]) in text


def test_captions_vary(examples):
    scene = next(s for s in map(examples.scene, range(99)) if not s.is_composition)
    rng = np.random.default_rng(0)
    assert len({caption(scene, examples.records, "zh", rng) for _ in range(40)}) > 5


def test_rendering_has_the_background_and_the_size(examples):
    for i in range(20):
        scene = examples.scene(i)
        image = render(scene, examples.picture)
        assert image.shape == (scene.height, scene.width, 3)
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert nearest_colour(np.median(corners, axis=0)) == scene.background


def test_model_range_and_back(examples):
    image = examples.image(examples.scene(3, (128, 128)))
    batch = to_model([image])
    assert batch.shape == (1, 3, 128, 128)
    assert batch.min() >= -1
    assert batch.max() <= 1
    np.testing.assert_array_equal(to_pictures(batch)[0], image)


@pytest.mark.parametrize("text", ["128", "0x128", "axb", "128x", "-1x5"])
def test_a_size_that_is_none(text):
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_every_place_has_words_and_a_centre():
    for language in ("en", "zh"):
        assert set(PLACE_WORDS[language]) == set(CENTRES)
    assert set(COLOUR_WORDS) == set(COLOURS)
