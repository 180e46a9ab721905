"""Build the emoji data set: about 1,500 concepts in up to six art styles, named in English and Chinese."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Optional

from mindpangu.checkpoint.store import write_atomically
from mindpangu.data import manifest
from mindpangu.data.sources import NAMES_PACKAGE, STYLES, Reader, fetch_npm, open_style, plain_code
from mindpangu.errors import UserError
from mindpangu.images import opened

COMPONENT_AND_FLAG_GROUPS = (2, 9)
HELDOUT_SHARE = 0.1
NATIVE_SIZES = {"fluent_3d": 256}  # the only style that is pixels at the source; the others are SVG


@dataclass(frozen=True)
class Concept:
    """A thing an emoji shows, with its names and tags by language ("en", "zh")."""

    code: str
    name: dict[str, str]
    tags: dict[str, list[str]]
    group: str
    subgroup: str


@dataclass
class Report:
    """What was built and what is missing; `missing` holds one line a problem."""

    pictures: Counter = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone (SHA-256), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def heldout_style(code: str, styles: Sequence[str]) -> str:
    """The style in which `code` is held out, or "" for none.

    A concept loses at most one style, so it is always seen in the others; over all concepts a tenth of the (concept,
    style) pairs is held out. Depends on the concept and its list of styles alone.
    """
    if len(styles) < 2:
        return ""
    place = hash_fraction(f"heldout:{code}") / HELDOUT_SHARE  # uniform in [0, 10): styles take one unit each
    return sorted(styles)[int(place)] if place < len(styles) else ""


def read_concepts(cache: Path) -> list[Concept]:
    """All concepts but flags, skin tones and gender variants, in emoji order.

    Raises:
        UserError: the names package cannot be fetched or read.
    """
    folder = fetch_npm(NAMES_PACKAGE, cache)
    try:
        languages = {
            language: {e["hexcode"]: e for e in json.loads((folder / language / "data.json").read_text("utf-8"))}
            for language in ("en", "zh")
        }
        meta = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{NAMES_PACKAGE}: the package is truncated ({error}); delete it from the cache") from None
    concepts = []
    for hexcode, entry in languages["en"].items():
        if entry.get("group") in (None, *COMPONENT_AND_FLAG_GROUPS) or "gender" in entry:
            continue
        chinese = languages["zh"].get(hexcode)
        if chinese is None:
            continue
        concepts.append(
            Concept(
                code=plain_code(hexcode),
                name={"en": _clean(entry["label"]), "zh": _clean(chinese["label"])},
                tags={"en": entry.get("tags", []), "zh": chinese.get("tags", [])},
                group=meta["groups"][str(entry["group"])],
                subgroup=meta["subgroups"].get(str(entry.get("subgroup")), ""),
            )
        )
    return concepts


def _clean(name: str) -> str:
    return name.replace("’", "'").replace("“", "").replace("”", "").strip()


def build(
    out: Path,
    styles: Sequence[str] = tuple(STYLES),
    size: int = 256,
    low_res_share: float = 0.0,
    low_res_size: int = 64,
    progress: Callable[[str, int, int], None] = lambda style, done, total: None,
) -> Report:
    """Write `out`/<style>/<code>.png (RGBA, `size` pixels) and `out`/manifest.jsonl; return what is there and missing.

    A share of the pictures, chosen by hash, can be kept at `low_res_size` only, as in a web-scale data set where many
    pictures are small: the paper's structure generator uses them, its texture generator does not.

    Raises:
        UserError: unknown style, unwritable folder, or not one picture could be built.
    """
    for style in styles:
        if style not in STYLES:
            raise UserError(f"style '{style}' is unknown; allowed: {', '.join(STYLES)}")
    cache = out / "packages"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    concepts = read_concepts(cache)
    report = Report()
    readers: dict[str, Reader] = {}
    for key in styles:
        try:
            readers[key] = open_style(STYLES[key], cache)
        except UserError as error:
            report.missing.append(f"style {key}: {error}")
    built: list[manifest.Record] = []
    for key, reader in readers.items():
        (out / key).mkdir(exist_ok=True)
        for done, concept in enumerate(concepts):
            progress(key, done + 1, len(concepts))
            small = hash_fraction(f"low_res:{concept.code}:{key}") < low_res_share
            side = low_res_size if small else size
            record = _build_one(out, key, reader, concept, side, report)
            if record is not None:
                built.append(record)
                report.pictures[key] += 1
    if not built:
        raise UserError(f"no picture could be built: {'; '.join(report.missing) or 'no style was asked for'}")
    manifest.write(assign_splits(built), out / "manifest.jsonl")
    write_atomically(out / "missing.txt", "".join(f"{line}\n" for line in report.missing).encode())
    return report


def _build_one(
    out: Path, style: str, reader: Reader, concept: Concept, side: int, report: Report
) -> Optional[manifest.Record]:
    file = f"{style}/{concept.code}.png"
    try:
        if not _is_picture(out / file, side):
            picture = reader(concept.code, side)
            if picture is None:
                report.missing.append(f"{file}: '{concept.name['en']}' does not exist in this style")
                return None
            content = BytesIO()
            picture.save(content, format="PNG")
            write_atomically(out / file, content.getvalue())
    except (OSError, ValueError, UserError) as error:
        report.missing.append(f"{file}: unreadable in its package ({' '.join(str(error).split())})")
        return None
    return manifest.Record(
        file=file,
        concept=concept.code,
        style=style,
        name=concept.name,
        tags=concept.tags,
        group=concept.group,
        subgroup=concept.subgroup,
        native=NATIVE_SIZES.get(style, 0),
        size=side,
        licence=STYLES[style].licence,
        split="train",
    )


def _is_picture(path: Path, side: int) -> bool:
    """True for a whole picture left by an earlier run at the same size."""
    if not path.exists():
        return False
    try:
        with opened(path) as picture:
            return picture.size == (side, side)
    except UserError:
        return False


def assign_splits(records: Sequence[manifest.Record]) -> list[manifest.Record]:
    """The records with their split set by `heldout_style` over the styles each concept exists in."""
    styles: dict[str, list[str]] = {}
    for record in records:
        styles.setdefault(record.concept, []).append(record.style)
    out = {code: heldout_style(code, there) for code, there in styles.items()}
    return [
        manifest.Record(**{**vars(r), "split": "heldout" if r.style == out[r.concept] else "train"}) for r in records
    ]
