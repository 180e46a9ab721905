"""LoRA in training (arXiv 2106.09685): a UNet whose weights stay, with small updates beside them that learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Optional

import numpy as np

from mindpangu.checkpoint.diffusers import unet_places
from mindpangu.models.layers import DOWN, UP, Dense
from mindpangu.models.unet import UNet

Modules = Literal["attention", "all"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ENDINGS = {"attention": ATTENTION, "all": (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")}


def adapt(unet: UNet, rank: int, alpha: float, modules: Modules) -> None:
    """Freeze the UNet, and give the layers of its transformers updates of `rank`, which count alpha / rank."""
    for parameter in unet.get_parameters():
        parameter.requires_grad = False
    for name, cell in unet.cells_and_names():
        if isinstance(cell, Dense) and name.endswith(ENDINGS[modules]):
            cell.adapt(rank, alpha / rank)


def lora_file(
    unet: UNet, weights: Mapping[str, np.ndarray], scale: float, expert: Optional[str]
) -> dict[str, np.ndarray]:
    """What adapted layers learned, {our names: arrays}, as PEFT writes it for diffusers; `scale` goes into the ups.

    `expert`: which of a model's UNets alone it is for; diffusers, which knows only one, does not read such a file.
    """
    spec = unet.spec
    names = [p.name for p in unet.get_parameters() if not p.name.endswith((DOWN, UP))]
    places = unet_places(names, len(spec.channel_mult), spec.num_res_blocks, spec.transformer_depth)
    prefix = "unet." if expert is None else f"unet.{expert}."
    tensors = {}
    for name, value in weights.items():
        stem, _, half = name.rpartition(".")
        module = places[f"{stem}.weight"].names[0].removesuffix(".weight")
        kind, factor = ("lora_A", 1.0) if half == DOWN else ("lora_B", scale)
        tensors[f"{prefix}{module}.{kind}.weight"] = (factor * value).astype(np.float32)
    return tensors
