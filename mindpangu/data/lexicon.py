"""How people call the things of the emoji data set: other names, plurals, measure words, the emoji itself.

`names.tsv`, written by hand: a line a concept with its emoji, its names (those of the data set), the plural of the
English one (empty: by the rules of `plural_of`; "-": it is not counted, or is many already), the Chinese measure word,
and other names in either language, ";" between. A concept that it does not have has its own name alone.
`natural_prompts.tsv`: prompts as people write them, for measuring.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Optional

from mindpangu.data.manifest import Record

TABLE = Path(__file__).parent / "names.tsv"
NATURAL = Path(__file__).parent / "natural_prompts.tsv"  # written by hand, for measuring; no template makes them
NOT_COUNTED = "-"
VARIATION_SELECTOR = "\ufe0f"
IRREGULAR = {
    "man": "men",
    "woman": "women",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "die": "dice",
    "ox": "oxen",
    **dict.fromkeys(("sheep", "fish", "deer", "moose", "bison", "squid", "shrimp"), ""),
}
ENDINGS = (("lf", "lves"), ("knife", "knives"), ("leaf", "leaves"), ("scarf", "scarves"))
MORE_OF_THE_NAME = re.compile(
    r" (?:of|with|in|on|from|for|that|coming|blowing|without|behind|to|tilted|showing|facing) "
)


@dataclass(frozen=True)
class Noun:
    """`other`: other names, by language. `plural`: of the English name, None where it is not counted."""

    emoji: str
    name: dict[str, str]
    other: dict[str, tuple[str, ...]]
    plural: Optional[str]
    measure: str

    @property
    def countable(self) -> bool:
        """Whether there can be three of it."""
        return self.plural is not None

    def plural_of(self, name: str) -> str:
        """The plural of the English name, or of another one."""
        return self.plural if name == self.name["en"] and self.plural else plural_of(name)


def emoji_of(concept: str) -> str:
    """ "1f98a" -> the fox, without variation selectors."""
    return "".join(chr(int(part, 16)) for part in concept.split("-"))


def noun(record: Record) -> Noun:
    """What a picture's concept is called."""
    known = nouns().get(record.concept)
    if known is None:
        return Noun(emoji_of(record.concept), record.name, {"en": (), "zh": ()}, None, "个")
    return replace(known, name=record.name)


@lru_cache(maxsize=1)
def nouns() -> dict[str, Noun]:
    """Those of names.tsv, by concept."""
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]:
        emoji, name_en, name_zh, plural, measure, en, zh = line.split("\t")
        concept = concept_of(emoji)
        other = {"en": tuple(en.split(";")), "zh": tuple(zh.split(";"))}
        many = {NOT_COUNTED: None, "": plural_of(name_en)}.get(plural, plural)
        found[concept] = Noun(emoji_of(concept), {"en": name_en, "zh": name_zh}, other, many, measure)
    return found


def concept_of(emoji: str) -> str:
    """The fox -> "1f98a"; variation selectors are left out."""
    return "-".join(f"{ord(c):x}" for c in emoji if c != VARIATION_SELECTOR)


def plural_of(name: str) -> str:
    """The plural of an English name: "bowl of rice" -> "bowls of rice"."""
    more = MORE_OF_THE_NAME.search(name)
    head, rest = (name[: more.start()], name[more.start() :]) if more else (name, "")
    before, space, last = head.rpartition(" ")
    if last.lower() in IRREGULAR:
        return before + space + (IRREGULAR[last.lower()] or last) + rest
    for ending, plural in ENDINGS:
        if last.endswith(ending):
            return before + space + last[: -len(ending)] + plural + rest
    if last.endswith("man"):
        last = last[:-3] + "men"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    else:
        last += "s"
    return before + space + last + rest


@dataclass(frozen=True)
class NaturalPrompt:
    """`concepts`: what may be drawn for it, code points as in a manifest; `style`: the style asked for, or ""."""

    language: str
    concepts: tuple[str, ...]
    style: str
    prompt: str


@lru_cache(maxsize=1)
def natural_prompts() -> tuple[NaturalPrompt, ...]:
    """The prompts of natural_prompts.tsv: language, emoji that are right answers (spaces between), style, prompt."""
    rows = [line.split("\t") for line in NATURAL.read_text(encoding="utf-8").splitlines()[1:]]
    return tuple(
        NaturalPrompt(language, tuple(map(concept_of, emoji.split(" "))), style, prompt)
        for language, emoji, style, prompt in rows
    )
