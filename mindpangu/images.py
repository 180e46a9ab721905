"""Pictures: their sizes, how they are read, and the arrays that nets take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mindpangu.errors import UserError


def parse_size(text: str) -> tuple[int, int]:
    """ "160x96" -> (160, 96): width and height in pixels.

    Raises:
        ValueError: not two positive whole numbers joined by x.
    """
    width, sign, height = text.lower().partition("x")
    if not (sign and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"size '{text}': use WIDTHxHEIGHT in pixels, for example 128x128")
    return int(width), int(height)


def read_picture(path: Path) -> Image.Image:
    """A picture of a data set as RGBA. Raises: UserError where the file is gone or unreadable."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: cannot be read ({error}); build the data again") from None


def on_white(picture: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, on white where transparent."""
    rgba = picture.convert("RGBA")
    flat = Image.new("RGBA", rgba.size, "white")
    flat.alpha_composite(rgba)
    return flat.convert("RGB")


def to_model(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures of one size -> (N, 3, H, W) float32 in [-1, 1]."""
    batch = np.stack(images).astype(np.float32) / 127.5 - 1.0
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def to_pictures(batch: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) about [-1, 1] -> (N, H, W, 3) uint8."""
    scaled = np.clip((batch.astype(np.float32) + 1.0) * 127.5 + 0.5, 0, 255)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))
