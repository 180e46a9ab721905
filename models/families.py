"""Stable Diffusion 1.x, 2.x, XL and its refiner, from a single file or a diffusers folder, to a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindpangu.checkpoint import ldm
from mindpangu.checkpoint.diffusers import as_stored, unet_places, vae_places
from mindpangu.checkpoint.places import Place
from mindpangu.checkpoint.store import check_fit, file_digest
from mindpangu.checkpoint.tensor_files import TensorFiles, folder_files
from mindpangu.checkpoint.transformers import tower_a_places, tower_b_places
from mindpangu.errors import UserError
from mindpangu.models.conversion import Said, write_model
from mindpangu.models.inventory import Shapes, parts
from mindpangu.models.spec import ModelSpec
from mindpangu.text.vocabularies import clip_bpe

TOWERS = {"text_a": "text_encoder", "text_b": "text_encoder_2"}  # our names and diffusers'

Places = dict[str, dict[str, Place]]  # by part, then by parameter


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


def subfolder(part: str) -> str:
    """Where diffusers keeps a part: the towers under its names, others under their own."""
    return TOWERS.get(part, part)


def stem_of(part: str) -> str:
    """What a part's files are called there."""
    return "model" if part in TOWERS else "diffusion_pytorch_model"


def diffusers_places(spec: ModelSpec, shapes: Mapping[str, Shapes]) -> Places:
    """Every part's parameters in diffusers' and transformers' names."""
    vector = "class_embedding" if spec.pipeline.told == "index" else "add_embedding"
    places: Places = {"vae": vae_places(shapes["vae"], len(spec.vae.channel_mult))}
    for name, unet in spec.unets.items():
        levels, blocks = len(unet.channel_mult), unet.num_res_blocks
        places[name] = unet_places(shapes[name], levels, blocks, unet.transformer_depth, vector)
    for name, text in spec.texts.items():
        table = tower_b_places if text.output == "penultimate" else tower_a_places
        places[name] = table(shapes[name])
    return places


def ldm_places(spec: ModelSpec, shapes: Mapping[str, Shapes], found: TensorFiles) -> Places:
    """Every part's parameters in a single file's names.

    Raises:
        UserError: the file holds no text tower of the kind that the model has.
    """
    places: Places = {"vae": ldm.net_places(ldm.VAE, shapes["vae"])}
    for name in spec.unets:
        places[name] = ldm.net_places(ldm.UNET, shapes[name])
    for name in spec.texts:
        places[name] = ldm.tower_places(shapes[name], found.shapes)
        if not places[name]:
            raise UserError(
                f"{found.paths[0]}: holds no text tower such as {spec.pipeline.name} has; is it the whole "
                "model, and not its UNet alone, or of another family?"
            )
    return places


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
