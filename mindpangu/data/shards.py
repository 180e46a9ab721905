"""Sharded data sets: tar files in WebDataset's layout, read in any order without being unpacked.

Members of one name up to its first dot are one sample: a picture (of one of PICTURES) and its captions, in .txt,
.en.txt, .zh.txt, or as "caption", "caption_en", "caption_zh" of a .json. What is wrong with a sample is said, never
fatal: it is left out and listed.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from mindpangu.checkpoint.store import write_atomically
from mindpangu.config import decoded, is_text
from mindpangu.errors import UserError
from mindpangu.images import on_white, read_picture

PICTURES = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif")
CAPTIONS = ("txt", "en.txt", "zh.txt", "json")
CAPTION_KEYS = ("caption", "caption_en", "caption_zh")
KEY_OF = dict(zip(CAPTIONS, CAPTION_KEYS))
MAX_CAPTION = 65_536  # bytes
MAX_FILE = 2**28  # bytes
BLOCK = 512  # of a tar file


class BadSampleError(Exception):
    """Why a sample cannot be used."""


@dataclass(frozen=True)
class Bad:
    """A sample that is left out: "shard.tar/key", and why."""

    sample: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A sample in an archive: where its picture and its captions' files lie, as (field, first byte, bytes)."""

    key: str
    picture: tuple[str, int, int]
    captions: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Sample:
    """A picture in RGB and what is said of it, in one language or more."""

    picture: Image.Image
    captions: tuple[str, ...]


class Shard:
    """One archive: its samples, in the order of the file, and what is wrong with the others."""

    def __init__(self, path: Path) -> None:
        """Raises: UserError where there is no such file."""
        self.path = path
        self.bad: list[Bad] = []
        self.entries: list[Entry] = []
        members: dict[str, list[tuple[str, int, int]]] = {}
        reasons: dict[str, str] = {}
        for member in self._members():
            place = PurePosixPath(member.name)
            stem, _, field = place.name.partition(".")
            key = str(place.with_name(stem)) if stem else member.name
            if place.is_absolute() or ".." in place.parts:
                reasons[key] = "its name leaves the archive"
            elif not member.isfile() or member.issparse():
                reasons[key] = "a link, a device or a sparse file, not a plain file"
            elif not 0 <= member.size <= MAX_FILE:
                reasons[key] = f"{member.size} bytes; 0 to {MAX_FILE} are read"
            members.setdefault(key, []).append((field.lower(), member.offset_data, member.size))
        for key, found in members.items():
            pictures = [one for one in found if one[0] in PICTURES]
            captions = tuple(one for one in found if one[0] in CAPTIONS)
            reason = reasons.get(key) or ("" if pictures else "no picture") or ("" if captions else "no caption")
            if reason:
                self.bad.append(Bad(f"{path.name}/{key}", reason))
            else:
                self.entries.append(Entry(key, pictures[0], captions))

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """The archive's members but its folders; a damaged rest is noted."""
        try:
            with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar:
                while (member := tar.next()) is not None:
                    if not member.isdir():
                        yield member
                file.seek(tar.offset)  # where tarfile stopped; it takes a header that it cannot read for the end
                if any(file.read(BLOCK)):
                    raise tarfile.ReadError(f"damaged after byte {tar.offset}")
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file") from None
        except (tarfile.TarError, ValueError, OSError, ArithmeticError, LookupError) as error:
            self.bad.append(Bad(self.path.name, f"not a whole, uncompressed tar file ({error})"))

    def read(self, entry: Entry) -> Sample:
        """Raises: BadSampleError."""
        with self.path.open("rb") as file:

            def content(place: tuple[str, int, int]) -> bytes:
                file.seek(place[1])
                return file.read(place[2])

            captions = [text for place in entry.captions for text in captions_of(place[0], content(place)).values()]
            return Sample(picture_of(content(entry.picture)), tuple(captions))


def captions_of(field: str, content: bytes) -> dict[str, str]:
    """What a sample's file says, by CAPTION_KEYS. Raises: BadSampleError."""
    text = text_of(f".{field}", content)
    if field == "json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f".{field}: not JSON ({error})") from None
        found = {key: values[key] for key in CAPTION_KEYS if key in values} if isinstance(values, dict) else {}
    else:
        found = {KEY_OF[field]: text}
    if not found or not all(isinstance(one, str) and one.strip() for one in found.values()):
        raise BadSampleError(f".{field}: no caption in it")
    if not all(map(is_text, found.values())):
        raise BadSampleError(f".{field}: half a character (a lone surrogate)")
    return {key: one.strip() for key, one in found.items()}


def text_of(field: str, content: bytes) -> str:
    """A caption. Raises: BadSampleError where it is too long or no text."""
    if len(content) > MAX_CAPTION:
        raise BadSampleError(f"{field}: {len(content)} bytes; at most {MAX_CAPTION} are read")
    try:
        return decoded(content).strip()
    except ValueError as error:
        raise BadSampleError(f"{field}: {error}") from None


def picture_of(content: bytes) -> Image.Image:
    """A picture in RGB, on white. Raises: BadSampleError where it is too large or cannot be decoded."""
    try:
        return on_white(read_picture(content, "the picture"))
    except UserError as error:
        raise BadSampleError(str(error)) from None


def find(pattern: str) -> list[Path]:
    """The archives that a pattern names, in order of their names. Raises: UserError where there are none."""
    folder, name = Path(pattern).parent, Path(pattern).name
    found = sorted(folder.glob(name))
    if not found:
        raise UserError(f"{pattern}: no such file; quote a pattern, for example --shards 'shards/*.tar'")
    return found


def check_share(good: int, bad: int, allowed: float, where: Path) -> None:
    """Raises: UserError where more than the allowed share of all samples cannot be used; `where` lists them."""
    share = bad / max(1, good + bad)
    if share > allowed:
        raise UserError(
            f"{bad} of {good + bad} samples cannot be used ({share:.1%}; allowed: {allowed:.1%}); {where} lists them"
        )


def write(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    """A whole shard of samples, each a key and {field: content}, or none. Raises: UserError."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, fields in samples:
            for field, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_atomically(path, file.getvalue())
