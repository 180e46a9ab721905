"""What a caption says is true of its picture, in both languages; and captions are as varied as people."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from mindpangu.data import captions
from mindpangu.data.examples import DataConfig, Examples
from mindpangu.data.lexicon import noun
from mindpangu.data.palette import SOME, names_of
from mindpangu.data.phrases import (
    COLOUR_WORDS,
    FRAMES,
    LANGUAGES,
    NUMBERS,
    PLACE_WORDS,
    RELATIONS,
    SEVERAL,
    SIZE_WORDS,
    style_words,
)
from mindpangu.data.scenes import CENTRES, COLOURS
from mindpangu.data.sources import STYLES
from tests.tiny import SAMPLE

SIZES = ("128x128", "160x96", "96x160", "256x64", "64x256")
SCENES = 600
GROUND_ZH = r"背景是(..)|(..)(?:的背景|背景(?!是)|的底)"
SLACK = 0.7  # of a colour's share: a picture in a scene is smaller than the one whose colours were counted


@pytest.fixture(scope="module")
def examples():
    mixed = DataConfig(SAMPLE, None, None, 0, SIZES, (1.0,) * 5, compositions=0.5, counts=0.4, stated_sizes=0.4)
    return Examples(mixed)


def without_names(text: str, examples: Examples, scene) -> str:
    """The caption without what its things and their style are called: "small airplane" and "three-dimensional" claim
    no size and no number."""
    names = set()
    for thing in scene.things:
        one = examples.captions.nouns[thing.picture]
        for name in (*one.name.values(), *one.other["en"], *one.other["zh"]):
            names |= {name, one.plural_of(name)}
        names |= set(style_words(examples.records[thing.picture].style, "en"))
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b" if name.isascii() else re.escape(name), "\N{WHITE SQUARE}", text)
    return text


def says(text: str, words) -> bool:
    return any(re.search(rf"\b{re.escape(w)}\b" if w.isascii() else re.escape(w), text) for w in words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_caption_says_is_true(examples, language, monkeypatch):
    monkeypatch.setattr(examples.captions, "typos", 0.0)
    monkeypatch.setattr(captions, "LIST_SHARE", 0.0)  # lists have tags, which may be any word
    said: Counter = Counter()
    for i in range(SCENES):
        scene = examples.scene(i)
        text = without_names(examples.caption(scene, i, language), examples, scene)
        things, style = scene.things, examples.records[scene.things[0].picture].style

        # The background.
        ground = re.findall(r"background is (\w+)|(\w+) background\b(?! is)" if language == "en" else GROUND_ZH, text)
        for colour in filter(None, (word for pair in ground for word in pair)):
            assert colour == (scene.background if language == "en" else COLOUR_WORDS[scene.background]), text
            said["background"] += 1
        assert ground or scene.background == "white" or language == "zh", text

        # Numbers, sizes, places.
        for number, words in NUMBERS[language].items():
            measures = {examples.captions.nouns[t.picture].measure for t in things} | {"个"}
            counted = words if language == "en" else [f"{word}{measure}" for word in words for measure in measures]
            if says(text, counted):
                assert any(thing.count == number for thing in things), text
                said["number"] += 1
        if says(text, SEVERAL[language]) and not (language == "en" and re.search(r"with some|has some", text)):
            uncounted = [t for t in things if not examples.captions.nouns[t.picture].countable]
            assert uncounted or any(thing.count > 2 for thing in things), text
        for size, words in SIZE_WORDS[language].items():
            if says(text, [w.rstrip("的") for w in words]):
                assert any(thing.size == size for thing in things), text
                said["size"] += 1
        for place in ("left", "right", "top", "bottom"):
            if says(text, PLACE_WORDS[language][place]) and scene.is_composition:
                both = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[place]
                assert {place, both} & {thing.place for thing in things}, text
                said["place"] += 1

        # The style: none but its own.
        for other in STYLES:
            alone = set(style_words(other, language)) - set(style_words(style, language))
            assert not (other != style and says(text, alone - {"3D"})), text

        # Colours of things, measured in the picture that the model is shown.
        image = examples.image(scene)
        inked = image[(image != COLOURS[scene.background]).any(-1)]
        shares = Counter(names_of(inked)) if len(inked) else Counter()
        anything = "|".join(COLOUR_WORDS if language == "en" else COLOUR_WORDS.values())
        said_of_ground = (
            f"background is ({anything})|({anything}) background|背景是({anything})|({anything})的?(背景|底)"
        )
        coloured = re.sub(said_of_ground, "", text)
        if len(things) == 1:
            for colour, chinese in COLOUR_WORDS.items():
                if says(coloured, [colour] if language == "en" else [chinese]):
                    assert shares[colour] >= SLACK * SOME * len(inked), (text, colour, shares)
                    said["colour"] += 1
    assert min(said[what] for what in ("background", "number", "size", "place", "colour")) > 5, said


def test_left_is_left(examples):
    """Of the two things of a caption, the one that is said to stand left does."""
    checked = 0
    for i in range(4 * SCENES):
        scene = examples.scene(i)
        if len(scene.things) != 2 or scene.things[0].place != "left":
            continue
        text = examples.caption(scene, i, "en")
        names = [examples.captions.nouns[t.picture].name["en"] for t in scene.things]
        told = re.search(rf"{re.escape(names[0])}.* to the (left|right) of .*{re.escape(names[1])}", text)
        turned = re.search(rf"{re.escape(names[1])}.* to the (left|right) of .*{re.escape(names[0])}", text)
        if names[0] in names[1] or names[1] in names[0]:
            continue
        checked += bool(told) + bool(turned)
        assert told is None or told[1] == "left", text
        assert turned is None or turned[1] == "right", text
    assert checked > 3


def test_captions_vary(examples):
    scene = next(s for s in map(examples.scene, range(99)) if not s.is_composition)
    for language in LANGUAGES:
        wordings = {examples.captions(scene, language, np.random.default_rng(i)) for i in range(200)}
        assert len(wordings) > 120
        assert len(FRAMES[language]) >= 40


def test_every_picture_is_called_by_more_than_its_name(examples):
    record = next(r for r in examples.records if noun(r).other["en"])
    names = {record.name["en"], *noun(record).other["en"], noun(record).emoji}
    assert len(names) > 2


def test_the_plainest_words_are_what_the_judge_asks_for(examples):
    lone = next(s for s in map(examples.scene, range(99)) if not s.is_composition and s.things[0].count == 1)
    plain = examples.captions.plain(lone, "en")
    assert examples.captions.nouns[lone.things[0].picture].name["en"] in plain
    assert plain == examples.captions.plain(lone, "en")


def test_every_place_has_words_and_a_centre():
    for language in LANGUAGES:
        assert set(PLACE_WORDS[language]) == set(CENTRES)
        assert set(RELATIONS[language]) == {"left", "right", "top", "bottom"}
    assert set(COLOUR_WORDS) == set(COLOURS)


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("fox", "foxes"),
        ("strawberry", "strawberries"),
        ("slice of pizza", "slices of pizza"),
        ("maple leaf", "maple leaves"),
        ("mouse", "mice"),
        ("snowman", "snowmen"),
        ("sheep", "sheep"),
        ("horse with a horn", "horses with a horn"),
        ("key", "keys"),
        ("kitchen knife", "kitchen knives"),
    ],
)
def test_plurals(singular, plural):
    from mindpangu.data.lexicon import plural_of

    assert plural_of(singular) == plural
