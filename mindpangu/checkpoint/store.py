"""Write and read checkpoints: a safetensors file and, beside it, a JSON sidecar that says what the weights are.

Both are written to a temporary file, flushed and renamed, so that a crash leaves the old version or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional, Protocol, TypeVar

import numpy as np
from safetensors.numpy import save

from mindpangu.checkpoint.name_map import Shape
from mindpangu.checkpoint.tensor_files import Stored, StoredTensor, TensorFiles
from mindpangu.errors import UserError

MAX_NAMED = 3  # how many names an error lists of each kind
BLOCK = 2**22  # bytes read at a time for a digest


class NamedParameter(Protocol):
    """What a MindSpore Parameter offers and this package needs."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    has_init: bool

    def asnumpy(self) -> np.ndarray: ...
    def set_data(self, data: Any) -> Any: ...


@contextmanager
def _part(path: Path, content: bytes) -> Iterator[Path]:
    """`content` on the disk beside `path`, under a name that nobody can foresee and link elsewhere; gone at the end.

    Raises:
        UserError: the folder cannot be written, or the disk is full; also where the user inside finds it so.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield part
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, or leave it as it was.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    with _part(path, content) as part:
        part.replace(path)


def write_new(paths: Iterable[Path], content: bytes) -> Path:
    """Write `content` to the first of `paths`, of one folder, that is free, and return it: whole or not at all.

    No other process can take the name. Where the file system has no links an empty file takes it first.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    names = iter(paths)
    path = next(names)
    with _part(path, content) as part:
        while not _took(path, part):
            path = next(names)
    return path


def _took(path: Path, part: Path) -> bool:
    """Whether `path` was free and is `part` now."""
    try:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:
            path.open("xb").close()
            part.replace(path)
    except FileExistsError:
        return False
    return True


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file that grows, with their ends; a last one that is still being written is left out."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        yield from (line for line in file if line.endswith("\n"))


def sidecar(path: Path) -> Path:
    """The JSON beside a checkpoint: vae.safetensors -> vae.json."""
    return path.with_suffix(".json")


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> None:
    """Write the tensors and, after them, the sidecar: `card` plus the file's SHA-256 and size.

    Raises:
        UserError: the folder cannot be written.
    """
    write_card(path, {**card, **save_tensors(path, tensors)})


def save_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Optional[dict[str, str]] = None
) -> dict[str, Any]:
    """Write one safetensors file, with `metadata` in its header; returns its {"sha256", "bytes"}. Raises: UserError."""
    content = save({name: np.asarray(value, order="C") for name, value in tensors.items()}, metadata)
    write_atomically(path, content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a checkpoint's sidecar; where it is sharded, with "shards": {file name: {"sha256", "bytes"}}.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(sidecar(path), (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())


def read_card(path: Path) -> dict[str, Any]:
    """The sidecar of a checkpoint.

    Raises:
        UserError: absent, or not a JSON object.
    """
    beside = sidecar(path)
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{beside}: no such file; a checkpoint needs its sidecar") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{beside}: not a JSON sidecar ({error})") from None
    if not isinstance(card, dict):
        raise UserError(f"{beside}: holds a {type(card).__name__}, not an object")
    return card


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint against its sidecar and return the sidecar.

    Raises:
        UserError: naming the file and the check that failed (absent, size, SHA-256).
    """
    card = read_card(path)
    shards = card.get("shards", {path.name: card})
    for name, expected in shards.items():
        check_file(path.with_name(name), expected)
    return card


def card_of_whole(path: Path) -> Optional[dict[str, Any]]:
    """The sidecar of a file that has as many bytes as it says; its content is not read. Else None."""
    try:
        card = read_card(path)
        return card if path.stat().st_size == card.get("bytes") else None
    except (UserError, OSError):
        return None


def check_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Check one file against its {"sha256", "bytes"}. Raises: UserError, naming it and the check that failed."""
    try:
        size = path.stat().st_size
        if size != expected.get("bytes"):
            raise UserError(
                f"{path}: size check failed: {size} bytes, {expected.get('bytes')} expected; fetch it again"
            )
        digest = file_digest(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if digest != expected.get("sha256"):
        raise UserError(f"{path}: SHA-256 check failed: the file is corrupt; fetch it again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, or of a sharded checkpoint's files, as stored.

    Raises:
        UserError: absent or not a whole safetensors file.
    """
    return {name: np.asarray(tensor) for name, tensor in stored_tensors(path).items()}


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """As `load_tensors`, but each is read when it is asked for: they need not lie in memory together."""
    shards = [path.name] if path.exists() or not sidecar(path).exists() else read_card(path).get("shards", [path.name])
    return TensorFiles([path.with_name(name) for name in shards]).tensors()


def load_into(parameters: Iterable[NamedParameter], tensors: Mapping[str, Stored], source: str) -> None:
    """Set every parameter from the tensor of its name, converted to the parameter's dtype.

    Raises:
        UserError: naming missing, unexpected and mis-shaped tensors; nothing is changed then.
    """
    from mindspore import Tensor, dtype_to_nptype, ops

    by_name = {p.name: p for p in parameters}
    check_fit({n: tuple(p.shape) for n, p in by_name.items()}, {n: t.shape for n, t in tensors.items()}, source)
    for name, parameter in by_name.items():
        stored = np.asarray(tensors[name])
        if stored.dtype.kind != "f":
            raise UserError(f"{source}: {name} is stored as {stored.dtype}; weights are floating-point numbers")
        value = Tensor(np.array(stored, dtype_to_nptype(parameter.dtype)))
        if parameter.has_init:  # it waits for its first value; assign would lose it
            parameter.set_data(value)
        else:  # in place; with set_data a compiled graph keeps the old values beside the new until it runs again
            ops.assign(parameter, value)


def check_fit(wanted: Mapping[str, Shape], found: Mapping[str, Shape], source: str) -> None:
    """Compare the shapes of a net's parameters with those of the tensors for it.

    Raises:
        UserError: naming missing, unexpected and mis-shaped tensors.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {list(found[name])} for {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
    problems = [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds if names]
    if problems:
        raise UserError(f"{source}: the tensors do not fit the net: {'; '.join(problems)}")


def some(names: list[str]) -> str:
    """The first few of many names, for an error."""
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")


LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process writes `folder`.

    Raises:
        UserError: another one does; the line names it.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder}: process {file.read().strip() or 'unknown'} is writing there; wait for it, or choose "
                "another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process, and no other, may make `path`: inside, no other one is given it.

    Ask again inside whether the file is there: another process may just have made it. Raises: UserError.
    """
    lock = path.with_name(f".{path.name}{LOCK}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise UserError(f"{lock}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


Weight = TypeVar("Weight")  # an array, or one that waits in a file


def unprefixed(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The weights below `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def prefixed(weights: Mapping[str, Weight], prefix: str) -> dict[str, Weight]:
    """The weights with `prefix` before each name."""
    return {prefix + name: value for name, value in weights.items()}


def half(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights in fp16, as the zoo stores them."""
    return {name: value.astype(np.float16) for name, value in weights.items()}
