"""Several models beside one another: the same requests, the same noise, one judge.

Models whose names differ only in a number at the end, "boost-0", "boost-1", are one recipe trained with several seeds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

import numpy as np
from PIL import Image

from mindpangu.data.phrases import LANGUAGES
from mindpangu.evaluation.found import strip
from mindpangu.evaluation.judge import SIDE, Draw, Galleries, Pictures, prompt_for
from mindpangu.evaluation.noise_levels import losses_by_noise_level
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.metrics.scores import frechet_distance

NUMBER = re.compile(r"-\d+$")
COLUMNS = {
    "R@5": ("R@5", 3),
    "R@5_large": ("R@5, kept large", 3),
    "R@5_small": ("R@5, kept small", 3),
    "frechet": ("Fréchet", 1),
    "loss_trained": ("loss, trained", 4),
    "loss_large": ("loss, kept large", 4),
    "loss_small": ("loss, kept small", 4),
    "loss_heldout": ("loss, held out", 4),
    "seconds": ("s a picture", 2),
}
BINS = 16  # of t, in which losses are measured
SHOWN = 12
BATCH = 8  # pictures drawn together


class Comparison:
    """Every trained pair, asked for once in each language."""

    def __init__(self, pictures: Pictures, galleries: Galleries, small: Optional[Collection[str]] = None) -> None:
        """`small`: the files of pictures that the models saw at a low resolution only; judged alone as well."""
        pairs = [(record, language) for language in LANGUAGES for record in pictures.asked("train")]
        self.pictures = pictures
        self.records = [record for record, _ in pairs]
        self.prompts = [prompt_for(record, language) for record, language in pairs]
        self.small = None if small is None else [record.file in small for record in self.records]
        self.galleries = galleries
        self.real = galleries.features(self.records)

    def measure(self, draw: Draw) -> tuple[dict[str, float], list[np.ndarray]]:
        """R@5, Fréchet and seconds a picture of one model, and what it drew, in the order of `prompts`."""
        draw(self.prompts[:BATCH])  # compilation
        begun = time.monotonic()
        drawn = draw(self.prompts)
        figures = {"seconds": (time.monotonic() - begun) / len(drawn), "R@5": self._recall(drawn, [True] * len(drawn))}
        if self.small is not None:
            figures["R@5_large"] = self._recall(drawn, [not small for small in self.small])
            figures["R@5_small"] = self._recall(drawn, self.small)
        figures["frechet"] = frechet_distance(self.galleries.judge(drawn), self.real)
        return figures, drawn

    def losses(self, model: PanGuDraw) -> dict[str, list[float]]:
        """The loss in BINS of t on the pictures that were trained on, those kept small and large apart, and held-out
        ones; all at full resolution.
        """
        trained = self.records[: len(self.records) // len(LANGUAGES)]
        errors = {"trained": losses_by_noise_level(model, self.pictures, trained, BINS, seed=0)}
        if self.small is not None:
            small = np.array(self.small[: len(trained)])
            errors.update(large=errors["trained"][:, ~small], small=errors["trained"][:, small])
        if heldout := self.pictures.asked("heldout"):
            errors["heldout"] = losses_by_noise_level(model, self.pictures, heldout, BINS, seed=0)
        return {name: of_each.mean(1).tolist() for name, of_each in errors.items() if of_each.size}

    @staticmethod
    def shown(drawn: Sequence[np.ndarray]) -> Image.Image:
        """A few of a model's pictures, evenly from all, side by side."""
        picked = np.linspace(0, len(drawn) - 1, min(SHOWN, len(drawn))).astype(int)
        return strip([np.asarray(Image.fromarray(drawn[i]).resize((SIDE, SIDE))) for i in picked])

    def _recall(self, drawn: Sequence[np.ndarray], asked: Sequence[bool]) -> float:
        rows = np.flatnonzero(asked)
        return self.galleries.recall([self.records[i] for i in rows], [drawn[i] for i in rows])["R@5"]


def recipes(models: Iterable[str]) -> dict[str, list[str]]:
    """{row: its models}: names that differ only in their last number are one row, named without it."""
    found: dict[str, list[str]] = {}
    for model in models:
        found.setdefault(NUMBER.sub("", model), []).append(model)
    return {recipe if len(members) > 1 else members[0]: members for recipe, members in found.items()}


def table(figures: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, int]] = COLUMNS) -> str:
    """A Markdown table, a recipe a row; ± is the standard deviation over its models. `columns`: head and digits."""
    present = [key for key in columns if any(key in one for one in figures.values())]
    lines = [["", "models", *(columns[key][0] for key in present)], ["---"] * (len(present) + 2)]
    for recipe, models in recipes(figures).items():
        cells = [
            _with_spread([figures[m][key] for m in models if key in figures[m]], columns[key][1]) for key in present
        ]
        lines.append([recipe, str(len(models)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
