"""Measure a model against real pictures: concept retrieval by an independent judge, compositions, VAE fidelity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.store import card_of_whole, load_tensors, save_checkpoint
from mindpangu.data import manifest
from mindpangu.data.examples import DataConfig, Examples
from mindpangu.data.lexicon import natural_prompts, noun
from mindpangu.data.phrases import COLOUR_WORDS, LANGUAGES, NUMBERS, PLACE_WORDS, style_words
from mindpangu.data.scenes import ARRANGEMENTS, Scene, Thing, cell, nearest_colour
from mindpangu.errors import UserError
from mindpangu.images import to_model, to_pictures
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.metrics.features import Judge
from mindpangu.metrics.scores import psnr, ranks, ranks_of_any, recall_at

SIDE = 128
ENCODE_BATCH = 16
POOL = 100  # pictures among which a composition's parts are looked for
BORDER = 3  # pixels of the frame whose median is the background
TOP = 5
NUMBERED, COUNTED_ON = (2, 3, 4), ("white", "blue", "yellow", "green")  # copies and grounds of `judge_counts`
SHAPE, CLOSING, FAIR = 40, 2, 0.25  # levels from the ground; pixels of gaps in a shape; of the largest shape's size
GROUND, BLANK = 12, 0.99  # levels from the ground, and the share of pixels so near to it that leaves a picture blank

Draw = Callable[[Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Pictures:
    """All real pictures of a data set in some styles, both splits, drawn alone on white; `groups` are asked for."""

    records: list[manifest.Record]
    examples: dict[str, Examples]
    places: dict[str, int]  # of each file among its split's examples
    groups: Optional[tuple[str, ...]]

    @classmethod
    def open(cls, folder: Path, styles: tuple[str, ...], groups: Optional[tuple[str, ...]]) -> Pictures:
        """Raises: UserError where there is no data, or none of a group."""
        examples = {split: Examples(DataConfig(folder, styles), split) for split in manifest.SPLITS}
        places = {r.file: i for e in examples.values() for i, r in enumerate(e.records)}
        records = [r for e in examples.values() for r in e.records]
        known = sorted({r.group for r in records})
        unknown = [group for group in groups or () if group not in known]
        if unknown:
            raise UserError(f"{folder}: no pictures of group {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(records, examples, places, groups)

    def asked(self, split: str) -> list[manifest.Record]:
        """The records of a split that a model is asked for."""
        return [r for r in self.records if r.split == split and (self.groups is None or r.group in self.groups)]

    def some(self, split: str, count: int, seed: int) -> list[manifest.Record]:
        """At most `count` of the records of a split that a model is asked for, drawn at random."""
        records = self.asked(split)
        return [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:count]]

    def render(self, record: manifest.Record, background: str = "white", side: int = SIDE) -> np.ndarray:
        """(side, side, 3) uint8."""
        examples = self.examples[record.split]
        index = self.places[record.file]
        return examples.image(Scene(side, side, background, (Thing(index),)))


def round_trip(model: PanGuDraw, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures of one size through the autoencoder and back."""
    from mindspore import Tensor

    out: list[np.ndarray] = []
    for start in range(0, len(pictures), ENCODE_BATCH):
        part = list(pictures[start : start + ENCODE_BATCH])
        padded = part + [part[-1]] * (ENCODE_BATCH - len(part))
        decoded = model.vae.decode(model.vae.encode(Tensor(to_model(padded)))).asnumpy()
        out += list(to_pictures(decoded))[: len(part)]
    return out


def vae_fidelity(model: PanGuDraw, pictures: Pictures, split: str) -> dict[str, Any]:
    """PSNR of the round trip over all pictures of a split that are stored at full size."""
    real = [pictures.render(r) for r in pictures.asked(split) if r.size >= SIDE]
    values = psnr(np.stack(real), np.stack(round_trip(model, real)))
    return {"pictures": len(real), "psnr_mean": float(values.mean()), "psnr_median": float(np.median(values))}


def prompt_for(record: manifest.Record, language: str) -> str:
    """The plain request for a picture: its name and its style's words."""
    return f"{record.name[language]}, {style_words(record.style, language)[0]}"


class Galleries:
    """All real pictures, by style, as an independent judge sees them."""

    def __init__(self, pictures: Pictures, judge: Judge, kept: Optional[Path] = None) -> None:
        """`kept`: a file with features of runs before, which takes in those that it lacks."""
        self.judge = judge
        self._of_file = dict(zip((r.file for r in pictures.records), _judged(pictures, judge, kept)))
        self._of_style: dict[str, tuple[list[str], np.ndarray]] = {}
        for style in sorted({r.style for r in pictures.records}):
            members = [r for r in pictures.records if r.style == style]
            self._of_style[style] = ([r.concept for r in members], self.features(members))

    def features(self, records: Sequence[manifest.Record]) -> np.ndarray:
        """(N, F) of the real pictures that `records` describe."""
        return np.stack([self._of_file[record.file] for record in records])

    def recall(self, records: Sequence[manifest.Record], images: Sequence[np.ndarray]) -> dict[str, float]:
        """R@1 and R@5 of `images` for the pictures that `records` describe, among all of the same style."""
        found = self.ranks(records, self.judge(images))
        return {"R@1": recall_at(found, 1), "R@5": recall_at(found, 5)}

    def ranks(self, records: Sequence[manifest.Record], features: np.ndarray) -> np.ndarray:
        """Ranks (N,) for features (N, F) of the pictures that `records` describe, among all of the same style."""
        found = np.zeros(len(features), int)
        for style, (concepts, gallery) in self._of_style.items():
            rows = [i for i, r in enumerate(records) if r.style == style]
            if rows:
                answers = np.array([concepts.index(records[i].concept) for i in rows])
                found[rows] = ranks(features[rows], gallery, answers)
        return found

    def ranks_of_all(self, records: Sequence[manifest.Record], features: np.ndarray) -> np.ndarray:
        """Ranks (N,) of the best picture of each record's concept, in any style, among all pictures of all styles."""
        concepts = np.array([concept for of_style, _ in self._of_style.values() for concept in of_style])
        gallery = np.concatenate([features for _, features in self._of_style.values()])
        return ranks_of_any(features, gallery, np.array([r.concept for r in records])[:, None] == concepts)

    def recall_any(
        self, asked: Sequence[tuple[Sequence[str], str]], images: Sequence[np.ndarray]
    ) -> tuple[dict[str, float], list[int]]:
        """R@1 and R@5, and the ranks, of `images` for (concepts that are right, style or "" for any).

        An image counts in the gallery in which it does best, for the concept for which it does.
        """
        features, best = self.judge(images), np.full(len(images), np.iinfo(int).max)
        for style, (concepts, gallery) in self._of_style.items():
            for i, (right, wanted) in enumerate(asked):
                answers = [concepts.index(c) for c in right if c in concepts and wanted in ("", style)]
                if answers:
                    rows = np.repeat(features[i : i + 1], len(answers), 0)
                    best[i] = min(best[i], ranks(rows, gallery, np.array(answers)).min())
        return {"R@1": recall_at(best, 1), "R@5": recall_at(best, 5)}, best.tolist()


def _judged(pictures: Pictures, judge: Judge, kept: Optional[Path]) -> list[np.ndarray]:
    """Features of every record's picture; `kept` has them by the judge's name and the SHA-256 of what is drawn."""
    drawn = [pictures.render(r) for r in pictures.records]
    if kept is None:
        return list(judge(drawn))
    keys = [f"{judge.name} {hashlib.sha256(picture.tobytes()).hexdigest()}" for picture in drawn]
    known = load_tensors(kept) if card_of_whole(kept) else {}
    new = {key: picture for key, picture in zip(keys, drawn) if key not in known}
    if new:
        known.update(zip(new, judge(list(new.values()))))
        save_checkpoint(kept, known, {})
    return [known[key] for key in keys]


def judge_natural(pictures: Pictures, galleries: Galleries, draw: Draw) -> dict[str, Any]:
    """R@5 in any style's gallery of pictures asked for in natural wording, beside the same things in template wording.

    `missed`: the natural prompts whose pictures were not found.
    """
    known = {r.concept: r.name for r in pictures.asked("train")}
    result: dict[str, Any] = {}
    for language in LANGUAGES:
        asked = [p for p in natural_prompts() if p.language == language and set(p.concepts) & set(known)]
        answers = [(p.concepts, p.style) for p in asked]
        natural, found = galleries.recall_any(answers, draw([p.prompt for p in asked]))
        plain = []
        for p in asked:
            name = known[next(c for c in p.concepts if c in known)][language]
            plain.append(f"{name}, {style_words(p.style, language)[0]}" if p.style else name)
        template, _ = galleries.recall_any(answers, draw(plain))
        result[language] = {
            "prompts": len(asked),
            "natural": natural,
            "template": template,
            "ratio": natural["R@5"] / max(template["R@5"], 1e-9),
            "missed": [p.prompt for p, rank in zip(asked, found) if rank > TOP],
        }
    return result


def judge_pairs(
    model: PanGuDraw, pictures: Pictures, galleries: Galleries, split: str, count: int, seed: int, draw: Draw
) -> dict[str, Any]:
    """R@1 and R@5 of drawn pictures of `count` (concept, style) pairs, beside the two yardsticks.

    `ceiling`: the real picture after the VAE round trip; `other_artist`: the concept's real pictures in other styles.
    """
    chosen = pictures.some(split, count, seed)
    others = [(r, o) for r in chosen for o in pictures.records if o.concept == r.concept and o.style != r.style]
    return {
        "pairs": len(chosen),
        "ceiling": galleries.recall(chosen, round_trip(model, [pictures.render(r) for r in chosen])),
        "other_artist": galleries.recall([r for r, _ in others], [pictures.render(o) for _, o in others]),
        **{f"drawn_{x}": galleries.recall(chosen, draw([prompt_for(r, x) for r in chosen])) for x in LANGUAGES},
    }


def composition_prompt(things: Sequence[str], places: Sequence[str], style: str, colour: str, language: str) -> str:
    """The plain request for a composition, e.g. "a fox on the left, a tree on the right, blue background, 3D style"."""
    where = PLACE_WORDS[language]
    if language == "en":
        parts = [f"a {thing} {where[place][0]}" for thing, place in zip(things, places)]
        return ", ".join([*parts, f"{colour} background", style_words(style, language)[0]])
    parts = [f"{thing}{where[place][0]}" for thing, place in zip(things, places)]
    return "，".join([*parts, f"{COLOUR_WORDS[colour]}背景", style_words(style, language)[0]])


def judge_compositions(pictures: Pictures, judge: Judge, count: int, seed: int, draw: Draw) -> dict[str, Any]:
    """Pairs at stated places on a stated colour: is each picture where it should be, and is the colour right?

    A picture is found where the crop around its place ranks it among the TOP of a pool of POOL trained pictures of its
    style on the same colour (the other picture of the scene is in the pool, so swapped places count as wrong).
    `real` is what the same check says of the scenes drawn from real pictures.
    """
    rng = np.random.default_rng(seed)
    style, pool = _pool(pictures, rng)
    if len(pool) < 2:
        raise UserError(f"compositions need at least two trained pictures of style {style}; found {len(pool)}")
    colours = COUNTED_ON
    scenes = []
    for i in range(count):
        first, second = (int(k) for k in rng.choice(len(pool), 2, replace=False))
        places = (("left", "right"), ("top", "bottom"))[int(rng.integers(2))]
        scenes.append((colours[i % len(colours)], ((first, places[0]), (second, places[1]))))
    galleries = {c: judge([_cell_image(pictures, r, c) for r in pool]) for c in colours}

    def check(images: Sequence[np.ndarray]) -> dict[str, float]:
        colour_right, found = [], []
        for image, (colour, parts) in zip(images, scenes):
            colour_right.append(nearest_colour(np.median(frame(image), axis=0)) == colour)
            features = judge([_crop(image, place) for _, place in parts])
            place_ranks = ranks(features, galleries[colour], np.array([number for number, _ in parts]))
            found.append([bool(r <= TOP) for r in place_ranks])
        each, colours_ok = np.array(found), np.array(colour_right)
        return {
            "picture_at_place": float(each.mean()),
            "background": float(colours_ok.mean()),
            "all_right": float((each.all(1) & colours_ok).mean()),
        }

    real = []
    for colour, parts in scenes:
        things = tuple(Thing(pictures.places[pool[number].file], place) for number, place in parts)
        real.append(pictures.examples["train"].image(Scene(SIDE, SIDE, colour, things)))
    result: dict[str, Any] = {"scenes": count, "style": style, "real": check(real)}
    for language in LANGUAGES:
        prompts = [
            composition_prompt(
                [pool[n].name[language] for n, _ in parts], [p for _, p in parts], style, colour, language
            )
            for colour, parts in scenes
        ]
        result[f"drawn_{language}"] = check(draw(prompts))
    return result


def counts_prompt(record: manifest.Record, number: int, colour: str, language: str) -> str:
    """The plain request for several of a thing, e.g. "three foxes, blue background, 3D style"."""
    what, words = noun(record), NUMBERS[language][number][0]
    if language == "en":
        said = [f"{words} {what.plural_of(record.name['en'])}", f"{colour} background"]
        return ", ".join([*said, style_words(record.style, language)[0]])
    said = [f"{words}{what.measure}{record.name['zh']}", f"{COLOUR_WORDS[colour]}背景"]
    return "，".join([*said, style_words(record.style, language)[0]])


def judge_counts(pictures: Pictures, judge: Judge, count: int, seed: int, draw: Draw) -> dict[str, Any]:
    """Two to four copies of one thing on a stated colour: is each where copies stand, and are there as many?

    Copies are found as the parts of compositions are; how many there are is counted as separate shapes on the ground.
    Only things are asked for whose real scenes pass both, so `real` is 1.
    """
    rng = np.random.default_rng(seed)
    style, pool = _pool(pictures, rng)
    galleries = {c: judge([_cell_image(pictures, r, c) for r in pool]) for c in COUNTED_ON}

    def check(images: Sequence[np.ndarray], asked: Sequence[tuple[int, int, str]]) -> list[tuple[float, bool, bool]]:
        """Of each image the share of copies found, whether there are as many, and whether the colour is right."""
        found = []
        for image, (place, number, colour) in zip(images, asked):
            share, offsets = ARRANGEMENTS[number]
            side = round(SIDE * share)
            corners = [(round(SIDE * (0.5 + dy) - side / 2), round(SIDE * (0.5 + dx) - side / 2)) for dx, dy in offsets]
            features = judge([image[top : top + side, left : left + side] for top, left in corners])
            each = ranks(features, galleries[colour], np.full(number, place)) <= TOP
            right = nearest_colour(np.median(frame(image), axis=0)) == colour
            found.append((float(each.mean()), shapes_on_ground(image) == number, right))
        return found

    asked = [(i, NUMBERED[i % len(NUMBERED)], COUNTED_ON[i % len(COUNTED_ON)]) for i in range(len(pool))]
    asked = [one for one in asked if noun(pool[one[0]]).countable]
    scenes = [
        Scene(SIDE, SIDE, colour, (Thing(pictures.places[pool[i].file], count=number),)) for i, number, colour in asked
    ]
    real = check([pictures.examples["train"].image(scene) for scene in scenes], asked)
    asked = [one for one, (each, as_many, right) in zip(asked, real) if each == 1 and as_many and right][:count]
    result: dict[str, Any] = {"scenes": len(asked), "style": style}
    for language in LANGUAGES if asked else ():
        images = draw([counts_prompt(pool[i], number, colour, language) for i, number, colour in asked])
        each, as_many, right = (np.array(one, float) for one in zip(*check(images, asked)))
        result[f"drawn_{language}"] = {
            "copy_at_place": float(each.mean()),
            "number": float(as_many.mean()),
            "all_right": float(((each == 1) * as_many * right).mean()),
        }
    return result


def shapes_on_ground(image: np.ndarray) -> int:
    """How many separate shapes stand on the ground of an (H, W, 3) uint8 picture: those of a fair size."""
    from scipy.ndimage import binary_closing, label

    ground = np.median(frame(image), axis=0)
    drawn = np.abs(image.astype(int) - ground).max(-1) > SHAPE
    labels, found = label(binary_closing(np.pad(drawn, CLOSING), iterations=CLOSING))
    if not found:
        return 0
    sizes = np.bincount(labels.ravel())[1:]
    return int((sizes >= FAIR * sizes.max()).sum())


def is_blank(image: np.ndarray) -> bool:
    """Whether nearly all pixels of an (H, W, 3) uint8 picture equal its ground."""
    ground = np.median(image.reshape(-1, 3), axis=0)
    return bool((np.abs(image.astype(int) - ground).max(-1) <= GROUND).mean() >= BLANK)


def _pool(pictures: Pictures, rng: np.random.Generator) -> tuple[str, list[manifest.Record]]:
    """The first style, and up to POOL trained pictures of it, among which things in a scene are looked for."""
    style = sorted({r.style for r in pictures.records})[0]
    trained = [r for r in pictures.asked("train") if r.style == style]
    return style, [trained[i] for i in rng.permutation(len(trained))[:POOL]]


def frame(image: np.ndarray) -> np.ndarray:
    """Pixels (N, 3) of the top and bottom border, whose median is the ground."""
    return np.concatenate([image[:BORDER].reshape(-1, 3), image[-BORDER:].reshape(-1, 3)])


def _cell_image(pictures: Pictures, record: manifest.Record, colour: str) -> np.ndarray:
    return pictures.render(record, colour, SIDE // 2)


def _crop(image: np.ndarray, place: str) -> np.ndarray:
    x, y, free = cell(SIDE, SIDE, place, 2)
    top, left = round(y - free / 2), round(x - free / 2)
    top, left = (min(max(0, v), SIDE - round(free)) for v in (top, left))
    return image[top : top + round(free), left : left + round(free)]
