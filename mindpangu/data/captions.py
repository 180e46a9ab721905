"""Captions as people write them, in English and Chinese: names and other names, frames, numbers, places, colours.

Whatever a caption says of its scene is true of it: which things, how many, how large, where, on which background, in
which style, and which colours a thing has. The frames are ways of asking ("draw me …"), not claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from mindpangu.data.lexicon import Noun, noun
from mindpangu.data.manifest import Record
from mindpangu.data.palette import Palette
from mindpangu.data.scenes import Scene, Thing
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
        "left": ("on the left", "at the left", "on the left side", "to the left"),
        "right": ("on the right", "at the right", "on the right side", "to the right"),
        "top": ("at the top", "on top", "above", "in the upper half"),
        "bottom": ("at the bottom", "below", "in the lower half"),
        "middle": ("in the middle", "in the centre", "in between"),
    },
    "zh": {
        "left": ("在左边", "在左侧", "在左面"),
        "right": ("在右边", "在右侧", "在右面"),
        "top": ("在上面", "在上方", "在上边"),
        "bottom": ("在下面", "在下方", "在下边"),
        "middle": ("在中间", "在中央"),
    },
}
# How two things are said to stand, {0} and {1}, by the place of {0}.
RELATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "left": ("{0} to the left of {1}", "{0} next to {1}", "{0} beside {1}", "{0} and {1} side by side"),
        "right": ("{0} to the right of {1}", "{0} next to {1}", "{0} beside {1}"),
        "top": ("{0} above {1}", "{0} over {1}", "{0} on top of {1}"),
        "bottom": ("{0} below {1}", "{0} under {1}", "{0} underneath {1}"),
    },
    "zh": {
        "left": ("{0}在{1}的左边", "{0}在{1}左侧", "{0}和{1}并排", "{0}在{1}旁边"),
        "right": ("{0}在{1}的右边", "{0}在{1}右侧", "{0}在{1}旁边"),
        "top": ("{0}在{1}上面", "{0}在{1}的上方"),
        "bottom": ("{0}在{1}下面", "{0}在{1}的下方"),
    },
}
NUMBERS: dict[str, dict[int, tuple[str, ...]]] = {
    "en": {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4"), 5: ("five", "5"), 6: ("six", "6")},
    "zh": {2: ("两", "2", "二"), 3: ("三", "3"), 4: ("四", "4"), 5: ("五", "5"), 6: ("六", "6")},
}
SEVERAL = {"en": ("some", "several", "a few"), "zh": ("几", "好几")}
SIZE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {"small": ("small", "tiny"), "big": ("big", "large", "huge")},
    "zh": {"small": ("很小的", "小小的", "小号的"), "big": ("很大的", "巨大的", "大号的")},
}
OPINIONS = {
    "en": ("cute", "nice", "beautiful", "pretty", "simple", "cool", "lovely", "funny", "friendly", "good-looking"),
    "zh": ("可爱的", "漂亮的", "好看的", "美丽的", "简单的", "有趣的", "精致的", "萌萌的"),
}
# What people say beside it, on which the pictures say nothing either way: before a thing, and after all things.
BEFORE = {
    "en": """
        fierce,wild,happy,sad,hungry,angry,brave,lazy,clever,gentle,grumpy,busy,fresh,tasty,delicious,juicy,sweet,ripe,
        hot,cold,warm,old,new,young,fancy,cheap,shiny,fluffy,soft,modern,classic,vintage,magic,famous,typical,ordinary,
        realistic,detailed,favourite,perfect,awesome,amazing,strange,noisy,quiet,fast,strong,best,real,dirty,clean""",
    "zh": """
        聪明的,快乐的,害羞的,调皮的,新鲜的,美味的,好吃的,甜甜的,古老的,崭新的,闪亮的,毛茸茸的,飞翔的,微笑的,我的,妈妈的,
        小朋友的,森林里的,海里的,草地上的,非洲的,中国的,城里的,家里的,桌上的,花园里的,冬天的,早上的,生日的,童话里的,
        传说中的,著名的,普通的,经典的,逼真的,高级的,便宜的,最好的,神奇的,生气的,饿了的,孤独的,勇敢的,安静的,干净的""",
}
AFTER = {
    "en": """
        in the forest,at the farm,in the city,in the wild,by the river,on a beach,in the snow,in the rain,at night,
        in the morning,in spring,in winter,for my birthday,for the kids,for grandpa,for our website,for a poster,
        as a present,as a tattoo,running,sleeping,flying,sitting,jumping,playing,smiling,waiting for the bus,
        looking at me,from above,up close,with friends,with love,on the table,on a plate,in a box,in the kitchen,
        in my room,on the street,from italy,from a fairy tale,like in a cartoon,i love it,that everyone knows,again,
        right now,today,as soon as possible,thanks,thank you so much,lol,haha,or so,you know,if you can,for free""",
    "zh": """
        在森林里,在跳舞,在睡觉,在吃东西,在等人,做头像,做海报,当礼物,真可爱,真不错,来了,回家,谢谢,哈哈,拜托了,好不好,多少钱,
        怎么样,一起玩,在桌子上,在盒子里,在街上,在雨里,送给爷爷,送给朋友,今天,现在就要,越快越好,像动画片里一样,大家都知道""",
}


def _listed(table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {language: tuple(one.strip() for one in text.split(",")) for language, text in table.items()}


ASIDES_BEFORE, ASIDES_AFTER = _listed(BEFORE), _listed(AFTER)
PARTS = {
    "en": ("with {} parts", "with some {}", "with {} on it", "that is partly {}"),
    "zh": ("带{}的", "有一些{}的", "有{}部分的"),
}
BACKGROUNDS = {
    "en": (
        "on {a} {0} background",
        "{0} background",
        "with {a} {0} background",
        "against {a} {0} background",
        "the background is {0}",
    ),
    "zh": ("{0}背景", "{0}的背景", "背景是{0}", "{0}的底", "在{0}背景上"),
}
STYLE_FORMS = {
    "en": ("in {0}", "{0}", "in the {0}", "drawn in {0}"),
    "zh": ("{0}", "用{0}", "{0}的"),
}
# Ways of asking for {0}. The bare caption is a way, too.
FRAMES = {
    "en": (
        "a picture of {0}",
        "an image of {0}",
        "a photo of {0}",
        "photo of {0}",
        "picture of {0}",
        "an illustration of {0}",
        "a drawing of {0}",
        "an emoji of {0}",
        "emoji of {0}",
        "{0} emoji",
        "an icon of {0}",
        "{0} icon",
        "a sticker of {0}",
        "clip art of {0}",
        "{0} clipart",
        "{0} drawing",
        "draw {0}",
        "draw {0} please",
        "draw me {0}",
        "draw me {0} please",
        "please draw {0}",
        "can you draw {0}?",
        "could you draw {0} for me?",
        "paint {0}",
        "sketch {0}",
        "show me {0}",
        "please show {0}",
        "give me {0}",
        "make {0}",
        "make a picture of {0}",
        "create an image of {0}",
        "generate {0}",
        "generate a picture of {0}",
        "render {0}",
        "i want {0}",
        "i want a picture of {0}",
        "i would like {0}",
        "i'd like to see {0}",
        "i need {0}",
        "let me see {0}",
        "{0}, please",
        "{0}!",
        "{0}.",
        "just {0}",
        "there is {0}",
        "this is {0}",
        "here is {0}",
        "we see {0}",
        "a nice picture showing {0}",
        "a close-up of {0}",
    ),
    "zh": (
        "画{0}",
        "请画{0}",
        "请画一张{0}的图",
        "请帮我画{0}",
        "帮我画{0}",
        "给我画{0}",
        "给我画一张{0}",
        "给我{0}",
        "我想要{0}",
        "我要{0}",
        "我想看{0}",
        "我想要一张{0}的图片",
        "来{0}",
        "来一张{0}",
        "生成{0}",
        "生成一张{0}的图片",
        "能画{0}吗？",
        "可以画{0}吗",
        "能不能画{0}？",
        "能给我画{0}吗",
        "{0}的图片",
        "{0}的照片",
        "{0}照片",
        "{0}图片",
        "{0}的图",
        "{0}的画",
        "{0}的插画",
        "{0}插图",
        "一张{0}的照片",
        "一张{0}的图片",
        "一幅{0}的画",
        "{0}表情",
        "{0}的表情符号",
        "{0}emoji",
        "{0}图标",
        "{0}贴纸",
        "{0}！",
        "{0}。",
        "这是{0}",
        "这里有{0}",
        "有{0}",
        "图中有{0}",
        "展示{0}",
        "设计{0}",
        "做一张{0}的图",
        "麻烦画{0}",
        "想看看{0}",
    ),
}

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


def style_words(style: str, language: str) -> tuple[str, ...]:
    """How captions call a style, e.g. ("3D style", …) or ("3D风格", …); the first is the plain way."""
    return STYLES[style].words_en if language == "en" else STYLES[style].words_zh


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


def spoken(nouns: Iterable[Noun], tags: Iterable[str]) -> Iterator[str]:
    """All names and phrases that captions are made of."""
    for one in nouns:
        yield from (one.emoji, one.plural or "", *one.name.values())
        for language, names in one.other.items():
            yield from names
            if language == "en":
                yield from map(one.plural_of, names)
        yield from one.measure
    yield from tags
    yield from (*COLOUR_WORDS, "grey", *COLOUR_WORDS.values())
    for style in STYLES.values():
        yield from (*style.words_en, *style.words_zh)
    for language in LANGUAGES:
        for table in (PLACE_WORDS[language], RELATIONS[language], NUMBERS[language], SIZE_WORDS[language]):
            for words in table.values():
                yield from words
        for phrases in (SEVERAL, OPINIONS, ASIDES_BEFORE, ASIDES_AFTER, PARTS, BACKGROUNDS, STYLE_FORMS, FRAMES):
            yield from (f" {phrase}." for phrase in phrases[language])


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
        return _Wording(self, scene, language, rng).text()

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

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, words: Sequence[str]) -> str:
        return words[0] if self.plain else words[int(self.rng.integers(len(words)))]

    def text(self) -> str:
        """The whole caption."""
        scene, style = self.scene, self.captions.records[self.scene.things[0].picture].style
        said_style = self.pick(style_words(style, self.language)) if self.chance(STYLE_SHARE) else ""
        colour = scene.background if scene.background != "white" or self.chance(WHITE_SHARE) else ""
        if not scene.is_composition and scene.things[0].count == 1 and self.chance(LIST_SHARE):
            return self.listed(scene.things[0], said_style, colour)
        text, endings = self.things(), [self.background(colour), self.styled(said_style)]
        if self.aside and self.chance(0.6):
            text += (" " if self.english else "") + self.pick(ASIDES_AFTER[self.language])
        if not self.plain and self.chance(FRAME_SHARE):
            text = self.pick(FRAMES[self.language]).format(text)
        comma = ", " if self.english else self.pick(("，", ", ", " ", "、"))
        if said_style and not self.plain and self.chance(0.15):
            text, endings = f"{said_style}{': ' if self.english else '的'}{text}", endings[:1]
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
