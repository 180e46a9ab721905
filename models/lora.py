"""LoRA in training (arXiv 2106.09685): nets whose weights stay, with small updates beside them that learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from mindspore import nn

from mindpangu.checkpoint.diffusers import unet_places
from mindpangu.checkpoint.name_map import Place
from mindpangu.checkpoint.transformers import text_places
from mindpangu.models.layers import DOWN, UP
from mindpangu.models.unet import UNet
from mindpangu.spec import TextSpec

Modules = Literal["attention", "all"]
# What the names of layers end with: those of the attention, those beside it. "attn" is OpenCLIP's packed one.
UNET_LAYERS = (("to_q", "to_k", "to_v", "to_out.0"), ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"))
TEXT_ENCODER_LAYERS = (("q_proj", "k_proj", "v_proj", "out_proj", "attn"), ("fc1", "fc2", "c_fc", "c_proj"))


def adapt(net: nn.Cell, layers: tuple[Sequence[str], Sequence[str]], rank: int, alpha: float, modules: Modules) -> None:
    """Freeze a UNet or text encoders, and give the layers of its transformers updates of `rank`, counting alpha / rank.

    `layers`: UNET_LAYERS or TEXT_ENCODER_LAYERS; `modules`: those of the attention, or all.
    """
    for parameter in net.get_parameters():
        parameter.requires_grad = False
    endings = (*layers[0], *(layers[1] if modules == "all" else ()))
    for name, cell in net.cells_and_names():
        if hasattr(cell, "adapt") and name.endswith(endings):
            cell.adapt(rank, alpha / rank)


def unet_file(unet: UNet, learned: Mapping[str, np.ndarray], scale: float, expert: str = "") -> dict[str, np.ndarray]:
    """What an adapted UNet learned, {our names: arrays}, as PEFT writes it for diffusers; `scale` goes into the ups.

    `expert`: which of a model's UNets alone it is for; diffusers, which knows only one, does not read such a file.
    """
    spec = unet.spec
    names = [p.name for p in unet.get_parameters() if not p.name.endswith((DOWN, UP))]
    places = unet_places(names, spec)
    return _file(places, learned, scale, f"unet.{expert}." if expert else "unet.")


def text_encoder_file(
    spec: TextSpec, learned: Mapping[str, np.ndarray], scale: float, part: str
) -> dict[str, np.ndarray]:
    """The same of an adapted text encoder; `part`: diffusers' name of it, text_encoder or text_encoder_2."""
    return _file(text_places((_weight(name) for name in learned), spec), learned, scale, f"{part}.")


def _weight(name: str) -> str:
    """The weight that an update is for: "a.lora_down" -> "a.weight", "a.in_proj_lora_down" -> "a.in_proj_weight"."""
    return name.removesuffix(DOWN).removesuffix(UP) + "weight"


def _file(
    places: Mapping[str, Place], learned: Mapping[str, np.ndarray], scale: float, prefix: str
) -> dict[str, np.ndarray]:
    """A packed projection's three updates, which lie one below the other, go to the three layers that it packs."""
    tensors = {}
    for name, value in learned.items():
        kind, factor = ("lora_A", 1.0) if name.endswith(DOWN) else ("lora_B", scale)
        modules = [theirs.removesuffix(".weight") for theirs in places[_weight(name)].names]
        for module, part in zip(modules, np.split(value, len(modules))):
            tensors[f"{prefix}{module}.{kind}.weight"] = (factor * part).astype(np.float32)
    return tensors
