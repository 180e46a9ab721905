"""LoRA files (arXiv 2106.09685): kohya's names, PEFT's and diffusers', read into one form, placed in a model, merged.

A module's update is scale · alpha / rank · up · down, with down (rank, in, …) and up (out, rank, …); alpha is the rank
where neither a tensor nor a config says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.diffusers import diffusers_places
from mindpangu.checkpoint.name_map import Place, Shapes
from mindpangu.checkpoint.store import some
from mindpangu.checkpoint.tensor_files import Stored, TensorFiles
from mindpangu.checkpoint.transformers import text_places
from mindpangu.errors import UserError
from mindpangu.spec import ModelSpec, TextSpec

# How a file calls a whole part, longest first: diffusers' folder names.
PARTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
WRAPPERS = ("base_model.model.", "transformer.")  # what PEFT and old trainers put in front
LEAVES = {
    r"\.lora_down\.weight$": "down",
    r"\.lora_up\.weight$": "up",
    r"\.alpha$": "alpha",
    r"\.lora_A(\.\w+)?\.weight$": "down",
    r"\.lora_B(\.\w+)?\.weight$": "up",
    r"\.lora(_linear_layer)?\.down\.weight$": "down",
    r"\.lora(_linear_layer)?\.up\.weight$": "up",
    r"_lora\.down\.weight$": "down",
    r"_lora\.up\.weight$": "up",
}
UNET_BEGINNINGS = ("down_blocks.", "mid_block.", "up_blocks.", "input_blocks.", "middle_block.", "output_blocks.")
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's
HEADER_KEY = "lora_adapter_metadata"  # diffusers'
OTHER_KINDS = ("hada_w", "lokr_w", "dora_scale", "lora_magnitude_vector", "lora_mid", "oft_")


@dataclass(frozen=True)
class Update:
    """The low-rank update of one module, fp32: `down` (rank, in·k·k), `up` (out, rank), alpha."""

    down: np.ndarray
    up: np.ndarray
    alpha: float

    def delta(self) -> np.ndarray:
        """(out, in·k·k) at scale 1."""
        return np.float32(self.alpha / self.down.shape[0]) * (self.up @ self.down)


def read_lora(path: Path) -> dict[tuple[str, str], Update]:
    """{(part, module): update}; part: unet, text_encoder, text_encoder_2; module: its name with _ for every dot.

    `path`: a file, or the folder that PEFT's save_pretrained writes. Alpha is a tensor's, or the adapter's config in
    the header (diffusers since 0.34) or beside the file (PEFT).

    Raises:
        UserError: no such file, a pickle, no LoRA, of another kind (LoHa, LoKr, DoRA, …), a half is missing, or numbers
            are not finite.
    """
    if path.is_dir():
        file, config = path / ADAPTER_FILE, _config_beside(path)
    else:
        file, config = path, {}
    files = TensorFiles([file])
    config = {**config, **_header_config(files.metadata, path)}
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name in files.shapes:
        if any(kind in name for kind in OTHER_KINDS):
            raise UserError(f"{path}: {name} is not of a plain LoRA (down, up, alpha); LoHa, LoKr, DoRA are not read")
        placed = _parsed(name)
        if placed is None:
            raise UserError(f"{path}: {name} is no name of kohya's, PEFT's or diffusers' LoRA files")
        part, module, leaf = placed
        value = files.read(name).astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(
                f"{path}: {name} holds numbers that are not finite; the file is damaged, or its training was"
            )
        found.setdefault((part, module), {})[leaf] = value
    if not found:
        raise UserError(f"{path}: holds no tensors")
    updates = {}
    for (part, module), halves in found.items():
        if "down" not in halves or "up" not in halves:
            missing = "down" if "down" not in halves else "up"
            raise UserError(f"{path}: {part} {module}: its {missing} matrix is missing")
        down, up = halves["down"], halves["up"]
        rank = down.shape[0] if down.ndim else 0
        if not rank or up.ndim < 2 or up.shape[1] != rank:
            raise UserError(f"{path}: {part} {module}: down {list(down.shape)} and up {list(up.shape)} differ in rank")
        if "alpha" in halves and halves["alpha"].size != 1:
            raise UserError(
                f"{path}: {part} {module}: alpha has the shape {list(halves['alpha'].shape)}, not one number"
            )
        alpha = float(halves["alpha"].item()) if "alpha" in halves else _alpha(config, part, module, rank)
        updates[part, module] = Update(down.reshape(rank, -1), up.reshape(up.shape[0], rank), alpha)
    return updates


def _header_config(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """diffusers' copy of the adapters' configs, {"unet.lora_alpha": …}. Raises: UserError."""
    try:
        config = json.loads(metadata.get(HEADER_KEY, "{}"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path}: {HEADER_KEY} in its header is not JSON, so its alpha is unknown")
    return config


def _config_beside(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json. Raises: UserError."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / ADAPTER_CONFIG}: cannot be read ({error}); PEFT's folder has one") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / ADAPTER_CONFIG}: holds a {type(config).__name__}, not an object")
    return config


def _alpha(config: Mapping[str, Any], part: str, module: str, rank: int) -> float:
    """A module's alpha by an adapter's config; the rank where it says nothing. Raises: UserError."""

    def said(key: str) -> Any:
        return config.get(f"{part}.{key}", config.get(key))

    alpha, own = said("lora_alpha"), said("alpha_pattern")
    for name, value in (own if isinstance(own, dict) else {}).items():
        if module.endswith(flat(str(name))):
            alpha = value
    if alpha is None:
        return float(rank)
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise UserError(f"a LoRA's lora_alpha is {alpha!r}; a finite number is needed")
    return float(alpha) * (math.sqrt(rank) if said("use_rslora") else 1.0)  # rsLoRA counts alpha / √rank


def _parsed(name: str) -> Optional[tuple[str, str, str]]:
    """(part, module, leaf) of a tensor's name."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    name = _with_part(name)
    for prefix, part in PARTS.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :].removeprefix("base_model.model.")
            for pattern, leaf in LEAVES.items():
                if re.search(pattern, rest):
                    module = re.sub(pattern, "", rest).replace(".processor.", ".")
                    return part, flat(module), leaf
    return None


def _with_part(name: str) -> str:
    """A name that says its part, where an adapter's folder leaves it out."""
    if name.startswith(UNET_BEGINNINGS):
        return f"unet.{name}"
    return f"text_encoder.{name}" if name.startswith("text_model.") else name


def flat(module: str) -> str:
    """kohya's way of writing a module's name; old attention processors say to_out for to_out.0."""
    flattened = module.replace(".", "_")
    return flattened + "_0" if flattened.endswith("to_out") else flattened


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
    parts_of = {"unet": list(spec.unets), **{name: [name] for name in spec.texts}}
    return _placed(path, read_lora(path), targets(spec, shapes), parts_of, shapes, spec.pipeline.name)


def load_text_encoder_lora(path: Path, texts: Mapping[str, TextSpec], shapes: Mapping[str, Shapes]) -> Lora:
    """The updates that a file has for text encoders, whatever else it has.

    Raises:
        UserError: as `load_lora`; or it has none.
    """
    parts_of = {name: [name] for name in texts}
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
