"""Scenes: one to three pictures at stated places and sizes on a coloured background, so that the caption is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

# How much of the free side a picture takes. Always the same, and always in the middle: what a caption does not say, a
# small model must not have to learn.
FILL = 0.92

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
class Placed:
    """Picture number `picture`, centred at (x, y) pixels, `side` pixels large; `place` is a key of CENTRES."""

    picture: int
    place: str
    x: float
    y: float
    side: int


@dataclass(frozen=True)
class Scene:
    """What stands where. `background` is a key of COLOURS."""

    width: int
    height: int
    background: str
    placed: tuple[Placed, ...]

    @property
    def is_composition(self) -> bool:
        """True where the caption says places: several pictures, or one off the middle."""
        return len(self.placed) > 1 or self.placed[0].place != "middle"


def cell(width: int, height: int, place: str, count: int) -> tuple[float, float, float]:
    """Centre (x, y) and free side, in pixels, of `place` on a canvas shared by `count` pictures."""
    if count == 1 and place == "middle":
        return width / 2, height / 2, min(width, height)
    across = place in ("left", "right") or (place == "middle" and width >= height)
    centres = (ROWS_OF_THREE if across else COLUMNS_OF_THREE) if count == 3 else CENTRES
    x, y = centres[place]
    along, other = (width, height) if across else (height, width)
    free = along / 3 if count == 3 else along * 0.5
    return x * width, y * height, min(free, other)


def places_for(width: int, height: int, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Places for `count` pictures: along the longer axis on long canvases, along either on square ones."""
    across = width > height or (width == height and bool(rng.integers(2)))
    ends = ("left", "right") if across else ("top", "bottom")
    if count == 3:
        return ends[0], "middle", ends[1]
    return ends if count == 2 else (ends[int(rng.integers(2))],)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], pictures: Sequence[int], at_places: bool, background: str
) -> Scene:
    """A scene of `pictures` on a (width, height) canvas; a lone picture stands at a place only if `at_places`."""
    width, height = size
    alone = len(pictures) == 1 and not at_places
    places = ("middle",) if alone else places_for(width, height, len(pictures), rng)
    placed = []
    for picture, place in zip(pictures, places):
        x, y, free = cell(width, height, place, len(pictures))
        placed.append(Placed(int(picture), place, float(x), float(y), round(free * FILL)))
    return Scene(width, height, background, tuple(placed))


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
