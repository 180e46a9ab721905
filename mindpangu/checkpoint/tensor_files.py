"""Safetensors files, one or several as if they were one: shapes first, then one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
from safetensors import SafetensorError, safe_open

from mindpangu.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".safetensors.index.json"  # transformers' and diffusers' list of which shard holds what
INDEX_FP16 = ".safetensors.index.fp16.json"  # diffusers' of its fp16 variant


def refuse_pickle(path: Path) -> None:
    """Raises: UserError where the name is that of a pickle, which may run any program when it is opened."""
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path}: a pickle file, which can run any program when it is opened, and is never read here; fetch the "
            ".safetensors version, or convert it on a machine that holds nothing of value"
        )


class TensorFiles:
    """The tensors of several safetensors files: `shapes` by name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            UserError: a file is absent, a pickle, or not a whole safetensors file.
        """
        self.paths = tuple(paths)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}  # of all headers
        self._where: dict[str, Path] = {}
        for path in self.paths:
            refuse_pickle(path)
            try:
                with safe_open(path, framework="np") as file:
                    self.metadata.update(file.metadata() or {})
                    for name in file.keys():  # noqa: SIM118 - no mapping
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())
                        self._where[name] = path
            except FileNotFoundError:
                raise UserError(f"{path}: no such file") from None
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: {_instead(path) or f'not a whole safetensors file ({error})'}") from None

    def read(self, name: str) -> np.ndarray:
        """One tensor; float32 where NumPy has no such type (bfloat16, 8 bits). Raises: UserError."""
        path = self._where[name]
        try:
            with safe_open(path, framework="np") as file:
                if file.get_slice(name).get_dtype() not in UPCAST:
                    return np.asarray(file.get_tensor(name))
            return _read_upcast(path, name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: {name} cannot be read ({error})") from None

    def tensors(self) -> dict[str, StoredTensor]:
        """By name, each to be read when it is asked for."""
        return {name: StoredTensor(self, name, shape) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file, and is read anew each time that NumPy asks for it."""

    files: TensorFiles
    name: str
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        read = self.files.read(self.name)
        return read if dtype is None else read.astype(dtype, copy=False)


Stored = Union[np.ndarray, StoredTensor]


def _instead(path: Path) -> str:
    """What lies there in place of a safetensors file, where it is known."""
    if path.is_dir():
        return "a folder; name the .safetensors file in it"
    try:
        with path.open("rb") as file:
            beginning = file.read(40)
    except OSError:
        return ""
    if beginning.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file itself; fetch it with git lfs pull"
    if beginning.startswith((b"PK\x03\x04", b"\x80")):
        return "a pickle under another name, which is never read here; fetch the .safetensors version"
    return "a web page, not a checkpoint; fetch it again" if beginning.lstrip().startswith(b"<") else ""


def _eights(exponent_bits: int, bias: int) -> np.ndarray:
    """(256,) float32: the values of 8-bit floats (arXiv 2209.05433), sign, exponent, mantissa."""
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = codes >> mantissa_bits & (2**exponent_bits - 1), codes & (2**mantissa_bits - 1)
    fraction = mantissa / 2**mantissa_bits
    values = np.where(
        exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent.astype(float) - bias)
    )
    if exponent_bits == 5:  # E5M2 has infinities and NaN as IEEE's
        values = np.where(exponent == 31, np.where(mantissa == 0, np.inf, np.nan), values)
    else:  # E4M3 has NaN alone
        values = np.where(codes & 127 == 127, np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float32)


UPCAST: dict[
    str, tuple[Any, Callable[[np.ndarray], np.ndarray]]
] = {  # by safetensors' names: bits that NumPy has no number for -> float32
    "BF16": (np.dtype(np.uint16), lambda bits: (bits.astype(np.uint32) << 16).view(np.float32)),
    "F8_E4M3": (np.dtype(np.uint8), lambda bits: _eights(4, 7)[bits]),
    "F8_E5M2": (np.dtype(np.uint8), lambda bits: _eights(5, 15)[bits]),
}


def _read_upcast(path: Path, name: str) -> np.ndarray:
    """By the format: 8 bytes of length, that much JSON with each tensor's offsets, the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + length + start)
        bits, values = UPCAST[entry["dtype"]]
        return values(np.frombuffer(file.read(stop - start), bits)).reshape(entry["shape"])


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Raises: UserError."""
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [index.with_name(shard) for shard in sorted(set(weights.values()))]
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not an index of shards ({error})") from None


def folder_files(folder: Path, stem: str) -> list[Path]:
    """The files of a net in transformers' or diffusers' folder: stem.safetensors, its fp16 variant, or its shards.

    Raises:
        UserError: there are none; a pickle that is there instead is named.
    """
    for name, index in ((stem, f"{stem}{INDEX}"), (f"{stem}.fp16", f"{stem}{INDEX_FP16}")):
        for one in (folder / index, folder / (name + INDEX)):
            if one.is_file():
                return _shards(one)
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
    for path in sorted(folder.glob("*")):
        refuse_pickle(path)
    raise UserError(f"{folder}: no {stem}.safetensors there, whole, fp16 or sharded")
