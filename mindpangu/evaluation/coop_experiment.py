"""The experiment on Coop-Diffusion: does a picture made by two models keep the words of one and the lines of the other?

Always beside it: each model alone, handing the finished picture on, and the algorithm as printed (docs/results).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mindpangu.config import load
from mindpangu.data import manifest
from mindpangu.data.lines import LINE_STYLE, edges
from mindpangu.data.scenes import SIZES
from mindpangu.errors import UserError
from mindpangu.evaluation.judge import SIDE, Galleries, Pictures, prompt_for
from mindpangu.images import parse_size, read_picture
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.init_image import InitImage
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.metrics.features import Judge
from mindpangu.metrics.scores import edge_f1, frechet_distance

CONFLICTING = 0.25  # share of the cases whose drawing is of another thing than the words
BATCH = 8
LINES_IN_COLOUR = "openmoji"  # the style whose outlines are the line drawings
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
    **{f"d = {d}": (f"{TO_HOST}.share={d}",) for d in (0.0, 0.3, 0.5, 0.9, 1.0)},
    **{f"back {d}": (f"{TO_GUEST}.share={d}",) for d in (0.1, 0.5, 0.7)},
    **{f"down to t = {t}": (f"{TO_HOST}.above={t}", f"{TO_GUEST}.above={t}") for t in (200, 500)},
    "fading to t = 0": (f"{TO_HOST}.fade=true", f"{TO_GUEST}.fade=true"),
    "one way": (ONE_WAY,),
    "image bridge": (f"{TO_HOST}.bridge=null", f"{TO_GUEST}.bridge=null"),
    "bridge every 3rd step": ("bridge_every=3",),
    "matched at equal t": ("match=t",),
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
    """A prompt for a (concept, style) pair and the line drawing that goes with it, of `drawn`'s concept."""

    record: manifest.Record
    drawn: str
    drawing: Image.Image

    @property
    def agrees(self) -> bool:
        """Whether words and lines are of the same thing."""
        return self.drawn == self.record.concept

    @property
    def prompt(self) -> str:
        """What the text model is told."""
        return prompt_for(self.record, "en")

    @property
    def edges(self) -> np.ndarray:
        """The edges of the drawing, (SIDE, SIDE) bool."""
        return edges(np.asarray(self.drawing.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))


def on_canvas(art: Image.Image, side: int = 3 * SIDE) -> Image.Image:
    """A line drawing of the data set, as large on white as the pictures are."""
    inner = round(side * SIZES[""])
    canvas = Image.new("RGB", (side, side), "white")
    placed = art.resize((inner, inner), Image.Resampling.LANCZOS)
    canvas.paste(placed, ((side - inner) // 2,) * 2, placed)
    return canvas


def cases(pictures: Pictures, folder: Path, count: int, seed: int, conflicting: float) -> list[Case]:
    """`count` trained pairs with the line drawing of their concept, the last ones with one of another concept.

    Raises:
        UserError: the data set has no line drawings.
    """
    files = {r.concept: folder / r.file for r in manifest.read(folder, (LINE_STYLE,))}
    asked = [r for r in pictures.asked("train") if r.concept in files]
    rng = np.random.default_rng(seed)
    chosen = [asked[i] for i in rng.permutation(len(asked))[:count]]
    found = []
    for i, record in enumerate(chosen):
        other = chosen[(i + len(chosen) // 2) % len(chosen)].concept
        drawn = record.concept if i < round(len(chosen) * (1 - conflicting)) else other
        found.append(Case(record, drawn, on_canvas(read_picture(files[drawn]))))
    return found


class Experiment:
    """The cases, the two models and the judge; `measure` one way of drawing after the other."""

    def __init__(self, config: Path, pictures: Pictures, data: Path, judge: Judge, count: int, steps: int) -> None:
        """Raises: UserError."""
        self.config, self.pictures, self.judge, self.steps = config, pictures, judge, steps
        self.recipe = load(config, CoopConfig)
        self.lined = any(member.controls for member in self.recipe.members.values())
        if len(self.recipe.members) != 2:
            raise UserError(f"{config}: {len(self.recipe.members)} members; the experiment is about two")
        self.cases = cases(pictures, data, count, seed=0, conflicting=CONFLICTING if self.lined else 0.0)
        self.own = {r.concept: data / r.file for r in manifest.read(data) if r.style == LINES_IN_COLOUR}
        self.models: dict[str, PanGuDraw] = {}
        self.galleries = Galleries(pictures, judge)
        self.given = [case.edges for case in self.cases]
        styles = sorted({case.record.style for case in self.cases})
        real = [r for r in pictures.asked("train") if r.style in styles]
        self.real = judge([pictures.render(r) for r in real])

    def coop(self, *overrides: str) -> Draw:
        """Drawing with the recipe, changed by overrides."""
        config = load(self.config, CoopConfig, overrides)
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

    def in_colour(self, part: Sequence[Case], seed: int) -> Images:
        """What the drawings' artist made of them: whose text score is what true lines leave room for."""
        return [_at_full_size(on_canvas(read_picture(self.own[case.drawn]))) for case in part]

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
        if self.lined:
            found.update({f"handed on, strength {s}": partial(self.handed_on, s) for s in STRENGTHS})
        if self.lined and self.own:
            found["yardstick: the drawing's own picture in colour"] = lambda: self.in_colour
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
            features.append(self.judge(drawn))
            first = first or drawn
        figures: dict[str, Any] = {
            key: {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if seeds > 1 else 0.0}
            for key, values in ((key, [s[key] for s in scores]) for key in scores[0])
        }
        figures["frechet"] = frechet_distance(np.concatenate(features), self.real)
        figures["seconds"] = spent / (seeds * len(self.cases))
        return figures, first

    def _scores(self, drawn: Images) -> dict[str, float]:
        found = {}
        for name, wanted in (("agree", True), ("conflict", False)):
            rows = [i for i, case in enumerate(self.cases) if case.agrees == wanted]
            if rows:
                recall = self.galleries.recall([self.cases[i].record for i in rows], [drawn[i] for i in rows])
                found[f"text_{name}"] = recall["R@5"]
                if self.lined:
                    kept = [edge_f1(self.given[i], edges(drawn[i])) for i in rows]
                    found[f"control_{name}"] = float(np.mean(kept))
        return found


def _at_full_size(image: Image.Image) -> np.ndarray:
    resized = image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(resized)


COLUMNS = {
    "text_agree": "text R@5",
    "control_agree": "control F1",
    "text_conflict": "text R@5, conflicting",
    "control_conflict": "control F1, conflicting",
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


def grid(cases: Sequence[Case], drawn: Mapping[str, Images], count: int) -> Image.Image:
    """The first drawings of each kind: the lines on top, then a row for each way of drawing."""
    of_each = count // 2
    rows = [i for i, c in enumerate(cases) if c.agrees][:of_each] + [i for i, c in enumerate(cases) if not c.agrees]
    picked = rows[:count]
    if not picked:
        raise UserError("no cases to show")
    strips = [np.concatenate([_at_full_size(cases[i].drawing) for i in picked], axis=1)]
    strips += [np.concatenate([pictures[i] for i in picked], axis=1) for pictures in drawn.values()]
    return Image.fromarray(np.concatenate(strips))
