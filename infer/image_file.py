"""Pictures on disk, which carry their settings; and a picture drawn again, bit for bit, from those that it carries."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Optional

from PIL import ExifTags, Image, PngImagePlugin

from mindpangu import runtime
from mindpangu.checkpoint.store import write_atomically, write_new
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.images import BROKEN, opened
from mindpangu.infer.contact_sheet import contact_sheet
from mindpangu.infer.drawing import Drawing
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.request import SamplingOptions

MAX_TOGETHER = 4096  # pictures, as a picture's settings may say
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


def save_drawings(drawings: Iterable[Drawing], folder: Path, grid: bool) -> tuple[int, Path]:
    """Write each drawing as it comes, numbered on from those that are there: 0000.png, 0001.png, …; and, if `grid`, a
    contact sheet, grid.png or grid-1.png and on. Returns how many, and what to look at.

    Raises:
        UserError: the folder cannot be written.
    """
    count, shown = 0, []
    taken = [int(path.stem) for path in folder.glob("[0-9]*.png") if path.stem.isdecimal()]
    number = max(taken, default=-1) + 1
    for drawing in drawings:
        path = write_new((folder / f"{i:04d}.png" for i in itertools.count(number)), encoded(drawing, ".png"))
        number, count = int(path.stem) + 1, count + 1
        if grid:
            shown.append(drawing)
    if not shown:
        return count, folder
    buffer = BytesIO()
    contact_sheet(shown).save(buffer, format="PNG")
    names = itertools.chain(["grid.png"], (f"grid-{i}.png" for i in itertools.count(1)))
    return count, write_new(map(folder.joinpath, names), buffer.getvalue())


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a picture carries ({} where it carries none).

    Raises:
        UserError: no such file, or no picture.
    """
    with opened(path) as picture:
        try:
            said = picture.getexif().get(ExifTags.Base.ImageDescription)
        except BROKEN:
            said = None
        text = picture.info.get(SETTINGS_KEY) or said or "{}"
    try:
        settings = json.loads(text, parse_float=_finite, parse_constant=lambda _: None)
    except (ValueError, TypeError, RecursionError):
        return {}  # another program's description
    return settings if isinstance(settings, dict) and "prompt" in settings else {}


def _finite(text: str) -> Optional[float]:
    """A number of JSON; None where it has no finite value, as 1e999."""
    number = float(text)
    return number if math.isfinite(number) else None


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


@dataclass(frozen=True)
class Redrawn(SamplingOptions):
    """What is read of a picture's settings to draw it again."""

    prompt: str = ""
    seed: int = 0
    batch: int = 1
    stopped_after: Optional[int] = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_TOGETHER:
            raise ValueError(f"batch is {self.batch}; 1 to {MAX_TOGETHER} is allowed")


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
    dtype = settings.get("compute_dtype", "fp32")
    if dtype != runtime.compute_dtype():
        raise UserError(
            f"the picture was drawn in {dtype}, and nets compute in {runtime.compute_dtype()} here; set "
            f"{runtime.COMPUTE_DTYPE}={dtype}"
        )
    known = {one.name for one in fields(Redrawn)}
    said = parse({key: value for key, value in settings.items() if key in known}, Redrawn, "the picture's settings")
    end = math.inf if said.stopped_after is None else said.stopped_after
    return model(
        [said.prompt] * said.batch,
        seed=(said.seed,) * said.batch,
        batch=said.batch,
        on_step=lambda state: state.step + 1 < end,
        **{name: value for name, value in said.options.items() if name in settings},
    )[0]
