"""The sample data set, and training files small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mindpangu.data import manifest
from mindpangu.data.lines import as_lines, edges
from mindpangu.images import on_white, read_picture

SAMPLE = Path(__file__).parent / "data" / "sample"
STYLES = ["noto", "fluent_flat", "fluent_3d"]
SIZES = ["32x32", "48x32"]


def with_lines(folder: Path) -> None:
    """The sample's Noto pictures in `folder`, and line drawings of them: their edges, as a stand-in."""
    records: list[manifest.Record] = []
    for record in manifest.read(SAMPLE, ["noto"]):
        picture = read_picture(SAMPLE / record.file)
        lines = Image.fromarray(as_lines(edges(np.asarray(on_white(picture))))).convert("L")
        black = Image.new("RGBA", picture.size, "black")
        black.putalpha(lines)
        for style, art in (("noto", picture), ("line", black)):
            file = folder / style / f"{record.concept}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            art.save(file)
            records.append(replace(record, file=f"{style}/{record.concept}.png", style=style))
    manifest.write(records, folder / "manifest.jsonl")


UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1,
    "transformer_depth": [0, 1], "head_dim": 16, "context_dim": 32, "vector_dim": 24, "norm_groups": 4,
}  # fmt: skip
TEXT = {"vocab_size": 600, "width": 16, "layers": 2, "heads": 2, "context_length": 12}


def training(part: str, folder: Path, **changes) -> dict:
    """A tiny training file, as plain values: of the nets named here, or of a UNet called otherwise."""
    values = {
        "output_dir": str(folder / part),
        "context": {"device_target": "CPU", "seed": 3},
        "data": {"folder": str(SAMPLE), "styles": STYLES, "compositions": 0.3},
        "runner_config": {"images": 16, "batch_size": 4},
        "lr_schedule": {"learning_rate": 1e-3},
        "callbacks": {"log_images": 8, "sample_images": 16, "checkpoint_images": 8},
    }
    known = {"vae": vae, "clip": clip, "students": students, "base": wordless, "control": control, "bridge": nothing}
    return laid_over(laid_over(values, known.get(part, diffusion)(folder)), changes)


def laid_over(values: dict, changes: dict) -> dict:
    """The values with changes; mappings one level down are merged."""
    both = {key for key in changes if isinstance(changes[key], dict) and isinstance(values.get(key), dict)}
    return {**values, **changes, **{key: {**values[key], **changes[key]} for key in both}}


def nothing(folder: Path) -> dict:
    return {}


def vae(folder: Path) -> dict:
    spec = {"z_channels": 4, "channels": 16, "channel_mult": [1, 2], "num_res_blocks": 1, "patch": 4, "norm_groups": 4}
    return {"vae": {"spec": spec, "crop": 32}}


def clip(folder: Path) -> dict:
    of_b = {"end_id": 2, "activation": "gelu", "output": "penultimate", "projection_dim": 16}
    image = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2, "projection_dim": 16}
    text_encoder = {**TEXT, "end_id": 3, "activation": "quick_gelu", "output": "last"}
    return {"clip": {"text_encoder": text_encoder, "text_encoder_2": {**TEXT, **of_b}, "image": image}}


def students(folder: Path) -> dict:
    """Text encoders that learn what those of `clip` say, from token vectors of theirs."""
    encoder = {**TEXT, "end_id": 3, "activation": "gelu", "output": "bert", "projection_dim": 24}
    task = {"teacher": str(folder / "clip"), "text_encoder": encoder, "text_encoder_2": encoder}
    return {"text_distillation": task, "load_checkpoint": str(folder / "clip")}


def diffusion(folder: Path) -> dict:
    task = {"unet": UNET, "vae": str(folder / "vae"), "text": str(folder / "clip"), "sizes": SIZES, "size_dim": 8}
    return {"diffusion": {**task, "scenes": 16}, "data": {"sizes": SIZES, "size_weights": [0.7, 0.3]}}


def wordless(folder: Path) -> dict:
    """A net without words, of pictures that have line drawings."""
    unet = {**UNET, "context_dim": 0, "vector_dim": 0}
    task = {"unet": unet, "vae": str(folder / "vae"), "sizes": ["32x32"], "scenes": 16}
    data = {"folder": str(folder / "lined"), "sizes": ["32x32"], "size_weights": [1.0]}
    return {"diffusion": task, "data": data}


def control(folder: Path) -> dict:
    """A net that steers `wordless` along line drawings."""
    values = wordless(folder)
    base = str(folder / "base" / "unet.safetensors")
    values["diffusion"]["control"] = {"base": base, "hint_widths": [4, 4, 8, 8]}
    return values
