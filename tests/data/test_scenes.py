"""Scenes say what they show: places, colours, captions in both languages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.data.examples import DataConfig, Examples
from mindpangu.data.scenes import ARRANGEMENTS, COLOURS, Mix, Scene, Thing, draw_things, nearest_colour, render
from mindpangu.images import parse_size, to_model, to_pictures
from tests.tiny import SAMPLE

SIZES = ("128x128", "160x96", "96x160", "256x64", "64x256")


@pytest.fixture(scope="module")
def examples():
    return Examples(DataConfig(SAMPLE, sizes=SIZES, size_weights=(1.0,) * 5, compositions=0.6))


@given(
    st.integers(0, 10**6),
    st.sampled_from(SIZES),
    st.integers(1, 3),
    st.sampled_from(sorted(COLOURS)),
    st.sampled_from((Mix(), Mix(0.5, 0.5), Mix(1.0, 0.0))),
)
@settings(max_examples=120, deadline=None)
def test_pictures_stand_where_the_scene_says(seed, size, count, background, mix):
    rng = np.random.default_rng(seed)
    width, height = parse_size(size)
    scene = Scene(width, height, background, draw_things(rng, (width, height), list(range(count)), True, mix))
    assert len(scene.things) == count
    assert len(scene.placed) == sum(thing.count for thing in scene.things)
    for one in scene.placed:
        thing = scene.things[one.picture]
        assert one.side / 2 - 1 <= one.x <= width - one.side / 2 + 1
        assert one.side / 2 - 1 <= one.y <= height - one.side / 2 + 1
        if thing.place == "left":
            assert one.x < width / 2
        if thing.place == "bottom":
            assert one.y > height / 2
    overlaps = [
        max(abs(a.x - b.x), abs(a.y - b.y)) + 1.5 < (a.side + b.side) / 2
        for i, a in enumerate(scene.placed)
        for b in scene.placed[i + 1 :]
    ]
    assert not any(overlaps)


def test_sizes_and_numbers_are_drawn_so():
    def side(count: int, size: str) -> int:
        return Scene(128, 128, "white", (Thing(0, "middle", count, size),)).placed[0].side

    assert side(1, "small") < 0.6 * side(1, "") < side(1, "") < side(1, "big") == 128
    assert [side(n, "") for n in ARRANGEMENTS] == sorted((side(n, "") for n in ARRANGEMENTS), reverse=True)


def test_only_what_is_counted_stands_there_several_times():
    things = draw_things(np.random.default_rng(0), (128, 128), [0, 1], True, Mix(1.0, 0.0), lambda i: i == 1)
    assert things[0].count == 1
    assert things[1].count > 1


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
        first = {examples.scene(i).things[0].picture for i in range(start, start + n)}
        assert first == set(range(n))


def test_training_never_sees_a_heldout_picture(examples):
    assert {r.split for r in examples.records} == {"train"}
    heldout = Examples(examples.config, "heldout")
    assert not {r.file for r in heldout.records} & {r.file for r in examples.records}


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
