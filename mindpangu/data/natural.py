"""Prompts as people write them, by hand, for measuring: none of them is one that a caption template can make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mindpangu.data.lexicon import concept_of

TABLE = Path(__file__).parent / "natural_prompts.tsv"


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
    rows = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
    return tuple(
        NaturalPrompt(language, tuple(map(concept_of, emoji.split(" "))), style, prompt)
        for language, emoji, style, prompt in rows
    )
