"""Which colours a picture has, in the words of people."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 48  # pixels a side at which a picture's colours are counted
OPAQUE = 128
MAIN, SOME = 0.5, 0.15  # shares of the opaque pixels that make a colour the thing's own, or one of its parts'
GRAYS = ("black", "gray", "white")
HUES = ((15, "red"), (43, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (292, "purple"), (345, "pink"))


class Palette(NamedTuple):
    """`main`: the colour of most of the thing, "" for none; `others`: those of some of it, the largest first."""

    main: str
    others: tuple[str, ...]


def colour_shares(picture: Image.Image) -> dict[str, float]:
    """The share of an RGBA picture's opaque pixels that people call by each colour, the largest first."""
    small = np.asarray(picture.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BOX))
    pixels = small[small[..., 3] >= OPAQUE][:, :3]
    if not len(pixels):
        return {}
    names, counts = np.unique(names_of(pixels), return_counts=True)
    shares = {str(name): float(count) / len(pixels) for name, count in zip(names, counts)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def palette(picture: Image.Image) -> Palette:
    """The colours that may be said of an RGBA picture."""
    shares = colour_shares(picture)
    main = next((name for name, share in shares.items() if share >= MAIN), "")
    return Palette(main, tuple(name for name, share in shares.items() if share >= SOME and name != main))


def names_of(pixels: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 sRGB -> (N,) names, by hue, saturation and value."""
    rgb = pixels.astype(np.float64) / 255
    value, least = rgb.max(1), rgb.min(1)
    chroma = value - least
    saturation = np.divide(chroma, value, out=np.zeros_like(value), where=value > 0)
    hue = _hue(rgb, value, chroma)
    found = np.full(len(rgb), "red", dtype="<U6")
    for limit, name in reversed(HUES):
        found[hue < limit] = name
    found[(found == "red") & (saturation < 0.55) & (value > 0.75)] = "pink"
    found[np.isin(found, ("red", "orange", "yellow")) & (hue < 50) & (hue >= 5) & (value < 0.68)] = "brown"
    found[(saturation < 0.16) | (value < 0.16)] = "gray"
    found[(found == "gray") & (value < 0.3)] = "black"
    found[(found == "gray") & (value > 0.86)] = "white"
    return found


def _hue(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees, 0 where there is no chroma."""
    safe = np.where(chroma > 0, chroma, 1)
    r, g, b = rgb.T
    sixth = np.select([value == r, value == g], [(g - b) / safe % 6, (b - r) / safe + 2], default=(r - g) / safe + 4)
    return np.where(chroma > 0, 60 * sixth, 0.0)
