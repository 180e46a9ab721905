"""A contact sheet: pictures, the prompt below each, in whatever script it is written."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Optional

import manimgx_fonts
import manimgx_fonts_cjk
from PIL import Image, ImageDraw, ImageFont

from mindpangu.data.lexicon import concept_of, nouns
from mindpangu.infer.drawing import Drawing

CAPTION_SIZE, CAPTION_LINES, MARGIN = 13, 3, 8
LINE = CAPTION_SIZE + 3
CJK_SC = 2  # simplified Chinese's place in the collection of Noto Sans CJK
NO_CHARACTER = "\U0010ffff"  # stands for nothing in any font
JOINERS = dict.fromkeys((0x200D, 0xFE0E, 0xFE0F))  # drawn by no font of ours


@lru_cache(maxsize=1)
def fonts() -> list[ImageFont.FreeTypeFont]:
    """Noto's fonts (OFL-1.1, PyPI's manimgx-fonts): Chinese with Latin, then emoji, then other scripts."""
    cjk = Path(manimgx_fonts_cjk.__file__).parent / "NotoSansCJK-VF.otf.ttc"
    chinese = ImageFont.truetype(str(cjk), CAPTION_SIZE, CJK_SC)
    chinese.set_variation_by_name("Regular")
    upright = [path for path in Path(manimgx_fonts.__file__).parent.glob("*.ttf") if "Italic" not in path.name]
    others = sorted(upright, key=lambda path: ("Emoji" not in path.name, path))
    return [chinese, *(ImageFont.truetype(str(path), CAPTION_SIZE) for path in others)]


@lru_cache(maxsize=4096)
def font_of(character: str) -> Optional[int]:
    """The place in `fonts` of the first one that has a character, None where none has."""
    if character.isspace():
        return 0
    for place, font in enumerate(fonts()):
        missing = font.getmask(NO_CHARACTER)
        mask = font.getmask(character)
        if (mask.size, bytes(mask)) != (missing.size, bytes(missing)):
            return place
    return None


def in_letters(character: str) -> str:
    """A character, or the name of an emoji that is newer than the fonts: "[orca]"."""
    if font_of(character) is not None or unicodedata.category(character).startswith("M"):
        return character
    known = nouns().get(concept_of(character))
    return f"[{known.name['en']}]" if known else character


def runs(text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
    """The text in pieces of one font each; a mark stays with the letter that it stands on."""
    plain, places = "".join(map(in_letters, text.translate(JOINERS))), [0]
    for character in plain:
        marks = unicodedata.category(character).startswith("M")
        places.append(places[-1] if marks else font_of(character) or 0)
    for place, pairs in groupby(zip(places[1:], plain), key=lambda pair: pair[0]):
        yield fonts()[place], "".join(character for _, character in pairs)


def length(text: str) -> float:
    """Pixels across."""
    return sum(font.getlength(part) for font, part in runs(text))


def contact_sheet(drawings: Sequence[Drawing], columns: int = 0, scale: int = 1) -> Image.Image:
    """All drawings on one white sheet, the prompt below each; `columns` 0: as square as it gets."""
    columns = columns or max(1, round(len(drawings) ** 0.5 * 1.2))
    width = max(d.image.width for d in drawings) * scale
    height = max(d.image.height for d in drawings) * scale
    cell_width, cell_height = width + 2 * MARGIN, height + CAPTION_LINES * LINE + 2 * MARGIN
    rows = -(-len(drawings) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, drawing in enumerate(drawings):
        left, top = (i % columns) * cell_width + MARGIN, (i // columns) * cell_height + MARGIN
        size = (drawing.image.width * scale, drawing.image.height * scale)
        picture = drawing.image.resize(size, Image.Resampling.LANCZOS) if scale > 1 else drawing.image
        sheet.paste(picture, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        for k, text in enumerate(wrap(drawing.prompt, width)[:CAPTION_LINES]):
            x, y = left + (width - length(text)) / 2, top + height + 4 + CAPTION_SIZE + k * LINE
            for font, part in runs(text):
                draw.text((x, y), part, fill="black", font=font, anchor="ls")
                x += font.getlength(part)
    return sheet


def wrap(text: str, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels: at white space, and anywhere between CJK characters."""
    pieces: list[str] = []
    for word in text.split():
        start = 0
        for i, character in enumerate(word):
            if ord(character) > 0x2E7F:  # CJK and full-width punctuation
                pieces += [word[start:i], character] if i > start else [character]
                start = i + 1
        pieces.append(word[start:] + " ")
    lines = [""]
    for piece in pieces:
        if lines[-1] and length((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines if line.strip()]
