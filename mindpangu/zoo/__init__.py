"""The model zoo: folders of checkpoints that ship with the package, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Union

from mindpangu.checkpoint.store import sidecar, verify
from mindpangu.errors import UserError, nearest
from mindpangu.spec import TOKENIZERS

ZOO = Path(__file__).parent
DESCRIPTION = "model.json"  # a PipelineSpec
# Of model folders made earlier: keys of model.json, and files.
OLD_KEYS = {"towers": "text_encoders", "told": "added_cond"}
OLD_FILES = {
    "text_encoder": "text_a", "text_encoder_2": "text_b", "tokenizer": "tokenizer_a", "tokenizer_2": "tokenizer_b"
}  # fmt: skip
# What may lie in a model's folder, or in one below, beside the model itself.
EXTRAS = ("controlnet", "bridge", "vocabulary")


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{DESCRIPTION}"))


def find(name_or_folder: Union[str, Path]) -> Path:
    """The folder of a shipped model, or of the user's own.

    Raises:
        UserError: neither a zoo name nor a folder with a model.json.
    """
    for folder in (ZOO / str(name_or_folder), Path(name_or_folder)):
        if (folder / DESCRIPTION).is_file():
            return folder
    known = names()
    raise UserError(
        f"model '{name_or_folder}' is neither in the zoo ({', '.join(known) or 'empty'}) nor a folder with a "
        f"model.json{nearest(str(name_or_folder), known)}"
    )


def locate(path: Path) -> Path:
    """A file or folder as given, or where there is none such, the zoo's: "openmoji-line" -> its folder."""
    return path if path.exists() or path.is_absolute() else ZOO / path


def description(folder: Path) -> dict[str, Any]:
    """What model.json says. Raises: UserError."""
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a model description ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not an object")
    described = {str(OLD_KEYS.get(key, key)): value for key, value in values.items()}
    if isinstance(encoders := described.get("text_encoders"), list):
        new = {old: part for part, old in OLD_FILES.items()}
        described["text_encoders"] = [new.get(str(encoder), str(encoder)) for encoder in encoders]
    return described


def part_path(folder: Path, part: str) -> Path:
    """The checkpoint of a model's part; in an old folder, by its old name."""
    for name in (part, OLD_FILES.get(part, part)):
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.safetensors"
    return folder / f"{part}.safetensors"


def tokenizer_path(folder: Path, encoder: str) -> Path:
    """The tokenizer of a text encoder: text_encoder_2 -> folder/tokenizer_2.json."""
    return sidecar(part_path(folder, TOKENIZERS.get(encoder, encoder)))


def checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints that make up a model. Raises: UserError."""
    described = description(folder)
    return ["vae", *described.get("text_encoders", []), *described.get("experts", [])]


def check(folder: Path) -> None:
    """Check every checkpoint of a model folder against its sidecar, ControlNets and bridges included.

    Raises:
        UserError: naming the first file that fails, and the check.
    """
    for name in checkpoints(folder):
        verify(part_path(folder, name))
    for extra in sorted(path for path in folder.rglob("*.safetensors") if path.stem in EXTRAS):
        verify(extra)
    for encoder in description(folder).get("text_encoders", []):
        if not (tokenizer := tokenizer_path(folder, encoder)).is_file():
            raise UserError(f"{tokenizer}: no such file; the model folder is not whole")


def fingerprint(folder: Path) -> str:
    """What tells two model folders apart: the sidecars of their checkpoints, specs and digests included."""
    return "".join(sidecar(part_path(folder, name)).read_text(encoding="utf-8") for name in checkpoints(folder))
