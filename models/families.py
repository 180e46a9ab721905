"""Stable Diffusion 1.x, 2.x, XL and its refiner, from a single file or a diffusers folder, to a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindpangu.checkpoint import ldm
from mindpangu.checkpoint.diffusers import as_stored
from mindpangu.checkpoint.places import Place, Shapes
from mindpangu.checkpoint.store import check_fit, file_digest
from mindpangu.checkpoint.tensor_files import TensorFiles, folder_files
from mindpangu.models.conversion import Said, write_model
from mindpangu.models.inventory import parts
from mindpangu.models.naming import diffusers_places, ldm_places, stem_of, subfolder
from mindpangu.models.spec import ModelSpec
from mindpangu.text.vocabularies import clip_bpe


def convert_family(
    source: Path, spec: ModelSpec, out: Path, dtype: str, shard_bytes: int, said: Said = lambda line: None
) -> None:
    """Write `out`, a model folder, from a single .safetensors file or a diffusers folder that holds a `spec`.

    Raises:
        UserError: absent, a pickle, damaged; a parameter is missing, unexpected or mis-shaped; see `write_model`.
    """
    shapes = parts(spec)
    if source.is_dir():
        files = {part: TensorFiles(folder_files(source / subfolder(part), stem_of(part))) for part in shapes}
        places = {
            part: as_stored(of_part, files[part].shapes) for part, of_part in diffusers_places(spec, shapes).items()
        }
        for part in shapes:
            check_places(places[part], shapes[part], files[part].shapes, str(files[part].paths[0].parent))
    else:
        whole = TensorFiles([source])
        files = dict.fromkeys(shapes, whole)
        places = ldm_places(spec, shapes, whole)
        flat = {f"{part}.{name}": place for part in shapes for name, place in places[part].items()}
        ours = {f"{part}.{name}": shape for part in shapes for name, shape in shapes[part].items()}
        layers = max((text.layers for text in spec.texts.values()), default=0)
        found = {name: shape for name, shape in whole.shapes.items() if not ldm.unused(name, layers)}
        check_places(flat, ours, found, str(source))
    paths = sorted({path for one in files.values() for path in one.paths})
    sources = {}
    for path in paths:
        said(f"{path.name}: checking")
        sources[path.relative_to(source).as_posix() if source.is_dir() else path.name] = file_digest(path)

    def read(part: str, name: str) -> np.ndarray:
        return places[part][name].read(shapes[part][name], files[part].read)

    write_model(spec, shapes, read, sources, out, dtype, shard_bytes, dict.fromkeys(spec.texts, clip_bpe()), said)


def check_places(
    places: Mapping[str, Place], shapes: Shapes, found: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Compare what is wanted with what a file holds. Raises: UserError, naming what does not fit."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, place in places.items():
        there = all(theirs in found for theirs in place.names)
        fits = there and not place.problem(shapes[name], found)
        wanted.update({theirs: found[theirs] if fits else shapes[name] for theirs in place.names})
    check_fit(wanted, found, source)
