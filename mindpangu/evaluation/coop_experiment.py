"""The experiment on Coop-Diffusion: does a picture made by two models keep the words of one and the lines of the other?

Both can be obeyed: the line drawing is of a real picture in the asked style, which scores 1 on either side. Always
beside it: each model alone, handing the finished picture on, and the algorithm as printed (docs/results).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image
from tqdm import tqdm

from mindpangu.config import load
from mindpangu.data import manifest
from mindpangu.data.lines import as_lines, by_hand, edges
from mindpangu.data.phrases import style_words
from mindpangu.data.scenes import nearest_colour
from mindpangu.errors import UserError
from mindpangu.evaluation.judge import COUNTED_ON, SIDE, TOP, Galleries, Pictures, frame
from mindpangu.images import parse_size
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.init_image import InitImage
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.metrics.scores import StyleClassifier, edge_f1, frechet_distance

CONFLICTING = 0.25  # share of the cases whose drawing is of another thing than the words
GROUNDS = tuple(colour for colour in COUNTED_ON if colour != "white")  # that the words of conflicting cases name
KEPT = 0.8  # F1 from which the lines count as kept
BATCH = 8
STRENGTHS = (0.5, 0.7, 0.9)  # of handing the finished picture on

Images = list[np.ndarray]
Draw = Callable[[Sequence["Case"], int], Images]  # cases, seed -> their pictures

# Ways of drawing, as what is set over the recipe's file; {host} is its output, {guest} the other member.
ALONE = {"{host} alone": ("weights={{}}",), "{guest} alone": ("weights={{}}", "output={guest}")}
ONE_WAY = "weights.{guest}={{}}"
TO_HOST, TO_GUEST = "weights.{host}.{guest}", "weights.{guest}.{host}"
WITH_LINES: dict[str, tuple[str, ...]] = {
    **ALONE,
    "coop": (),
    **{f"d = {d}": (f"{TO_HOST}.share={d}",) for d in (0.3, 0.5, 0.9)},
    **{
        f"effect {d}, below t = {t}": (f"{TO_HOST}={{{{share: {d}, effect: true, below: {t}}}}}", ONE_WAY)
        for d, t in ((1.0, 1000), (1.5, 1000), (1.5, 900), (2.0, 900))
    },
    "lines first, to t = 500": (f"{TO_HOST}.above=500", f"{TO_GUEST}.above=500"),
    "words first, to t = 600": (f"{TO_HOST}.below=600", f"{TO_GUEST}.below=600"),
    "image bridge": (f"{TO_HOST}.bridge=null", f"{TO_GUEST}.bridge=null"),
    # One constant d both ways down to the end, by way of the picture, noise schedules at equal t.
    "algorithm 1 as printed, d = 0.5": (
        "match=t",
        *(
            f"{way}.{key}={value}"
            for way in (TO_HOST, TO_GUEST)
            for key, value in (("share", 0.5), ("above", 0), ("fade", "false"), ("bridge", "null"))
        ),
    ),
}
OF_SIZES: dict[str, tuple[str, ...]] = {
    **ALONE,
    **{f"{{guest}} down to t = {t}": (f"{TO_HOST}.above={t}",) for t in (500, 600, 700, 800, 900)},
}


@dataclass(frozen=True)
class Case:
    """Words for the (concept, style) pair of `record`, and lines after the real picture of `drawn`, in the same style.

    `edges`: (SIDE, SIDE) bool, of that picture. `ground`: its ground's colour in the words. `by_hand`: the lines are
    thick, as a person's would be, and not one pixel wide.
    """

    record: manifest.Record
    drawn: manifest.Record
    edges: np.ndarray
    ground: str
    by_hand: bool

    @property
    def agrees(self) -> bool:
        """Whether words and lines are of the same thing."""
        return self.drawn == self.record

    @property
    def prompt(self) -> str:
        """What the text model is told."""
        ground = [] if self.ground == "white" else [f"{self.ground} background"]
        return ", ".join([self.record.name["en"], *ground, style_words(self.record.style, "en")[0]])

    @property
    def drawing(self) -> Image.Image:
        """Dark lines on white."""
        return Image.fromarray(255 - as_lines(by_hand(self.edges) if self.by_hand else self.edges))


def cases(pictures: Pictures, count: int, seed: int, conflicting: float) -> list[Case]:
    """`count` trained pairs with lines of their own picture, the last ones with another one's in the same style.

    Lines are of the picture on the ground that is named: that picture obeys words and lines.
    """
    chosen = pictures.some("train", count, seed)
    found = []
    for i, record in enumerate(chosen):
        drawn, ground = record, "white"
        others = [r for r in chosen if r.style == record.style and r.concept != record.concept]
        if i >= round(len(chosen) * (1 - conflicting)) and others:
            drawn, ground = others[i % len(others)], GROUNDS[i % len(GROUNDS)]
        found.append(Case(record, drawn, edges(pictures.render(drawn, ground)), ground, bool(i % 2)))
    return found


class Experiment:
    """The cases, the two models and the judge; `measure` one way of drawing after the other."""

    def __init__(
        self,
        config: Path,
        pictures: Pictures,
        galleries: Galleries,
        host: PanGuDraw,
        count: int,
        steps: int,
        bound: Optional[Path] = None,
    ) -> None:
        """`host`: the model of the recipe's output. `bound`: a recipe of it alone, with a ControlNet of its own.

        Raises:
            UserError.
        """
        self.bound = bound
        self.config, self.pictures, self.galleries, self.steps = config, pictures, galleries, steps
        self.recipe = load(config, CoopConfig)
        self.lined = any(member.controls for member in self.recipe.members.values())
        if len(self.recipe.members) != 2:
            raise UserError(f"{config}: {len(self.recipe.members)} members; the experiment is about two")
        self.cases = cases(pictures, count, seed=0, conflicting=CONFLICTING if self.lined else 0.0)
        self.models = {self.recipe.members[self.recipe.output].model: host}
        together = CoopDraw(self.recipe, models=self.models)
        self.settings = {"recipe": together.digest, "cases": count, "steps": steps}
        styles = sorted({case.record.style for case in self.cases})
        real = [r for r in pictures.asked("train") if r.style in styles]
        self.real = self.galleries.features(real)
        self.style_of = StyleClassifier(self.real, [r.style for r in real])

    def coop(self, *overrides: str) -> Draw:
        """Drawing with the recipe, changed by overrides."""
        return self._drawing(load(self.config, CoopConfig, overrides))

    def _drawing(self, config: CoopConfig) -> Draw:
        together = CoopDraw(config, models=self.models)

        def draw(part: Sequence[Case], seed: int) -> Images:
            lines = [case.drawing for case in part] if together.looks else []
            drawings = together([case.prompt for case in part], lines=lines, steps=self.steps, seed=seed)
            return [_at_full_size(d.image) for d in drawings]

        return draw

    def handed_on(self, strength: float) -> Draw:
        """The guest draws, then the host goes on from its finished picture."""
        guest = self.coop(*self._named(("output={guest}", "weights={{}}")))
        member = self.recipe.members[self.recipe.output]
        host = self.models[member.model]
        sides = parse_size(member.size or host.spec.default_size)

        def draw(part: Sequence[Case], seed: int) -> Images:
            drawn = []
            for case, picture in zip(part, guest(part, seed)):
                init_image = InitImage.open(Image.fromarray(picture), None, sides)
                drawn += host(
                    case.prompt, size=member.size, steps=self.steps, seed=seed, init_image=init_image, strength=strength
                )
            return [_at_full_size(d.image) for d in drawn]

        return draw

    def real_pictures(self, part: Sequence[Case], seed: int) -> Images:
        """What is asked for, where words and lines agree; else what the lines are of, on the ground that is named."""
        return [self.pictures.render(case.drawn, case.ground) for case in part]

    def _named(self, overrides: Sequence[str]) -> list[str]:
        host = self.recipe.output
        guest = next(name for name in self.recipe.members if name != host)
        return [one.format(host=host, guest=guest) for one in overrides]

    @property
    def ways(self) -> dict[str, Callable[[], Draw]]:
        """What makes every way of drawing, by name; the models alone first."""
        known = WITH_LINES if self.lined else OF_SIZES
        found: dict[str, Callable[[], Draw]] = {
            self._named([name])[0]: partial(self.coop, *self._named(overrides)) for name, overrides in known.items()
        }
        if self.bound is not None:
            found["ControlNet"] = partial(self._drawing, load(self.bound, CoopConfig))
        if self.lined:
            found.update({f"handed on, strength {s}": partial(self.handed_on, s) for s in STRENGTHS})
            found["yardstick: the real picture"] = lambda: self.real_pictures
        return found

    def measure(self, draw: Draw, seeds: int, bar: tqdm) -> tuple[dict[str, Any], Images]:
        """The scores of a way of drawing over all cases and seeds, and its pictures with seed 0."""
        scores: list[dict[str, float]] = []
        first: Images = []
        features, spent = [], 0.0
        draw(self.cases[:BATCH], 0)  # compilation
        for seed in range(seeds):
            drawn: Images = []
            for start in range(0, len(self.cases), BATCH):
                begun = time.monotonic()
                drawn += draw(self.cases[start : start + BATCH], seed)
                spent += time.monotonic() - begun
                bar.update(len(self.cases[start : start + BATCH]))
            scores.append(self._scores(drawn))
            features.append(self.galleries.judge(drawn))
            first = first or drawn
        figures: dict[str, Any] = {
            key: {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if seeds > 1 else 0.0}
            for key, values in ((key, [s[key] for s in scores]) for key in scores[0])
        }
        figures["frechet"] = frechet_distance(np.concatenate(features), self.real)
        figures["seconds"] = spent / (seeds * len(self.cases))
        return figures, first

    def _scores(self, drawn: Images) -> dict[str, float]:
        found: dict[str, float] = {}
        asked = [case.record for case in self.cases]
        features = self.galleries.judge(drawn)
        text = self.galleries.ranks(asked, features) <= TOP
        of_all = self.galleries.ranks_of_all(asked, features) <= TOP
        style = np.array([said == r.style for said, r in zip(self.style_of(features), asked)])
        ground = np.array([nearest_colour(np.median(frame(x), 0)) == c.ground for x, c in zip(drawn, self.cases)])
        kept = np.array([edge_f1(case.edges, edges(x)) for x, case in zip(drawn, self.cases)])
        agree = np.array([case.agrees for case in self.cases])
        words = {"agree": {"text": text, "text_of_all": of_all, "style": style}}
        words["conflict"] = {"ground": ground, "style": style}
        for name, rows in (("agree", agree), ("conflict", ~agree)):
            if not rows.any():
                continue
            found.update({f"{key}_{name}": float(values[rows].mean()) for key, values in words[name].items()})
            if self.lined:
                obeyed = text if name == "agree" else ground & style
                found[f"control_{name}"] = float(kept[rows].mean())
                found[f"both_{name}"] = float((obeyed & (kept >= KEPT))[rows].mean())
        return found


def _at_full_size(image: Image.Image) -> np.ndarray:
    resized = image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(resized)


COLUMNS = {
    "text_agree": "words: R@5",
    "text_of_all_agree": "R@5 of all styles",
    "style_agree": "style",
    "control_agree": "lines: F1",
    "both_agree": f"R@5 and F1 ≥ {KEPT}",
    "ground_conflict": "conflict: ground",
    "style_conflict": "style",
    "control_conflict": "lines: F1",
    "both_conflict": f"ground, style and F1 ≥ {KEPT}",
}


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table; ± is the standard deviation over the seeds."""
    present = [key for key in COLUMNS if any(key in one for one in figures.values())]
    heads = ["", *(COLUMNS[key] for key in present), "Fréchet", "s a picture"]
    rows = [heads, ["---"] * len(heads)]
    for name, one in figures.items():
        cells = [f"{one[key]['mean']:.3f} ± {one[key]['sd']:.3f}" for key in present]
        rows.append([name, *cells, f"{one['frechet']:.1f}", f"{one['seconds']:.2f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(cases: Sequence[Case], count: int) -> list[int]:
    """The numbers of the first cases of each kind."""
    of_each = count // 2
    agreeing = [i for i, c in enumerate(cases) if c.agrees][:of_each]
    return [*agreeing, *(i for i, c in enumerate(cases) if not c.agrees)][:count]
