"""One static page of a folder's pictures: searchable, without a server or a network, quick with ten thousand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mindpangu.errors import UserError
from mindpangu.infer.image_file import FORMATS, read_settings

SHOWN = ("prompt", "negative", "seed", "size", "steps", "guidance", "sampler", "styles", "model")

TEMPLATE = Path(__file__).with_name("gallery.html")


def page(folder: Path, progress: Callable[[int], object]) -> str:
    """The page of all pictures below `folder`, to lie in it. progress(1): a picture was read.

    Raises:
        UserError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in FORMATS)
    if not files:
        raise UserError(f"{folder}: no pictures ({', '.join(FORMATS)})")
    entries = []
    for path in files:
        entries.append(_entry(path, folder))
        progress(1)
    data = json.dumps(entries, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Nothing in a prompt can end the script that holds it.
    data = data.replace("<", "\\u003c").encode("utf-8", "replace").decode()  # half characters are no text
    return TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", data)


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    try:
        settings = read_settings(path)
    except UserError:
        settings = {}
    kept = {key: settings[key] for key in SHOWN if settings.get(key) not in (None, "", {})}
    return {"file": name, "url": quote(name), "settings": kept}
