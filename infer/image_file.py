"""Pictures on disk, which carry their settings; and a picture drawn again, bit for bit, from those that it carries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from mindpangu.checkpoint.store import write_atomically
from mindpangu.errors import UserError
from mindpangu.infer.contact_sheet import contact_sheet
from mindpangu.infer.drawing import Drawing
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.request import OPTION_NAMES

SETTINGS_KEY = "mindpangu"
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG"}
QUALITY: dict[str, dict[str, Any]] = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}


def encoded(drawing: Drawing, suffix: str = ".png") -> bytes:
    """A picture file that carries its settings: as JSON, and as the "parameters" text that many programs show.

    PNG has them in its text chunks "mindpangu" and "parameters"; WebP and JPEG in EXIF, the JSON as ImageDescription
    and the text as UserComment.
    """
    plain, text = json.dumps(drawing.settings, ensure_ascii=False), parameters(drawing.settings)
    buffer = BytesIO()
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(SETTINGS_KEY, plain)
        info.add_itxt("parameters", text)
        drawing.image.save(buffer, format="PNG", pnginfo=info)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(drawing.settings)  # ASCII by its definition
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    drawing.image.save(buffer, format=FORMATS[suffix], exif=exif, **QUALITY[suffix])
    return buffer.getvalue()


def parameters(settings: Mapping[str, Any]) -> str:
    """The settings as AUTOMATIC1111's web UI writes them: prompt, negative prompt, "Steps: 30, Sampler: …"."""
    lines = [settings["prompt"]]
    if settings.get("negative"):
        lines.append(f"Negative prompt: {settings['negative']}")
    named = {
        "Steps": settings.get("steps"),
        "Sampler": settings.get("sampler"),
        "Schedule type": settings.get("sigmas"),
        "CFG scale": settings.get("guidance"),
        "Seed": settings.get("seed"),
        "Size": settings.get("size"),
        "Model hash": settings.get("digest"),
        "Model": settings.get("model"),
        "Version": f"MindPanGu {settings.get('version')}",
    }
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in named.items() if value is not None)])


def save_drawing(drawing: Drawing, path: Path) -> None:
    """Write a picture in the format of its suffix, with its settings.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(path, encoded(drawing, path.suffix))


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


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a picture carries ({} where it carries none).

    Raises:
        UserError: no such file, or no picture.
    """
    try:
        with Image.open(path) as picture:
            text = picture.info.get(SETTINGS_KEY) or picture.getexif().get(ExifTags.Base.ImageDescription) or "{}"
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from None
    try:
        settings = json.loads(text)
    except ValueError:
        return {}  # another program's description
    return settings if isinstance(settings, dict) and "prompt" in settings else {}


def own_settings(path: Path) -> dict[str, Any]:
    """The settings of a picture of ours. Raises: UserError where it carries none."""
    settings = read_settings(path)
    if not settings:
        raise UserError(f"{path}: carries no settings of ours; another program drew or saved it")
    return settings


ELSEWHERE = {  # what settings name, but a file does not carry
    "source": "the picture that it began from",  # as it was called before 0.2
    "init_image": "the picture that it began from",
    "controls": "what its ControlNets looked at",
    "latents": "the latents that it began from",
    "loras": "its LoRAs",
    "refiner": "its refiner",
    "coop": "a recipe of several models",
}


def redraw(model: PanGuDraw, settings: Mapping[str, Any]) -> Drawing:
    """Draw it again, beside as many others as then: the number drawn together changes the last bits of sums.

    Raises:
        UserError: another model, or something that the settings only name.
    """
    missing = [words for key, words in ELSEWHERE.items() if key in settings]
    if missing:
        raise UserError(f"the picture was drawn with {missing[0]}, which is not in it; draw it with the options again")
    if "index" in settings:
        raise UserError("the picture is an earlier version's, whose noise depended on the prompt too; draw it anew")
    if settings.get("digest") != model.digest:
        raise UserError(
            f"the picture was drawn by {settings.get('model')} {settings.get('digest', 'of an unknown version')}, and "
            f"this is {model.spec.name} {model.digest}"
        )
    together = int(settings.get("batch", 1))
    options = {key: settings[key] for key in OPTION_NAMES if key in settings}
    end = settings.get("stopped_after", math.inf)
    return model(
        [settings["prompt"]] * together,
        seed=(int(settings["seed"]),) * together,
        batch=together,
        on_step=lambda state: state.step + 1 < end,
        **options,
    )[0]
