"""The model zoo: folders of checkpoints that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from mindpangu.checkpoint.store import verify
from mindpangu.errors import UserError, nearest

ZOO = Path(__file__).parent
CHECKPOINTS = ("vae", "text_a", "text_b", "structure", "texture")
TOKENIZERS = ("tokenizer_a.json", "tokenizer_b.json")


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.parent.name for path in ZOO.glob("*/model.json"))


def find(name_or_folder: Union[str, Path]) -> Path:
    """The folder of a shipped model, or of the user's own.

    Raises:
        UserError: neither a zoo name nor a folder with a model.json.
    """
    for folder in (ZOO / str(name_or_folder), Path(name_or_folder)):
        if (folder / "model.json").is_file():
            return folder
    known = names()
    raise UserError(
        f"model '{name_or_folder}' is neither in the zoo ({', '.join(known) or 'empty'}) nor a folder with a "
        f"model.json{nearest(str(name_or_folder), known)}"
    )


def check(folder: Path) -> None:
    """Check every checkpoint of a model folder against its sidecar.

    Raises:
        UserError: naming the first file that fails, and the check.
    """
    for name in CHECKPOINTS:
        verify(folder / f"{name}.safetensors")
    for name in TOKENIZERS:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; the model folder is not whole")


def fingerprint(folder: Path) -> str:
    """What tells two model folders apart: the sidecars of their checkpoints, specs and digests included."""
    return "".join((folder / f"{name}.json").read_text(encoding="utf-8") for name in CHECKPOINTS)
