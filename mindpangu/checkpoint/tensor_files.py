"""Safetensors files, one or several as if they were one: shapes first, then one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
from safetensors import SafetensorError, safe_open

from mindpangu.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".safetensors.index.json"  # transformers' and diffusers' list of which shard holds what


def refuse_pickle(path: Path) -> None:
    """Raises: UserError where the name is that of a pickle, which may run any program when it is opened."""
    if path.suffix in PICKLES:
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
        self._where: dict[str, Path] = {}
        for path in self.paths:
            refuse_pickle(path)
            try:
                with safe_open(path, framework="np") as file:
                    for name in file.keys():  # noqa: SIM118 - no mapping
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())
                        self._where[name] = path
            except FileNotFoundError:
                raise UserError(f"{path}: no such file") from None
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: not a whole safetensors file ({error})") from None

    def read(self, name: str) -> np.ndarray:
        """One tensor, float32 where it is stored as bfloat16, which NumPy does not have. Raises: UserError."""
        path = self._where[name]
        try:
            with safe_open(path, framework="np") as file:
                if file.get_slice(name).get_dtype() != "BF16":
                    return np.asarray(file.get_tensor(name))
            return _read_bfloat16(path, name)
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


def _read_bfloat16(path: Path, name: str) -> np.ndarray:
    """By the format: 8 bytes of length, that much JSON with each tensor's offsets, the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + length + start)
        halves = np.frombuffer(file.read(stop - start), np.uint16)
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def folder_files(folder: Path, stem: str) -> list[Path]:
    """The files of a net in transformers' or diffusers' folder: stem.safetensors, its fp16 variant, or its shards.

    Raises:
        UserError: there are none; a pickle that is there instead is named.
    """
    for name in (stem, f"{stem}.fp16"):
        index = folder / (name + INDEX)
        if index.is_file():
            try:
                weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError) as error:
                raise UserError(f"{index}: not an index of shards ({error})") from None
            return [folder / shard for shard in sorted(set(weights.values()))]
        if (folder / f"{name}.safetensors").is_file():
            return [folder / f"{name}.safetensors"]
    for path in sorted(folder.glob("*")):
        refuse_pickle(path)
    raise UserError(f"{folder}: no {stem}.safetensors there, whole, fp16 or sharded")
