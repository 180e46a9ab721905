"""Stable Diffusion 1.x, 2.x, XL and its refiner, from a single file or a diffusers folder, to a model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Optional

import numpy as np

from mindpangu.checkpoint import ldm
from mindpangu.checkpoint.diffusers import (
    as_stored,
    controlnet_places,
    diffusers_places,
    stem_of,
)
from mindpangu.checkpoint.name_map import Place, Shapes
from mindpangu.checkpoint.store import check_fit, file_digest, save_checkpoint
from mindpangu.checkpoint.tensor_files import TensorFiles, folder_files
from mindpangu.convert.writer import DTYPES, ConversionOptions, Said, cast, check_room, write_model
from mindpangu.errors import UserError
from mindpangu.models.inventory import parts, shapes_of
from mindpangu.spec import TOKENIZERS, ControlNetSpec, ModelSpec
from mindpangu.text.vocabularies import bert_wordpiece, clip_bpe

POSITIONS = "embeddings.position_ids"  # a table 0, 1, 2, … that transformers saved before 4.31
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v_prediction": "v", "v": "v", "sample": "x0"}


def convert_stable_diffusion(
    sources: Sequence[Path], spec: ModelSpec, out: Path, options: ConversionOptions, said: Said = lambda line: None
) -> None:
    """Write `out`, a model folder, from a single .safetensors file or a diffusers folder that holds a `spec`.

    Raises:
        UserError: absent, a pickle, damaged; a parameter is missing, unexpected or mis-shaped; see `write_model`.
    """
    (source,) = sources
    whole = None if source.is_dir() else TensorFiles([source])
    spec = agreed(source, spec, _said_in_folder(source) if whole is None else _said_in_file(whole))
    shapes = parts(spec)
    tokenizers = {}
    for name, text in spec.texts.items():
        beside = source / TOKENIZERS[name] / "vocab.txt"
        tokenizers[name] = bert_wordpiece(options.vocabulary or beside) if text.output == "bert" else clip_bpe()
    if whole is None:
        files = {part: TensorFiles(folder_files(source / part, stem_of(part))) for part in shapes}
        places = {
            part: as_stored(of_part, files[part].shapes) for part, of_part in diffusers_places(spec, shapes).items()
        }
        for part in shapes:
            found = {name: shape for name, shape in files[part].shapes.items() if not name.endswith(POSITIONS)}
            check_places(places[part], shapes[part], found, str(files[part].paths[0].parent))
    else:
        files = dict.fromkeys(shapes, whole)
        places = ldm.ldm_places(spec, shapes, whole)
        flat = {f"{part}.{name}": place for part in shapes for name, place in places[part].items()}
        ours = {f"{part}.{name}": shape for part in shapes for name, shape in shapes[part].items()}
        layers = max((text.layers for text in spec.texts.values()), default=0)
        found = {name: shape for name, shape in whole.shapes.items() if not ldm.unused(name, layers)}
        check_places(flat, ours, found, str(source))
    paths = sorted({path for one in files.values() for path in one.paths})
    digests = {}
    for path in paths:
        said(f"{path.name}: checking")
        digests[path.relative_to(source).as_posix() if source.is_dir() else path.name] = file_digest(path)

    def read(part: str, name: str) -> np.ndarray:
        return places[part][name].read(shapes[part][name], files[part].read)

    write_model(spec, shapes, read, digests, out, options, tokenizers, said)


def agreed(source: Path, spec: ModelSpec, said: tuple[Optional[str], bool]) -> ModelSpec:
    """The spec, with zero terminal SNR where the source says so; `said`: its prediction, and whether it has that.

    What is said: by a diffusers folder's scheduler_config.json, or in a file by the marks "v_pred" and "ztsnr" and by
    modelspec's metadata. Shapes are equal, so nothing else could tell.

    Raises:
        UserError: the source says that its nets predict something else.
    """
    prediction, zero_snr = said
    pipeline = spec.pipeline
    if prediction not in (None, pipeline.prediction):
        raise UserError(
            f"{source}: says that its nets predict {prediction}; {pipeline.name} says {pipeline.prediction}; choose "
            f"a --model that fits, or a YAML file with prediction: {prediction}"
        )
    if not zero_snr:
        return spec
    if pipeline.prediction == "epsilon":
        raise UserError(
            f"{source}: zero terminal SNR does not go with nets that predict epsilon, as {pipeline.name}'s do"
        )
    return replace(spec, pipeline=replace(pipeline, schedule=replace(pipeline.schedule, zero_terminal_snr=True)))


def _said_in_folder(source: Path) -> tuple[Optional[str], bool]:
    path = source / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None, False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        said = config.get("prediction_type")
        return None if said is None else PREDICTIONS.get(said, str(said)), config.get("rescale_betas_zero_snr") is True
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _said_in_file(files: TensorFiles) -> tuple[Optional[str], bool]:
    said = files.metadata.get("modelspec.prediction_type")
    marked = "v" if "v_pred" in files.shapes else None
    return marked if said is None else PREDICTIONS.get(said, said), "ztsnr" in files.shapes


def convert_controlnet(
    sources: Sequence[Path], model: ModelSpec, out: Path, options: ConversionOptions, said: Said = lambda line: None
) -> None:
    """Write out/controlnet.safetensors from a ControlNet for `model`: a file in its release's names or in diffusers',
    or the latter's folder.

    Raises:
        UserError: absent, a pickle, damaged; a parameter is missing, unexpected or mis-shaped; the disk is too small.
    """
    (source,), dtype = sources, options.dtype
    spec = ControlNetSpec(next(iter(model.unets.values())))
    shapes = shapes_of(spec)
    files = TensorFiles(folder_files(source, stem_of("controlnet")) if source.is_dir() else [source])
    found = files.shapes
    if any(name.startswith(ldm.CONTROL) for name in found):
        places = ldm.net_places(ldm.CONTROL, shapes)
        # Some files hold the whole model beside it.
        found = {name: shape for name, shape in found.items() if name.startswith(ldm.CONTROL)}
    else:
        places = controlnet_places(model, spec, shapes)
    check_places(places, shapes, found, str(source))
    check_room(out, np.dtype(DTYPES[dtype]).itemsize * sum(prod(shape) for shape in shapes.values()))
    said("controlnet.safetensors")
    tensors = {name: cast(place.read(shapes[name], files.read), dtype, name) for name, place in places.items()}
    digests = {path.name: file_digest(path) for path in files.paths}
    save_checkpoint(out / "controlnet.safetensors", tensors, {"spec": asdict(spec), "source": digests})


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
