"""The natural prompts: many, by hand, in many manners, and out of reach of the caption templates."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mindpangu.data.lexicon import natural_prompts, nouns, plural_of
from mindpangu.data.phrases import (
    ASIDES_AFTER,
    ASIDES_BEFORE,
    BACKGROUNDS,
    COLOUR_WORDS,
    FRAMES,
    LANGUAGES,
    NUMBERS,
    OPINIONS,
    PARTS,
    PLACE_WORDS,
    SEVERAL,
    SIZE_WORDS,
    STYLE_FORMS,
    style_words,
)
from mindpangu.data.sources import STYLES


def either(words) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True)) + ")"


def slots(form: str, inside: str) -> str:
    return re.escape(form).replace(r"\{0\}", inside).replace(r"\{\}", inside).replace(r"\{a\}", "an?")


def grammar(language: str) -> re.Pattern:
    """All that the caption templates can say of one thing, typing errors apart, as a regular expression."""
    en = language == "en"
    names: set[str] = set()
    for noun in nouns().values():
        names |= {noun.emoji, noun.plural or "", *noun.name.values(), *noun.other["en"], *noun.other["zh"]}
    names |= {plural_of(name) for name in names if name.isascii()}
    colours = either(list(COLOUR_WORDS) if en else list(COLOUR_WORDS.values()))
    measures = either({"个", *(noun.measure for noun in nouns().values())})
    sizes = either(word for words in SIZE_WORDS[language].values() for word in words)
    numbers = either([*(w for words in NUMBERS[language].values() for w in words), *SEVERAL[language]])
    parts = "(?:" + "|".join(slots(form, colours) for form in PARTS[language]) + ")"
    if en:
        head = f"(?:(?:an?|the|one|some|{numbers}) )?"
        told = f"(?:{either([*ASIDES_BEFORE['en'], *OPINIONS['en']])} ){{0,2}}(?:{sizes} )?(?:{colours} )?"
        thing = f"{head}{told}{either(names)}(?: {parts})?(?: {either(ASIDES_AFTER['en'])})?"
    else:
        head = f"(?:(?:一|这|1|{numbers}){measures})?"
        told = f"{either([*ASIDES_BEFORE['zh'], *OPINIONS['zh']])}{{0,2}}{sizes}?(?:{colours}的)?{parts}?"
        thing = f"{head}{told}{either(names)}{either(ASIDES_AFTER['zh'])}?"
    place = either(word for words in PLACE_WORDS[language].values() for word in words)
    thing = f"{thing}(?: ?{place})?"
    frames = "(?:" + "|".join([thing, *(slots(form, thing) for form in FRAMES[language])]) + ")"
    style = either(word for one in STYLES for word in style_words(one, language))
    styled = "(?:" + "|".join(slots(form, style) for form in STYLE_FORMS[language]) + ")"
    ground = "(?:" + "|".join(slots(form, colours) for form in BACKGROUNDS[language]) + ")"
    end = f"(?:(?:,| |，|、)+(?:{styled}|{ground}))*"
    return re.compile(f"(?:{style}(?:: |的))?{frames}{end}", re.IGNORECASE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_caption_template_can_make_one(language):
    whole = grammar(language)
    example = {"en": "draw me a cute fox in 3D style, blue background", "zh": "请画一只可爱的狐狸，蓝色背景"}[language]
    assert whole.fullmatch(example), "the grammar does not know its own captions"
    made = [p.prompt for p in natural_prompts() if p.language == language and whole.fullmatch(p.prompt)]
    assert not made


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_many_of_many_manners(language):
    asked = [p for p in natural_prompts() if p.language == language]
    assert len(asked) >= 200
    assert len({p.prompt for p in asked}) == len(asked)
    assert max(Counter(p.concepts for p in asked).values()) <= 6
    assert {p.style for p in asked} - {""} <= set(STYLES)
    assert all(concept in nouns() for p in asked for concept in p.concepts)
