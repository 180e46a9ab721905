"""Line drawings for ControlNets: light lines on black, from drawings, from pictures' edges (Canny), from a data set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from mindpangu.data import manifest
from mindpangu.data.examples import Examples
from mindpangu.data.scenes import Scene, render
from mindpangu.errors import UserError
from mindpangu.images import read_picture

LINE_STYLE = "line"
SHOWN = 5  # names in an error
SMOOTHING = 1.0  # pixels; Canny's Gaussian
LOW, HIGH = 0.1, 0.2  # Canny's thresholds, of gradients of pictures in [0, 1]


def edges(picture: np.ndarray, smoothing: float = SMOOTHING, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) bool: Canny's edges (1986) of the picture in grey, scikit-image's."""
    from skimage.feature import canny

    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32) / 255
    return np.asarray(canny(grey, smoothing, low, high), bool)


def by_hand(where: np.ndarray) -> np.ndarray:
    """Edges (H, W) bool, three pixels wide: as thick as a person draws them."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(where), bool)


def as_lines(where: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W, 3) uint8: white where true, on black."""
    return np.repeat(where[..., None].astype(np.uint8) * 255, 3, axis=2)


def light_on_dark(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, a drawing of either kind -> the same, inverted where its ground (the median) is light."""
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    return 255 - picture if np.median(grey) > 127 else picture


class LineDrawings:
    """The line drawings of the scenes of an `Examples`: what is in them, in the data set's style `line`."""

    def __init__(self, examples: Examples) -> None:
        """Raises: UserError where the data set has no line drawings, or not of all that is in the examples."""
        folder, self.records = examples.config.folder, examples.records
        self.files = {r.concept: folder / r.file for r in manifest.read(folder, (LINE_STYLE,))}
        missing = sorted({r.name["en"] for r in self.records if r.concept not in self.files})
        if missing:
            raise UserError(f"{folder}: no line drawing of {', '.join(missing[:SHOWN])}")
        self._art: dict[int, Image.Image] = {}

    def __call__(self, scene: Scene) -> np.ndarray:
        """(height, width, 3) uint8."""

        def art(index: int) -> Image.Image:
            if index not in self._art:
                self._art[index] = read_picture(self.files[self.records[index].concept])
            return self._art[index]

        white = replace(scene, background="white")
        grey = ImageOps.grayscale(Image.fromarray(render(white, art)))
        return np.repeat(255 - np.asarray(grey)[..., None], 3, axis=2)
