"""Pictures on disk: PNGs that carry their settings, and a contact sheet with captions in both languages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from mindpangu.checkpoint.store import write_atomically
from mindpangu.infer.pipeline import Drawing

SETTINGS_KEY = "mindpangu"
FONT = Path(__file__).parent / "fonts" / "NotoSansSC-subset.otf"
CAPTION_SIZE, CAPTION_LINES, MARGIN = 13, 3, 8


def save_drawing(drawing: Drawing, path: Path) -> None:
    """Write a PNG; its text chunk "mindpangu" holds the settings as JSON.

    Raises:
        UserError: the folder cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    info.add_itxt(SETTINGS_KEY, json.dumps(drawing.settings, ensure_ascii=False))
    buffer = BytesIO()
    drawing.image.save(buffer, format="PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())


def save_drawings(drawings: Sequence[Drawing], folder: Path, grid: bool) -> Path:
    """Write 0000.png, 0001.png, … and, if `grid`, a contact sheet, grid.png; returns what to look at.

    Raises:
        UserError: the folder cannot be written.
    """
    for number, drawing in enumerate(drawings):
        save_drawing(drawing, folder / f"{number:04d}.png")
    if not grid:
        return folder
    contact_sheet(drawings).save(folder / "grid.png")
    return folder / "grid.png"


def read_settings(path: Path) -> dict:
    """The settings in a PNG's metadata ({} where there are none)."""
    with Image.open(path) as picture:
        return dict(json.loads(picture.info.get(SETTINGS_KEY, "{}")))


def contact_sheet(drawings: Sequence[Drawing], columns: int = 0, scale: int = 1) -> Image.Image:
    """All drawings on one white sheet, the prompt below each; `columns` 0: as square as it gets."""
    columns = columns or max(1, round(len(drawings) ** 0.5 * 1.2))
    width = max(d.image.width for d in drawings) * scale
    height = max(d.image.height for d in drawings) * scale
    line = CAPTION_SIZE + 3
    cell_width, cell_height = width + 2 * MARGIN, height + CAPTION_LINES * line + 2 * MARGIN
    rows = -(-len(drawings) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(str(FONT), CAPTION_SIZE)
    for i, drawing in enumerate(drawings):
        left, top = (i % columns) * cell_width + MARGIN, (i // columns) * cell_height + MARGIN
        size = (drawing.image.width * scale, drawing.image.height * scale)
        picture = drawing.image.resize(size, Image.Resampling.LANCZOS) if scale > 1 else drawing.image
        sheet.paste(picture, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        for k, text in enumerate(wrap(drawing.prompt, font, width)[:CAPTION_LINES]):
            draw.text((left + width / 2, top + height + 4 + k * line), text, fill="black", font=font, anchor="ma")
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels: at spaces, and anywhere between CJK characters."""
    pieces: list[str] = []
    for word in text.split(" "):
        start = 0
        for i, character in enumerate(word):
            if ord(character) > 0x2E7F:  # CJK and full-width punctuation
                pieces += [word[start:i], character] if i > start else [character]
                start = i + 1
        pieces.append(word[start:] + " ")
    lines = [""]
    for piece in pieces:
        if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines if line.strip()]
