"""Several models beside one another: the same requests, the same noise, one judge.

Models whose names differ only in a number at the end, "boost-0", "boost-1", are one recipe trained with several seeds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

import numpy as np
from PIL import Image

from mindpangu.data.phrases import LANGUAGES
from mindpangu.evaluation.judge import SIDE, Draw, Galleries, Pictures, prompt_for
from mindpangu.metrics.scores import frechet_distance

NUMBER = re.compile(r"-\d+$")
COLUMNS = {"R@5": "R@5", "R@5_large": "R@5, kept large", "R@5_small": "R@5, kept small", "frechet": "Fréchet"}


class Comparison:
    """Every trained pair, asked for once in each language."""

    def __init__(self, pictures: Pictures, galleries: Galleries, small: Optional[Collection[str]] = None) -> None:
        """`small`: the files of pictures that the models saw at a low resolution only; judged alone as well."""
        pairs = [(record, language) for language in LANGUAGES for record in pictures.asked("train")]
        self.records = [record for record, _ in pairs]
        self.prompts = [prompt_for(record, language) for record, language in pairs]
        self.small = None if small is None else [record.file in small for record in self.records]
        self.galleries = galleries
        self.real = galleries.features(self.records)

    def measure(self, draw: Draw) -> tuple[dict[str, float], list[np.ndarray]]:
        """The figures of one model (keys: COLUMNS), and the pictures that it drew, in the order of `prompts`."""
        drawn = draw(self.prompts)
        figures = {"R@5": self._recall(drawn, [True] * len(drawn))}
        if self.small is not None:
            figures["R@5_large"] = self._recall(drawn, [not small for small in self.small])
            figures["R@5_small"] = self._recall(drawn, self.small)
        figures["frechet"] = frechet_distance(self.galleries.judge(drawn), self.real)
        return figures, drawn

    def _recall(self, drawn: Sequence[np.ndarray], asked: Sequence[bool]) -> float:
        rows = np.flatnonzero(asked)
        return self.galleries.recall([self.records[i] for i in rows], [drawn[i] for i in rows])["R@5"]


def recipes(models: Iterable[str]) -> dict[str, list[str]]:
    """{row: its models}: names that differ only in their last number are one row, named without it."""
    found: dict[str, list[str]] = {}
    for model in models:
        found.setdefault(NUMBER.sub("", model), []).append(model)
    return {recipe if len(members) > 1 else members[0]: members for recipe, members in found.items()}


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table, a recipe a row; ± is the standard deviation over its models."""
    present = [key for key in COLUMNS if any(key in one for one in figures.values())]
    lines = [["", "models", *(COLUMNS[key] for key in present)], ["---"] * (len(present) + 2)]
    for recipe, models in recipes(figures).items():
        cells = [_with_spread([figures[m][key] for m in models], 1 if key == "frechet" else 3) for key in present]
        lines.append([recipe, str(len(models)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def grid(drawn: Mapping[str, Sequence[np.ndarray]], count: int) -> Image.Image:
    """The first model of each recipe, a row each: `count` of its pictures, evenly from all requests."""
    strips = []
    for models in recipes(drawn).values():
        pictures = drawn[models[0]]
        picked = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int)
        shown = [Image.fromarray(pictures[i]).resize((SIDE, SIDE)) for i in picked]
        strips.append(np.concatenate([np.asarray(one) for one in shown], axis=1))
    return Image.fromarray(np.concatenate(strips))
