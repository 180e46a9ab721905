"""What a model has met: the words of its captions and the names of its things. What a prompt says beyond is told."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.store import load_tensors, read_card
from mindpangu.text.tokenizer import EMOJI_MODIFIERS

FILE = "vocabulary.safetensors"  # beside the text encoders; its sidecar has the words
ALIKE = 0.78  # difflib's ratio from which a word is another one's slip
LONGEST = 12  # characters of a Chinese word
PARTS = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?|[\u3400-\u4dbf\u4e00-\u9fff]+|[^\s\w]")
CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
ENDINGS = ("'s", "’s", "es", "s", "ing", "ed", "y")
# Words that say how a sentence is built, not what is to be seen.
FUNCTION_TEXT = """
a an the this that these those some any no every each all both i you he she it we they me him her us them my your his
its our their mine yours who what which where when why how is am are was were be been being do does did done have has
had can could may might must shall should will would let lets get got and or but if so as of in on at to from for with
without by about into over under above below between up down out off not yes please pls thanks thank ok hey hi hello
there here just only very really too also more most like one ones own same such than then now again i'm i'd i've it's
don't can't there's what's let's want wants need needs love loves
"""
FUNCTION_WORDS = frozenset(FUNCTION_TEXT.split())
FUNCTION_CHARACTERS = frozenset(
    "的了着过地得是在有和与跟及或就都也还又很太真好吗呢吧啊呀哦嘛我你他她它们这那哪个一不没要想把被给让请能会可以为什么怎样"
)


@dataclass(frozen=True)
class Vocabulary:
    """`names`: of what the model draws, by language; `words`: English words; `pieces`: Chinese words and characters.

    `mean` (P,): of the text encoder's features of all names; `directions` (N, P): from it to each, in order.
    """

    names: Mapping[str, Sequence[str]]
    words: frozenset[str]
    pieces: frozenset[str]
    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Optional[Vocabulary]:
        """The one of a model folder, None where it has none. Raises: UserError where it is damaged."""
        path = folder / FILE
        if not path.exists():
            return None
        card, tensors = read_card(path), load_tensors(path)
        mean, directions = (tensors[name].astype(np.float32) for name in ("mean", "directions"))
        return cls(card["names"], frozenset(card["words"]), frozenset(card["pieces"]), mean, directions)

    def unknown(self, prompt: str) -> tuple[str, ...]:
        """The words, Chinese words and emoji of a prompt that the model has never met, in order, each once."""
        found: dict[str, None] = {}
        for part in PARTS.findall(normalized(prompt)):
            if CHINESE.match(part):
                found.update(dict.fromkeys(self._unknown_chinese(part)))
            elif part[0].isalnum():
                if not self._knows(part):
                    found[part] = None
            elif unicodedata.category(part) == "So" and part not in self.pieces:
                found[part] = None
        return tuple(found)

    def _knows(self, word: str) -> bool:
        stems = {word, *(word[: -len(ending)] for ending in ENDINGS if word.endswith(ending))}
        return word.isdigit() or bool(stems & self.words) or bool(stems & FUNCTION_WORDS)

    def _unknown_chinese(self, text: str) -> Iterable[str]:
        """What longest matches of known words leave of a run of Chinese characters."""
        left, at = "", 0
        while at < len(text):
            length = next((n for n in range(LONGEST, 0, -1) if text[at : at + n] in self.pieces), 0)
            if not length and text[at] in FUNCTION_CHARACTERS:
                length = 1
            if length and left:
                yield left
                left = ""
            left, at = (left, at + length) if length else (left + text[at], at + 1)
        if left:
            yield left

    def spelled_like(self, word: str) -> Optional[str]:
        """The known word that an English one is most likely a slip of."""
        close = difflib.get_close_matches(word, self.words, n=1, cutoff=ALIKE)
        return close[0] if close and word.isascii() else None

    def nearest(self, word: str, features: np.ndarray) -> str:
        """The name nearest in meaning, in the word's language; `features` (P,): the text encoder's for the word."""
        language = "zh" if CHINESE.search(word) else "en"
        start = 0 if language == next(iter(self.names)) else len(next(iter(self.names.values())))
        known = self.directions[start : start + len(self.names[language])]
        scores = known @ (features - self.mean) / np.maximum(np.linalg.norm(known, axis=1), 1e-8)
        return str(self.names[language][int(scores.argmax())])


def directions(features: np.ndarray) -> dict[str, np.ndarray]:
    """What the file holds of features (N, P): their mean in float16, and the way to each in eight bits."""
    away = features - features.mean(0)
    scale = 127 / np.maximum(np.abs(away).max(1, keepdims=True), 1e-8)
    return {"mean": features.mean(0).astype(np.float16), "directions": np.round(scale * away).astype(np.int8)}


def normalized(text: str) -> str:
    """Full-width forms plain, lower case, no variation selectors, joiners or skin tones."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(EMOJI_MODIFIERS, "", plain)


def words_and_pieces(texts: Iterable[str]) -> dict[str, Any]:
    """The English words and the Chinese words of texts that are names or short phrases, sorted.

    A text of Chinese characters alone is a word; of any other the characters are words of their own.
    """
    words, pieces = set(), set()
    for text in texts:
        parts = PARTS.findall(normalized(text))
        for part in parts:
            if CHINESE.match(part):
                pieces |= {part} if len(parts) == 1 else set(part)
            elif part[0].isalnum():
                words.add(part)
            else:
                pieces.add(part)
    return {"words": sorted(words), "pieces": sorted(pieces)}
