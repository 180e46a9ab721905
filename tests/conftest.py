"""Shared pieces: the sample data set, and a whole tiny model made by the real trainers in a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

import mindpangu  # noqa: F401 - sets the environment before MindSpore is imported

SAMPLE = Path(__file__).parent / "data" / "sample"
STYLES = ["noto", "fluent_flat", "fluent_3d"]
SIZES = ["32x32", "48x32"]


def training(part: str, folder: Path, **changes) -> dict:
    """A tiny training file, as plain values."""
    values = {
        "output_dir": str(folder / part),
        "context": {"device_target": "CPU", "seed": 3},
        "data": {"folder": str(SAMPLE), "styles": STYLES, "compositions": 0.3},
        "runner_config": {"images": 16, "batch_size": 4},
        "lr_schedule": {"learning_rate": 1e-3},
        "callbacks": {"log_images": 8, "sample_images": 16, "checkpoint_images": 8},
    }
    text = {"width": 16, "layers": 2, "heads": 2, "context_length": 12}
    tasks = {
        "vae": {
            "spec": {
                "z_channels": 4,
                "channels": 16,
                "channel_mult": [1],
                "num_res_blocks": 1,
                "patch": 8,
                "norm_groups": 4,
            },
            "crop": 32,
        },
        "clip": {
            "text_a": {"vocab_size": 600, "end_id": 3, "activation": "quick_gelu", "output": "last", **text},
            "text_b": {
                "vocab_size": 600,
                "end_id": 2,
                "activation": "gelu",
                "output": "penultimate",
                "projection_dim": 16,
                **text,
            },
            "image": {
                "image_size": 32,
                "patch_size": 16,
                "width": 16,
                "layers": 1,
                "heads": 2,
                "projection_dim": 16,
            },
        },
        "diffusion": {
            "unet": {
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 16,
                "channel_mult": [1, 2],
                "num_res_blocks": 1,
                "transformer_depth": [0, 1],
                "head_dim": 16,
                "context_dim": 32,
                "vector_dim": 24,
                "norm_groups": 4,
            },
            "vae": str(folder / "vae"),
            "text": str(folder / "clip"),
            "sizes": SIZES,
            "size_dim": 8,
            "scenes": 16,
        },
    }
    task = part if part in tasks else "diffusion"
    values[task] = tasks[task]
    if task == "diffusion":
        values["data"].update(sizes=SIZES, size_weights=[0.7, 0.3])
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return values


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with the exports of all four trainings, each of four steps."""
    from mindpangu.config import parse
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import run

    folder = tmp_path_factory.mktemp("runs")
    for part in ("vae", "clip", "structure", "texture"):
        limits = {"structure": {"t_min": 500}, "texture": {"t_max": 500, "crop_share": 0.5, "crop_latents": 2}}
        values = training(part, folder)
        values.get("diffusion", {}).update(limits.get(part, {}))
        run(parse(values, TrainConfig, part))
    return folder


@pytest.fixture(scope="session")
def model_folder(runs, tmp_path_factory) -> Path:
    """The tiny model, packed by the real command."""
    from mindpangu.cli.zoo import pack

    folder = tmp_path_factory.mktemp("model")
    spec = folder / "spec.yaml"
    spec.write_text(
        "{name: tiny, sizes: [32x32, 48x32], size_dim: 8, t_struct: 500, prediction: v, default_size: 32x32,"
        " default_guidance: 3, styles: {noto: {en: Noto style, zh: Noto风格}, fluent_3d: {en: 3D style, zh: 3D风格}}}",
        encoding="utf-8",
    )
    pack(runs=runs, spec=spec, out=folder / "tiny")
    return folder / "tiny"
