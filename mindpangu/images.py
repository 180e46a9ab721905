"""Pictures: their sizes, how they are read, and the arrays that nets take."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mindpangu.errors import UserError

Image.init()  # so that Image.OPEN has all formats
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PIXELS = 64_000_000  # of a picture; more is taken for a decompression bomb
MAX_DIGITS = 6  # of a side
MAX_REASON = 120  # characters of what a library says
# What Pillow raises on files that are damaged in one way or another.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def parse_size(text: str) -> tuple[int, int]:
    """ "160x96" -> (160, 96): width and height in pixels.

    Raises:
        ValueError: not two positive whole numbers joined by x.
    """
    width, sign, height = text.lower().partition("x")
    sides = [side for side in (width, height) if len(side) <= MAX_DIGITS and side.isascii() and side.isdigit()]
    if not (sign and len(sides) == 2 and all(map(int, sides))):
        raise ValueError(f"size '{text}': use WIDTHxHEIGHT in pixels, for example 128x128")
    return int(width), int(height)


@contextmanager
def opened(source: Union[Path, bytes], name: str = "") -> Iterator[Image.Image]:
    """A picture file, or its content, not decoded yet; `name`: what errors call it, by default the path.

    The one place that opens pictures: those of FORMATS alone, none larger than MAX_PIXELS.

    Raises:
        UserError: no such file, no picture, damaged, or too large; also where the reader inside finds it damaged.
    """
    name = name or str(source)
    formats = [one for one in FORMATS if one in Image.OPEN]
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{name}: {picture.width}x{picture.height} pixels; at most {MAX_PIXELS} in all are read"
                )
            yield picture
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except BROKEN as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({' '.join(str(error).split())[:MAX_REASON]})"
        raise UserError(f"{name}: not a readable picture{why}; {', '.join(FORMATS)} are read") from None


def read_picture(source: Union[Path, bytes], name: str = "") -> Image.Image:
    """A picture as RGBA in 8 bits: turned as its EXIF says, 16 bits scaled, the first of several frames.

    Raises:
        UserError: see `opened`.
    """
    with opened(source, name) as picture:
        return upright(picture)


def upright(picture: Image.Image) -> Image.Image:
    """An opened picture as `read_picture` gives it. Raises: ValueError where its numbers have no scale."""
    picture.load()
    try:
        turned = ImageOps.exif_transpose(picture)
    except BROKEN:  # its EXIF cannot be read: it is shown as it lies, as viewers do
        turned = picture
    return _in_8_bits(turned).convert("RGBA")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture, np.float64)
    low, high = float(values.min()), float(values.max())
    largest = 1.0 if picture.mode == "F" else float(2**16 - 1)
    if not (low >= 0 and high <= largest):
        raise ValueError(f"values from {low:g} to {high:g}; of mode {picture.mode} 0 to {largest:g} is read")
    return Image.fromarray(np.rint(values / largest * 255).astype(np.uint8))


def on_ground(picture: Image.Image, colour: str) -> Image.Image:
    """A picture of any mode as RGB, on `colour` where transparent."""
    rgba = _in_8_bits(picture).convert("RGBA")
    flat = Image.new("RGBA", rgba.size, colour)
    flat.alpha_composite(rgba)
    return flat.convert("RGB")


def on_white(picture: Image.Image) -> Image.Image:
    """`on_ground` white: what a transparent part means everywhere but in masks."""
    return on_ground(picture, "white")


def to_model(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures of one size -> (N, 3, H, W) float32 in [-1, 1]."""
    batch = np.stack(images).astype(np.float32) / 127.5 - 1.0
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


def to_pictures(batch: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) about [-1, 1] -> (N, H, W, 3) uint8."""
    scaled = np.clip((batch.astype(np.float32) + 1.0) * 127.5 + 0.5, 0, 255)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 1))
