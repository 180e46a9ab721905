"""Prompt weights: "a (red:1.4) fox" is the prompt "a red fox" in which "red" counts 1.4 times."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARK = re.compile(r"\(([^():]+):(-?\d+(?:\.\d+)?)\)")


@dataclass(frozen=True)
class Weighted:
    """A prompt without its marks, and (start, stop, weight) of the characters that were marked."""

    text: str
    spans: tuple[tuple[int, int, float], ...]


def parse_weights(prompt: str) -> Weighted:
    """Take "(words:number)" marks out of a prompt. Other brackets, and marks within marks, stay as they are."""
    text, spans, end = "", [], 0
    for mark in MARK.finditer(prompt):
        text += prompt[end : mark.start()]
        spans.append((len(text), len(text) + len(mark[1]), float(mark[2])))
        text += mark[1]
        end = mark.end()
    return Weighted(text + prompt[end:], tuple(spans))
