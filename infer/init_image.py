"""A picture to start from, and a mask of what to draw anew: read, fitted to the asked size, encoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np
from PIL import Image, ImageOps

from mindpangu.data.lines import light_on_dark
from mindpangu.errors import UserError
from mindpangu.images import on_ground, on_white, read_picture

DARK = 16  # of 255


@dataclass(frozen=True)
class InitImage:
    """`picture`: (H, W, 3) uint8; `mask`: (H, W) float32 in [0, 1], 1 where to draw anew, or None for everywhere."""

    picture: np.ndarray
    mask: Optional[np.ndarray] = None

    @classmethod
    def open(
        cls, picture: Union[Path, Image.Image], mask: Optional[Union[Path, Image.Image]], size: tuple[int, int]
    ) -> InitImage:
        """Both at (width, height): scaled to cover it, cut evenly, on white where transparent.

        A mask is light where to draw anew, black where transparent, and of the picture's shape, up to a pixel's
        rounding; it is fitted as the picture is. What is nearly black, as lossy files make it, counts as black.

        Raises:
            UserError: a file is absent or no picture, the two differ in shape, or the mask is black throughout.
        """
        opened = Image.fromarray(read_flat(picture))
        fitted = np.asarray(ImageOps.fit(opened, size, Image.Resampling.LANCZOS))
        if mask is None:
            return cls(fitted)
        light = on_ground(mask if isinstance(mask, Image.Image) else read_picture(mask), "black").convert("L")
        if not same_shape(light.size, opened.size):
            raise UserError(
                f"{mask}: the mask is {light.width}x{light.height} and the picture {opened.width}x{opened.height}; "
                "they must have the same shape"
            )
        grey = np.asarray(ImageOps.fit(light, size, Image.Resampling.BILINEAR), np.float32)
        where = np.where(grey < DARK, 0, grey) / 255
        if not where.any():
            raise UserError(f"{mask}: the mask is black throughout; make it white where to draw anew")
        return cls(fitted, where)

    @property
    def digest(self) -> str:
        """What tells sources apart, for a picture's settings."""
        content = self.picture.tobytes() + (b"" if self.mask is None else self.mask.tobytes())
        return hashlib.sha256(content).hexdigest()[:16]

    def latent_mask(self, factor: int) -> np.ndarray:
        """(1, 1, H/factor, W/factor) float32: 1 where any pixel of the latent's cell is to be drawn anew."""
        if self.mask is None:
            height, width = (side // factor for side in self.picture.shape[:2])
            return np.ones((1, 1, height, width), np.float32)
        height, width = (side // factor for side in self.mask.shape)
        cells = self.mask.reshape(height, factor, width, factor)
        return (cells.max((1, 3)) > 0).astype(np.float32)[None, None]

    def keep_rest(self, drawn: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 with the picture's own pixels where the mask is 0, blended where it is grey."""
        if self.mask is None:
            return drawn
        weight = self.mask[..., None]
        return np.rint(weight * drawn + (1 - weight) * self.picture).astype(np.uint8)


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled, up to a pixel."""
    small, large = sorted((one, other))
    scale = small[0] / large[0]
    return abs(large[1] * scale - small[1]) <= 1 or abs(large[0] * small[1] / large[1] - small[0]) <= 1


def read_flat(picture: Union[Path, Image.Image]) -> np.ndarray:
    """A picture as (H, W, 3) uint8, on white where transparent. Raises: UserError."""
    return np.asarray(on_white(picture if isinstance(picture, Image.Image) else read_picture(picture)))


def read_lines(picture: Union[Path, Image.Image], size: tuple[int, int]) -> np.ndarray:
    """A line drawing as light lines on dark, (H, W, 3) uint8 of `size` (width, height): the whole of it, not cut.

    Raises:
        UserError: no such picture, or nothing is drawn on it.
    """
    drawing = light_on_dark(read_flat(picture))
    if drawing.min() == drawing.max():
        raise UserError(f"{picture}: a blank picture (transparent parts count as white); a line drawing is needed")
    ground = tuple(int(value) for value in np.median(drawing.reshape(-1, 3), axis=0))
    return np.asarray(ImageOps.pad(Image.fromarray(drawing), size, Image.Resampling.LANCZOS, color=ground))
