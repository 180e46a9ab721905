"""Captions as people write them, in English and Chinese: names and other names, frames, numbers, places, colours.

Whatever a caption says of its scene is true of it: which things, how many, how large, where, on which background, in
which style, and which colours a thing has. The frames are ways of asking ("draw me …"), not claims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from mindpangu.data.lexicon import Noun, noun
from mindpangu.data.manifest import Record
from mindpangu.data.palette import Palette
from mindpangu.data.phrases import (
    ASIDES_AFTER,
    ASIDES_BEFORE,
    BACKGROUNDS,
    COLOUR_WORDS,
    FRAMES,
    NUMBERS,
    OPINIONS,
    PARTS,
    PLACE_WORDS,
    RELATIONS,
    SEVERAL,
    SIZE_WORDS,
    STYLE_FORMS,
    style_words,
)
from mindpangu.data.scenes import Scene, Thing

# Shares of captions, or of things, that say something, or say it in a way.
STYLE_SHARE = 0.7
WHITE_SHARE = 0.2  # of white backgrounds that are said; any other colour always is
PLAIN_SHARE = 0.2  # names, places and style in the plainest way, as `eval judge`'s template wording has them
FRAME_SHARE = 0.6
OTHER_NAME_SHARE, EMOJI_SHARE, OTHER_LANGUAGE_SHARE = 0.45, 0.04, 0.03
OPINION_SHARE, COLOUR_SHARE, PART_SHARE = 0.12, 0.12, 0.05
ASIDES, TYPOS = 0.15, 0.05
LIST_SHARE, RELATION_SHARE = 0.05, 0.4
SHORTEST_MISTYPED = 5  # letters
NEVER_MISTYPED = ("three",)  # a tree is something else


def article(word: str) -> str:
    """ "a" or "an"."""
    return "an" if word[:1].lower() in "aeiou" else "a"


@cache
def colours_in(name: str) -> tuple[str, ...]:
    """The colours that a name says: ("red",) of "red apple" and of "红苹果"."""
    words = name.lower().replace("grey", "gray").replace("-", " ").split()
    return tuple(
        colour
        for colour, chinese in COLOUR_WORDS.items()
        if colour in words or chinese[0] in name or (colour == "yellow" and "golden" in words)
    )


class Captions:
    """Wordings of the scenes of some pictures, which `records` describe."""

    def __init__(
        self,
        records: Sequence[Record],
        palette: Callable[[int], Palette],
        asides: float = ASIDES,
        typos: float = TYPOS,
    ) -> None:
        """`palette(i)`: the colours of picture i. `asides`, `typos`: shares of captions with either."""
        self.records, self.palette, self.asides, self.typos = records, palette, asides, typos
        self.nouns: list[Noun] = [noun(record) for record in records]

    def __call__(self, scene: Scene, language: str, rng: np.random.Generator) -> str:
        """One wording of what `scene` shows. All pictures of a scene share a style."""
        return self.with_style(scene, language, rng)[0]

    def with_style(self, scene: Scene, language: str, rng: np.random.Generator) -> tuple[str, str]:
        """A wording, and the words for the style in it, "" where it says none."""
        wording = _Wording(self, scene, language, rng)
        return wording.text(), wording.said_style

    def plain(self, scene: Scene, language: str) -> str:
        """What is there, how many, how large and where, and the background, in the plainest words; not the style."""
        wording = _Wording(self, scene, language, np.random.default_rng(0))
        wording.plain = True
        colour = "" if scene.background == "white" else wording.background(scene.background)
        return (", " if language == "en" else "，").join(filter(None, (wording.things(), colour)))


class _Wording:
    """One caption in the making: what it says is drawn from `rng` as it is written."""

    def __init__(self, captions: Captions, scene: Scene, language: str, rng: np.random.Generator) -> None:
        self.captions, self.scene, self.language, self.rng = captions, scene, language, rng
        self.english = language == "en"
        self.plain = self.chance(PLAIN_SHARE)
        self.aside = not self.plain and self.chance(captions.asides)
        self.said_style = ""  # once `text` is written

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, words: Sequence[str]) -> str:
        return words[0] if self.plain else words[int(self.rng.integers(len(words)))]

    def text(self) -> str:
        """The whole caption."""
        scene, style = self.scene, self.captions.records[self.scene.things[0].picture].style
        if self.chance(STYLE_SHARE):
            self.said_style = self.pick(style_words(style, self.language))
        colour = scene.background if scene.background != "white" or self.chance(WHITE_SHARE) else ""
        if not scene.is_composition and scene.things[0].count == 1 and self.chance(LIST_SHARE):
            return self.listed(scene.things[0], self.said_style, colour)
        text, endings = self.things(), [self.background(colour), self.styled(self.said_style)]
        if self.aside and self.chance(0.6):
            text += (" " if self.english else "") + self.pick(ASIDES_AFTER[self.language])
        if not self.plain and self.chance(FRAME_SHARE):
            text = self.pick(FRAMES[self.language]).format(text)
        comma = ", " if self.english else self.pick(("，", ", ", " ", "、"))
        if self.said_style and not self.plain and self.chance(0.15):
            text, endings = f"{self.said_style}{': ' if self.english else '的'}{text}", endings[:1]
        ends = [ending for ending in endings if ending]
        if self.plain:
            text = comma.join([text, *ends])
        else:
            text = self.joined(text, [ends[i] for i in self.rng.permutation(len(ends))], comma)
        return self.mistyped(text) if self.chance(self.captions.typos) else text

    def joined(self, text: str, ends: Sequence[str], comma: str) -> str:
        """Endings behind the text, some without a comma."""
        for end in ends:
            tight = self.english and self.chance(0.5) and end.split(" ")[0] in ("on", "in", "with", "against", "drawn")
            text += (" " if tight else comma) + end
        return text

    def background(self, colour: str) -> str:
        if not colour:
            return ""
        word = colour if self.english else COLOUR_WORDS[colour]
        forms = BACKGROUNDS[self.language]
        form = forms[1 if self.english else 0] if self.plain else self.pick(forms)
        return form.format(word, a=article(word))

    def styled(self, style: str) -> str:
        if not style or self.plain:
            return style
        return self.pick(STYLE_FORMS[self.language]).format(style)

    def things(self) -> str:
        """What is there, and where."""
        things = self.scene.things
        phrases = [self.phrase(thing) for thing in things]
        if not self.scene.is_composition:
            return phrases[0]
        if len(things) == 2 and not self.plain and self.chance(RELATION_SHARE):
            first = int(self.rng.integers(2))
            form = self.pick(RELATIONS[self.language][things[first].place])
            return form.format(phrases[first], phrases[1 - first])
        before = not self.plain and self.chance(0.25)
        parts = [self.placed(phrase, thing.place, before) for phrase, thing in zip(phrases, things)]
        joint = ", " if self.english else "，"
        if len(parts) == 2 and not self.plain and self.chance(0.4):
            joint = " and " if self.english else self.pick(("，", "和"))
        return joint.join(parts)

    def placed(self, phrase: str, place: str, before: bool) -> str:
        """ "a fox on the left", or "on the left a fox"."""
        where = self.pick(PLACE_WORDS[self.language][place])
        if self.english:
            return f"{where} {phrase}" if before else f"{phrase} {where}"
        return f"{where[1:]}是{phrase}" if before else f"{phrase}{where}"

    def others(self, thing: Thing) -> Sequence[str]:
        """The thing's other names, without those that say a colour that it does not have in this style."""
        main, some = self.captions.palette(thing.picture)
        return [
            name
            for name in self.captions.nouns[thing.picture].other[self.language]
            if all(colour in (main, *some) for colour in colours_in(name))
        ]

    def name(self, thing: Thing, plural: bool) -> str:
        """What the thing is called this time."""
        noun, chosen = self.captions.nouns[thing.picture], self.rng.random()
        language = self.language
        names: tuple[str, ...] = (noun.name[language],)
        if not self.plain and chosen < EMOJI_SHARE:
            return noun.emoji
        if not self.plain and chosen < EMOJI_SHARE + OTHER_LANGUAGE_SHARE:
            language = "zh" if self.english else "en"
            names = (noun.name[language],)
        elif not self.plain and chosen < EMOJI_SHARE + OTHER_LANGUAGE_SHARE + OTHER_NAME_SHARE:
            names = tuple(self.others(thing)) or names
        name = self.pick(names)
        return noun.plural_of(name) if plural and language == "en" else name

    def phrase(self, thing: Thing) -> str:
        """A thing with its number, size and colours: "three small red apples", "一只很小的狐狸"."""
        name = self.name(thing, thing.count > 1)
        words = []
        if thing.size:
            words.append(self.pick(SIZE_WORDS[self.language][thing.size]))
        if not self.plain:
            if self.chance(OPINION_SHARE):
                words.insert(0, self.pick(OPINIONS[self.language]))
            if self.aside and self.chance(0.6):
                words.insert(0, self.pick(ASIDES_BEFORE[self.language]))
            main, others = self.captions.palette(thing.picture)
            unsaid = not colours_in(name)
            if main and unsaid and self.chance(COLOUR_SHARE):
                words.append(main if self.english else f"{COLOUR_WORDS[main]}的")
            if others and unsaid and self.chance(PART_SHARE):
                part = self.pick(others)
                if self.english:
                    name += " " + self.pick(PARTS["en"]).format(part)
                else:
                    words.append(self.pick(PARTS["zh"]).format(COLOUR_WORDS[part]))
        described = (" " if self.english else "").join([*words, name])
        return self.numbered(thing, described)

    def numbered(self, thing: Thing, described: str) -> str:
        """ "three apples", "some apples", "an apple", "apple", "三个苹果"."""
        noun, alone = self.captions.nouns[thing.picture], thing.count == 1
        if self.english:
            if not alone:
                several = thing.count > 2 and not self.plain and self.chance(0.25)
                number = self.pick(SEVERAL["en"] if several else NUMBERS["en"][thing.count])
                return f"{number} {described}"
            if self.plain:
                return described
            if not noun.countable:
                return self.pick(("", "", "some ", "the ")) + described
            return self.pick(("", "", f"{article(described)} ", f"{article(described)} ", "the ", "one ")) + described
        measure = self.pick((noun.measure, noun.measure, "个"))
        if not alone:
            several = thing.count > 2 and not self.plain and self.chance(0.25)
            return f"{self.pick(SEVERAL['zh'] if several else NUMBERS['zh'][thing.count])}{measure}{described}"
        if self.plain:
            return described
        return self.pick(("", "", f"一{measure}", f"一{measure}", f"这{measure}", f"1{measure}")) + described

    def listed(self, thing: Thing, style: str, colour: str) -> str:
        """ "fox, animal, orange, 3D style": words with commas between, in any order but the name's, which is first."""
        record, palette = self.captions.records[thing.picture], self.captions.palette(thing.picture)
        words = [style, self.background(colour)]
        if thing.size:
            words.append(self.pick(SIZE_WORDS[self.language][thing.size]).rstrip("的"))
        if palette.main:
            words.append(palette.main if self.english else COLOUR_WORDS[palette.main])
        if record.tags[self.language]:
            words.append(self.pick(record.tags[self.language]))
        words = [word for word in words if word]
        return (", " if self.english else self.pick(("，", " ", "、"))).join(
            [self.name(thing, False), *(words[i] for i in self.rng.permutation(len(words)))]
        )

    def mistyped(self, text: str) -> str:
        """One letter of one long English word lost, doubled, or changed with its neighbour."""
        words = text.split(" ")
        long = [
            i
            for i, word in enumerate(words)
            if len(word) >= SHORTEST_MISTYPED and word.isascii() and word.isalpha() and word not in NEVER_MISTYPED
        ]
        if not long:
            return text
        which = long[int(self.rng.integers(len(long)))]
        word, at = words[which], int(self.rng.integers(1, len(words[which]) - 1))
        lost, doubled = word[:at] + word[at + 1 :], word[: at + 1] + word[at:]
        changed = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[which] = (lost, doubled, changed)[int(self.rng.integers(3))]
        return " ".join(words)
