"""Captions from templates: names, tags, style words, places and background colours, in English and Chinese."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindpangu.data.manifest import Record
from mindpangu.data.scenes import Scene
from mindpangu.data.sources import STYLES

LANGUAGES = ("en", "zh")

COLOUR_WORDS = {
    "white": "白色",
    "black": "黑色",
    "gray": "灰色",
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
}
PLACE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "left": ("on the left",),
        "right": ("on the right",),
        "top": ("at the top", "above"),
        "bottom": ("at the bottom", "below"),
        "middle": ("in the middle", "in the centre"),
    },
    "zh": {
        "left": ("在左边", "在左侧"),
        "right": ("在右边", "在右侧"),
        "top": ("在上面", "在上方"),
        "bottom": ("在下面", "在下方"),
        "middle": ("在中间", "在中央"),
    },
}
MEASURE_WORDS = {
    "animals-nature": ("一只", "一个"),
    "plant": ("一棵", "一朵", "一个"),
    "other": ("一个", "一个", "一件"),
}

STYLE_SHARE = 0.75  # captions that say the style
TAG_SHARE = 0.2  # captions of a lone picture that add a tag
WHITE_SHARE = 0.25  # captions that say a white background; any other colour is always said


def style_words(style: str, language: str) -> tuple[str, ...]:
    """How captions call a style, e.g. ("3D style",) or ("3D风格",)."""
    return STYLES[style].words_en if language == "en" else STYLES[style].words_zh


def caption(scene: Scene, records: Sequence[Record], language: str, rng: np.random.Generator) -> str:
    """One wording of what `scene` shows; `records[i]` describes picture i. All pictures of a scene share a style."""
    style = style_words(records[scene.placed[0].picture].style, language)
    style_word = _pick(style, rng) if rng.random() < STYLE_SHARE else ""
    says_colour = scene.background != "white" or rng.random() < WHITE_SHARE
    colour = scene.background if says_colour else ""
    things = []
    for one in scene.placed:
        record = records[one.picture]
        thing = _thing(record, language, rng)
        if scene.is_composition:
            thing = _at(thing, _pick(PLACE_WORDS[language][one.place], rng), language)
        elif rng.random() < TAG_SHARE and record.tags[language]:
            tag = _pick(record.tags[language], rng)
            thing += (", " if language == "en" else "，") + tag
        things.append(thing)
    return _join(things, style_word, colour, language, rng)


def _pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _thing(record: Record, language: str, rng: np.random.Generator) -> str:
    name = record.name[language]
    form = int(rng.integers(3))
    if language == "en":
        article = "an" if name[0].lower() in "aeiou" else "a"
        return (name, f"{article} {name}", f"{article} {name}")[form]
    kind = "plant" if record.subgroup.startswith("plant") else record.group
    return (name, name, _pick(MEASURE_WORDS.get(kind, MEASURE_WORDS["other"]), rng) + name)[form]


def _at(thing: str, place: str, language: str) -> str:
    return f"{thing} {place}" if language == "en" else f"{thing}{place}"


def _join(things: Sequence[str], style: str, colour: str, language: str, rng: np.random.Generator) -> str:
    if language == "en":
        joint = " and " if len(things) == 2 and rng.random() < 0.3 else ", "
        text = joint.join(things)
        if style and rng.random() < 0.2:
            text = f"{style}, {text}"
            style = ""
        if colour and rng.random() < 0.5:
            article = "an" if colour[0] in "aeiou" else "a"
            text += f" on {article} {colour} background"
            colour = ""
        endings = [f"{colour} background" if colour else "", style]
        return ", ".join([text, *_shuffled(endings, rng)])
    comma = _pick(("，", ", "), rng)
    text = comma.join(things)
    if style and rng.random() < 0.2:
        text = f"{style}的{text}"
        style = ""
    word = COLOUR_WORDS.get(colour, "")
    endings = [_pick((f"{word}背景", f"{word}的背景"), rng) if word else "", style]
    return comma.join([text, *_shuffled(endings, rng)])


def _shuffled(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [words[i] for i in rng.permutation(len(words)) if words[i]]
