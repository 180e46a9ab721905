"""LoRA on our nets: which parameter a module's update belongs to, and weights with updates merged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.diffusers import TEXT_ENCODERS, diffusers_places
from mindpangu.checkpoint.lora import Update, flat, read_lora
from mindpangu.checkpoint.name_map import Place, Shapes
from mindpangu.checkpoint.store import some
from mindpangu.checkpoint.tensor_files import Stored
from mindpangu.checkpoint.transformers import text_places
from mindpangu.errors import UserError
from mindpangu.spec import ModelSpec, TextSpec


@dataclass(frozen=True)
class Target:
    """Rows number `third` of three (or all of them, where None) of one of our parameters."""

    parameter: str
    third: int
    thirds: int


Lora = dict[str, list[tuple[Target, Update]]]  # by part of the model


def targets(spec: ModelSpec, shapes: Mapping[str, Shapes]) -> dict[str, dict[str, Target]]:
    """For every part: {module's flat name: where its update goes}, under diffusers' names and under ldm's."""
    return _targets(diffusers_places(spec, shapes))


def _targets(all_places: Mapping[str, Mapping[str, Place]]) -> dict[str, dict[str, Target]]:
    table: dict[str, dict[str, Target]] = {}
    for part, places in all_places.items():
        mine = table.setdefault(part, {})
        for name, place in places.items():
            if name.endswith("weight"):
                for i, theirs in enumerate(place.names):
                    mine[flat(theirs.removesuffix(".weight"))] = Target(name, i, len(place.names))
                mine.setdefault(flat(name.removesuffix(".weight")), Target(name, 0, 1))
    return table


def load_lora(path: Path, spec: ModelSpec, shapes: Mapping[str, Shapes]) -> Lora:
    """The updates of a file for the parts of a model; what it has for "unet" goes to every UNet.

    Where a module's name begins with a UNet's, "structure_…", it goes to that one alone.

    Raises:
        UserError: see `read_lora`; or a module that the model does not have, or of another shape.
    """
    parts_of = {
        "unet": list(spec.unets),
        **{theirs: [ours] for ours, theirs in TEXT_ENCODERS.items() if ours in spec.texts},
    }
    return _placed(path, read_lora(path), targets(spec, shapes), parts_of, shapes, spec.pipeline.name)


def load_text_encoder_lora(path: Path, texts: Mapping[str, TextSpec], shapes: Mapping[str, Shapes]) -> Lora:
    """The updates that a file has for text encoders, whatever else it has.

    Raises:
        UserError: as `load_lora`; or it has none.
    """
    parts_of = {TEXT_ENCODERS[name]: [name] for name in texts}
    updates = {key: update for key, update in read_lora(path).items() if key[0] in parts_of}
    if not updates:
        raise UserError(f"{path}: has no updates of text encoders")
    table = _targets({name: text_places(shapes[name], text) for name, text in texts.items()})
    return _placed(path, updates, table, parts_of, shapes, "the text encoders")


def _placed(
    path: Path,
    updates: Mapping[tuple[str, str], Update],
    table: Mapping[str, Mapping[str, Target]],
    parts_of: Mapping[str, Sequence[str]],
    shapes: Mapping[str, Shapes],
    model: str,
) -> Lora:
    lora: Lora = {}
    unknown, misshapen = [], []
    for (part, module), update in updates.items():
        named = [name for name in parts_of.get("unet", ()) if part == "unet" and module.startswith(f"{name}_")]
        module = module.removeprefix(f"{named[0]}_") if named else module  # noqa: PLW2901
        for ours in named or parts_of.get(part, [""]):
            target = table.get(ours, {}).get(module)
            if target is None:
                unknown.append(f"{part} {module}")
                continue
            shape = shapes[ours][target.parameter]
            wanted = (shape[0] // target.thirds, int(np.prod(shape[1:])))
            if (update.up.shape[0], update.down.shape[1]) != wanted:
                misshapen.append(f"{part} {module} {[update.up.shape[0], update.down.shape[1]]} for {list(wanted)}")
                continue
            lora.setdefault(ours, []).append((target, update))
    for what, names in (("has no module", unknown), ("has another shape of", misshapen)):
        if names:
            raise UserError(f"{path}: {model} {what} {some(names)} ({len(names)} in all); the LoRA is of another model")
    return lora


def merged(weights: Mapping[str, Stored], loras: Sequence[tuple[Lora, float]], part: str) -> dict[str, Stored]:
    """The weights of a part with LoRAs, each at its scale; what no LoRA changes is `weights`' own."""
    changed: dict[str, np.ndarray] = {}
    for lora, scale in loras:
        for target, update in lora.get(part, []):
            name = target.parameter
            if name not in changed:
                changed[name] = np.array(weights[name], np.float32)
            rows = np.split(changed[name], target.thirds)[target.third]
            rows += np.float32(scale) * update.delta().reshape(rows.shape)
    return {**weights, **changed}
