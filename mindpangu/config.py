"""Strict configuration: a YAML file becomes a frozen dataclass, or one line says why not.

An unknown key, a wrong type or a missing value is a `UserError` that names the file, the key, what was found, what is
allowed and, for a mistyped key, the nearest known one. `--set a.b=c` overrides go through the same checks. A file may
build on another one: `base: common.yaml`. A dataclass that has `presets()`, {name: its values}, may be given by name.
"""

from __future__ import annotations

import codecs
import dataclasses
import types
import typing
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar, Union

import yaml

from mindpangu.errors import UserError, nearest

T = TypeVar("T")
PRESET = "preset"  # the key of a net that is a preset, but for what else is given
BASE = "base"  # the key of a file that names another one, on which it builds
_UNIONS = (Union, getattr(types, "UnionType", Union))


def encoding_of(beginning: bytes) -> str:
    """UTF-8, or UTF-16 by its mark."""
    return "utf-16" if beginning[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def decoded(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 by its mark, without a byte order mark, lines ended by \\n.

    Raises:
        ValueError: it is in another encoding.
    """
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not {encoding.removesuffix('-sig').upper()} (byte {error.start}); save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_text(text: str) -> bool:
    """Whether it can be written at all: half a character (a lone surrogate) cannot, in any encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """The text of a file that a user wrote; see `decoded`.

    Raises:
        UserError: the file is absent, cannot be read, or is in another encoding.
    """
    try:
        return decoded(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def open_text(path: Path) -> TextIO:
    """The same text, to be read line by line whatever its size; that all of it is text has been checked.

    Raises:
        UserError: as `read_text`.
    """
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(2))
        with path.open(encoding=encoding) as checked:
            while checked.read(1 << 20):
                pass
        return path.open(encoding=encoding)
    except (OSError, UnicodeError):
        read_text(path)  # which says what is wrong
        raise


def shipped(path: Path) -> Path:
    """The path, or where no such file is, the package's own: configs/infer/coop_low_high.yaml is found anywhere."""
    if path.exists() or path.is_absolute():
        return path
    own = Path(str(files("mindpangu.configs"))).joinpath(*path.parts[path.parts[:1] == ("configs",) :])
    return own if own.is_file() else path


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file ({} for an empty one).

    Raises:
        UserError: the file is absent, is not YAML, or does not hold a mapping.
    """
    text = read_text(shipped(path))
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}; a mapping of keys to values is needed")
    return found


def read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """The mapping in a YAML file laid over that of the file that its `base` names, if any, and the files read.

    `base` is relative to the file. Mappings are merged key by key; anything else replaces what the base says.

    Raises:
        UserError: see `read_yaml`; or a file is its own base.
    """
    if path.resolve() in above:
        raise UserError(f"{path}: is its own base, by way of {', '.join(one.name for one in above)}")
    values = read_yaml(path)
    base = values.pop(BASE, None)
    if base is None:
        return values, [path]
    if not isinstance(base, str):
        raise UserError(f"{path}: {BASE}: found {base!r}; the name of another YAML file is needed")
    below, read = read_with_bases(path.parent / base, (*above, path.resolve()))
    return merged(below, values), [path, *read]


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping."""
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def load(path: Union[str, Path], cls: type[T], overrides: Sequence[str] = ()) -> T:
    """Read `path`, and the files that it is based on, into the dataclass `cls`, after applying overrides such as
    "optimizer.weight_decay=0.1".

    Raises:
        UserError: see the module's text; also when a `__post_init__` check of the dataclass raises ValueError.
    """
    values, read = read_with_bases(shipped(Path(path)))
    for override in overrides:
        put(values, override)
    where = str(path) if len(read) == 1 else f"{path} (based on {', '.join(str(one) for one in read[1:])})"
    return parse(values, cls, where)


def parse(values: Any, cls: type[T], where: str) -> T:
    """Turn plain values into the dataclass `cls`; `where` names the source in errors."""
    return _convert(values, cls, where, "")


def dump(config: Any) -> dict[str, Any]:
    """The plain values of a config dataclass, such that `parse(dump(c), type(c), …) == c`."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def put(values: dict[str, Any], override: str) -> None:
    """Set what an override such as "optimizer.weight_decay=0.1" says. Raises: UserError."""
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {override}: use key=value, for example --set optimizer.weight_decay=0.1")
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: '{parent}' holds a single value, not keys")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: '{text}' is not a valid YAML value") from None


def _fail(where: str, key: str, problem: str) -> UserError:
    return UserError(f"{where}: {key + ': ' if key else ''}{problem}")


def _convert(value: Any, kind: Any, where: str, key: str) -> Any:
    """`value` as a `kind` (dataclass, Literal, Optional, list, tuple, dict, scalar), or UserError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(value, typing.cast(type, kind), where, key)
    if origin is Literal:
        if value not in arguments:
            hint = nearest(str(value), map(str, arguments))
            raise _fail(where, key, f"found {value!r}; allowed: {', '.join(map(str, arguments))}{hint}")
        return value
    if origin in _UNIONS:
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if len(options) == 1:
            return _convert(value, options[0], where, key)
    if origin in (list, tuple, dict):
        return _convert_container(value, origin, arguments, where, key)
    return _convert_scalar(value, kind, where, key)


_hints = lru_cache(maxsize=None)(typing.get_type_hints)


def _of_preset(value: Any, presets: dict[str, dict[str, Any]], where: str, key: str) -> Any:
    """The values of a preset given by name, with changes or without; any others as they are."""
    if isinstance(value, str):
        value = {PRESET: value}
    if not isinstance(value, dict) or PRESET not in value:
        return value
    changes = dict(value)
    name = changes.pop(PRESET)
    if name not in presets:
        hint = nearest(str(name), presets)
        raise _fail(where, key, f"found preset {name!r}; allowed: {', '.join(presets)}{hint}, or a mapping of keys")
    return merged(presets[name], changes)


def _convert_dataclass(value: Any, kind: type, where: str, key: str) -> Any:
    if hasattr(kind, "presets"):
        value = _of_preset(value, kind.presets(), where, key)
    if not isinstance(value, dict):
        raise _fail(where, key, f"found {value!r}; a mapping of keys is needed")
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    inside = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            hint = nearest(str(name), fields)
            raise _fail(where, f"{inside}{name}", f"unknown key; known here: {', '.join(fields)}{hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise _fail(where, f"{inside}{name}", "missing; it has no default")
    converted = {name: _convert(item, hints[name], where, f"{inside}{name}") for name, item in value.items()}
    try:
        return kind(**converted)
    except ValueError as error:
        raise _fail(where, key, str(error)) from None


def _convert_container(value: Any, origin: Any, arguments: tuple, where: str, key: str) -> Any:
    if origin is dict:
        if not isinstance(value, dict):
            raise _fail(where, key, f"found {value!r}; a mapping is needed")
        inside = {k: f"{key}.{k}" for k in value}
        return {
            _convert(k, arguments[0], where, inside[k]): _convert(v, arguments[1], where, inside[k])
            for k, v in value.items()
        }
    if not isinstance(value, (list, tuple)):
        raise _fail(where, key, f"found {value!r}; a list is needed")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _fail(where, key, f"found {len(value)} values; exactly {len(arguments)} are needed")
        kinds: Sequence[Any] = arguments
    else:
        kinds = [arguments[0]] * len(value)
    return origin(_convert(v, k, where, f"{key}[{i}]") for i, (v, k) in enumerate(zip(value, kinds)))


def _convert_scalar(value: Any, kind: Any, where: str, key: str) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise _fail(where, key, f"found {value!r}; a {kind.__name__} is needed")
