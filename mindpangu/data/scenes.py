"""Scenes: things at stated places, in stated numbers and sizes, on a coloured background: a caption can be exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

# The named background colours, in sRGB.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (156, 163, 175),
    "red": (220, 38, 38),
    "orange": (249, 145, 50),
    "yellow": (250, 214, 70),
    "green": (60, 170, 90),
    "blue": (59, 120, 235),
    "purple": (147, 70, 220),
    "pink": (246, 150, 200),
    "brown": (130, 85, 50),
}

# How much of the free side a thing takes, by the size that is said of it; "" is said by nobody.
SIZES = {"": 0.84, "small": 0.46, "big": 1.0}

# Where the copies of a thing stand around its place, in free sides, and how much of the side each has.
ROW = (-1 / 3, 0.0, 1 / 3)
ARRANGEMENTS: dict[int, tuple[float, tuple[tuple[float, float], ...]]] = {
    1: (1.0, ((0.0, 0.0),)),
    2: (0.5, ((-0.25, 0.0), (0.25, 0.0))),
    3: (0.5, ((0.0, -0.25), (-0.25, 0.25), (0.25, 0.25))),
    4: (0.5, ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))),
    5: (1 / 3, ((-1 / 6, -1 / 6), (1 / 6, -1 / 6), *((x, 1 / 6) for x in ROW))),
    6: (1 / 3, (*((x, -1 / 6) for x in ROW), *((x, 1 / 6) for x in ROW))),
}

# Centres as fractions of (width, height).
CENTRES = {
    "middle": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
}
ROWS_OF_THREE = {"left": (1 / 6, 0.5), "middle": (0.5, 0.5), "right": (5 / 6, 0.5)}
COLUMNS_OF_THREE = {"top": (0.5, 1 / 6), "middle": (0.5, 0.5), "bottom": (0.5, 5 / 6)}


@dataclass(frozen=True)
class Thing:
    """`count` copies (a key of ARRANGEMENTS) of picture number `picture`, at `place` (a key of CENTRES).

    `size` is a key of SIZES.
    """

    picture: int
    place: str = "middle"
    count: int = 1
    size: str = ""


class Placed(NamedTuple):
    """Picture number `picture`, centred at (x, y) pixels, `side` pixels large."""

    picture: int
    x: float
    y: float
    side: int


@dataclass(frozen=True)
class Scene:
    """What stands where on a canvas of (width, height) pixels. `background` is a key of COLOURS."""

    width: int
    height: int
    background: str
    things: tuple[Thing, ...]

    @property
    def is_composition(self) -> bool:
        """True where the caption says places: several things, or one off the middle."""
        return len(self.things) > 1 or self.things[0].place != "middle"

    @property
    def placed(self) -> tuple[Placed, ...]:
        """Every copy of every thing."""
        found = []
        for thing in self.things:
            x, y, free = cell(self.width, self.height, thing.place, len(self.things))
            share, offsets = ARRANGEMENTS[thing.count]
            side = round(free * share * SIZES[thing.size])
            found += [Placed(thing.picture, x + dx * free, y + dy * free, side) for dx, dy in offsets]
        return tuple(found)


class Mix(NamedTuple):
    """Shares of things of which there are several copies (`counts`), and that are small or big (`sizes`)."""

    counts: float = 0.0
    sizes: float = 0.0


PLAIN = Mix()


def cell(width: int, height: int, place: str, count: int) -> tuple[float, float, float]:
    """Centre (x, y) and free side, in pixels, of `place` on a canvas shared by `count` things."""
    if count == 1 and place == "middle":
        return width / 2, height / 2, min(width, height)
    across = place in ("left", "right") or (place == "middle" and width >= height)
    centres = (ROWS_OF_THREE if across else COLUMNS_OF_THREE) if count == 3 else CENTRES
    x, y = centres[place]
    along, other = (width, height) if across else (height, width)
    free = along / 3 if count == 3 else along * 0.5
    return x * width, y * height, min(free, other)


def places_for(width: int, height: int, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Places for `count` things: along the longer axis on long canvases, along either on square ones."""
    across = width > height or (width == height and bool(rng.integers(2)))
    ends = ("left", "right") if across else ("top", "bottom")
    if count == 3:
        return ends[0], "middle", ends[1]
    return ends if count == 2 else (ends[int(rng.integers(2))],)


def draw_things(
    rng: np.random.Generator,
    size: tuple[int, int],
    pictures: Sequence[int],
    at_places: bool,
    mix: Mix = PLAIN,
    countable: Callable[[int], bool] = lambda _: True,
) -> tuple[Thing, ...]:
    """`pictures` on a (width, height) canvas; a lone one stands at a place only if `at_places`.

    One thing among several has at most three copies, and only what is `countable` has any.
    """
    alone = len(pictures) == 1 and not at_places
    places = ("middle",) if alone else places_for(*size, len(pictures), rng)
    most = max(ARRANGEMENTS) if alone else 3
    things = []
    for picture, place in zip(pictures, places):
        several, sized = rng.random() < mix.counts, rng.random() < mix.sizes
        count, word = int(rng.integers(2, most + 1)), ("small", "big")[int(rng.integers(2))]
        things.append(Thing(int(picture), place, count if several and countable(picture) else 1, word if sized else ""))
    return tuple(things)


def render(scene: Scene, picture: Callable[[int], Image.Image], scale: float = 1.0) -> np.ndarray:
    """The scene as (height, width, 3) uint8; `picture(i)` gives picture i as square RGBA; `scale` shrinks it all."""
    size = (round(scene.width * scale), round(scene.height * scale))
    canvas = Image.new("RGB", size, COLOURS[scene.background])
    for one in scene.placed:
        side = max(1, round(one.side * scale))
        art = picture(one.picture).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        canvas.paste(art, (round(one.x * scale - side / 2), round(one.y * scale - side / 2)), art)
    return np.asarray(canvas)


def nearest_colour(rgb: Sequence[float]) -> str:
    """The key of COLOURS nearest to an sRGB triple."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], rgb)))
