"""The phrases that captions are made of, in either language: ways of asking, numbers, places, sizes, colours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from mindpangu.data.lexicon import Noun
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


def style_words(style: str, language: str) -> tuple[str, ...]:
    """How captions call a style, e.g. ("3D style", …) or ("3D风格", …); the first is the plain way."""
    return STYLES[style].words_en if language == "en" else STYLES[style].words_zh


def spoken(nouns: Iterable[Noun], tags: Iterable[str], unknown: Collection[str] = ()) -> Iterator[str]:
    """All names and phrases that captions are made of, without words for `unknown`: "count", "size"."""
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
        said = [*PLACE_WORDS[language].values(), *RELATIONS[language].values()]
        said += NUMBERS[language].values() if "count" not in unknown else ()
        said += SIZE_WORDS[language].values() if "size" not in unknown else ()
        for words in said:
            yield from words
        if "count" not in unknown:
            yield from (f" {phrase}." for phrase in SEVERAL[language])
        for phrases in (OPINIONS, ASIDES_BEFORE, ASIDES_AFTER, PARTS, BACKGROUNDS, STYLE_FORMS, FRAMES):
            yield from (f" {phrase}." for phrase in phrases[language])
