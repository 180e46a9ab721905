"""From the two released PanGu-Draw files to one model folder: every weight once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.ldm import BUFFERS, release_names
from mindpangu.checkpoint.mindspore_ckpt import MindSporeCheckpoint
from mindpangu.checkpoint.name_map import Shapes
from mindpangu.checkpoint.store import check_fit, file_digest
from mindpangu.convert.writer import ConversionOptions, Said, write_model
from mindpangu.errors import UserError
from mindpangu.models.inventory import parts
from mindpangu.spec import TEXT_ENCODERS, ModelSpec
from mindpangu.text.vocabularies import bert_wordpiece, clip_bpe

SHARED = ("vae", *TEXT_ENCODERS)  # parts that both files hold
SOURCE = {"texture": "low", "structure": "high"}
NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.ckpt$")  # as in pangu_low_timestamp-127da122.ckpt


def convert_pangu_draw(
    sources: Sequence[Path], spec: ModelSpec, out: Path, options: ConversionOptions, said: Said = lambda line: None
) -> None:
    """Write `out`, a model folder, from the two files of the texture (low t) and the structure generator (high t).

    They lack the Chinese text encoder's vocabulary; without `options.vocabulary` tokenizer.json is left out.

    Raises:
        UserError: a file is absent, truncated, not the one that its name says, or the two are swapped; a parameter is
            missing, unexpected or mis-shaped; the shared parts differ; see `write_model`.
    """
    low, high = sources
    refuse_swapped(low, high)
    tokenizers = {TEXT_ENCODERS[1]: clip_bpe()}
    if options.vocabulary is not None:
        tokenizers[TEXT_ENCODERS[0]] = bert_wordpiece(options.vocabulary)
    files = {"low": MindSporeCheckpoint(low), "high": MindSporeCheckpoint(high)}
    shapes = parts(spec)
    for unet, which in SOURCE.items():
        _check_names(files[which], {name: shapes[name] for name in (unet, *SHARED)})
    digests = {which: _checked_digest(file.path, said) for which, file in files.items()}
    write_model(spec, shapes, _reader(files), digests, out, options, tokenizers, said)


def refuse_swapped(low: Path, high: Path) -> None:
    """Raises: UserError where the names say that each file is the other one, or both are one file."""
    if low.resolve() == high.resolve():
        raise UserError(f"{low} was given twice; the files of the low and of the high time steps are needed")
    if "high" in low.name and "low" in high.name:
        raise UserError(
            f"the files are swapped: {low.name} was given as the low one and {high.name} as the high one; "
            "give the low one first"
        )


def _check_names(file: MindSporeCheckpoint, shapes: Mapping[str, Shapes]) -> None:
    wanted = {}
    for part, of_part in shapes.items():
        names = _stored_as(part, of_part)
        wanted.update({names[name]: shape for name, shape in of_part.items()})
    found = {plain(name): entry.shape for name, entry in file.entries.items()}
    check_fit(wanted, {name: shape for name, shape in found.items() if name not in BUFFERS}, str(file.path))


def _stored_as(part: str, names: Iterable[str]) -> dict[str, str]:
    """{ours: theirs}: either generator is its file's one UNet."""
    return release_names(part if part in SHARED else "unet", names)


def plain(name: str) -> str:
    """A released name without the infix that MindSpore's wrappers leave."""
    return name.replace("._backbone", "")


def _checked_digest(path: Path, said: Said) -> str:
    """SHA-256 of a source; a released file carries the beginning of its own in its name."""
    said(f"{path.name}: checking")
    digest, named = file_digest(path), NAMED_DIGEST.search(path.name)
    if named and not digest.startswith(named[1]):
        raise UserError(
            f"{path}: SHA-256 check failed: the name says {named[1]}…, the content is {digest[:8]}…; the file is "
            "corrupt or was renamed; fetch it again"
        )
    return digest


def _reader(files: Mapping[str, MindSporeCheckpoint]) -> Callable[[str, str], np.ndarray]:
    """Reads a part's parameter. It raises UserError where a shared one differs between the files."""
    stored = {which: {plain(name): name for name in file.entries} for which, file in files.items()}

    def read(part: str, name: str) -> np.ndarray:
        (theirs,) = _stored_as(part, [name]).values()
        which = SOURCE.get(part, "high")
        value = files[which].read(stored[which][theirs])
        if part in SHARED:
            other = files["low"].read(stored["low"][theirs])
            if not np.array_equal(value, other):
                raise UserError(
                    f"{files['low'].path} and {files['high'].path} do not belong together: {theirs} differs by up to "
                    f"{np.abs(value - other).max():.3g}; both must hold the same autoencoder and text encoders"
                )
        return value

    return read
