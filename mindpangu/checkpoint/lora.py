"""LoRA files (arXiv 2106.09685): kohya's names, PEFT's and diffusers', read into one form.

A module's update is scale · alpha / rank · up · down, with down (rank, in, …) and up (out, rank, …); alpha is the rank
where a file does not say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from mindpangu.checkpoint.tensor_files import TensorFiles
from mindpangu.errors import UserError

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

    Raises:
        UserError: no such file, a pickle, no LoRA, of another kind (LoHa, LoKr, DoRA, …), or a half is missing.
    """
    files = TensorFiles([path])
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name in files.shapes:
        if any(kind in name for kind in OTHER_KINDS):
            raise UserError(f"{path}: {name} is not of a plain LoRA (down, up, alpha); LoHa, LoKr, DoRA are not read")
        placed = _parsed(name)
        if placed is None:
            raise UserError(f"{path}: {name} is no name of kohya's, PEFT's or diffusers' LoRA files")
        part, module, leaf = placed
        found.setdefault((part, module), {})[leaf] = files.read(name).astype(np.float32)
    if not found:
        raise UserError(f"{path}: holds no tensors")
    updates = {}
    for (part, module), halves in found.items():
        if "down" not in halves or "up" not in halves:
            missing = "down" if "down" not in halves else "up"
            raise UserError(f"{path}: {part} {module}: its {missing} matrix is missing")
        down, up = halves["down"], halves["up"]
        rank = down.shape[0]
        if up.ndim < 2 or up.shape[1] != rank:
            raise UserError(f"{path}: {part} {module}: down {list(down.shape)} and up {list(up.shape)} differ in rank")
        alpha = float(halves["alpha"].item()) if "alpha" in halves else float(rank)
        updates[part, module] = Update(down.reshape(rank, -1), up.reshape(up.shape[0], rank), alpha)
    return updates


def _parsed(name: str) -> Optional[tuple[str, str, str]]:
    """(part, module, leaf) of a tensor's name."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    for prefix, part in PARTS.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :].removeprefix("base_model.model.")
            for pattern, leaf in LEAVES.items():
                if re.search(pattern, rest):
                    module = re.sub(pattern, "", rest).replace(".processor.", ".")
                    return part, flat(module), leaf
    return None


def flat(module: str) -> str:
    """kohya's way of writing a module's name; old attention processors say to_out for to_out.0."""
    flattened = module.replace(".", "_")
    return flattened + "_0" if flattened.endswith("to_out") else flattened
