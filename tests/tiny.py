"""The sample data set, and training files small enough for a test."""

from __future__ import annotations

from pathlib import Path

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
                "channel_mult": [1, 2],
                "num_res_blocks": 1,
                "patch": 4,
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
        nested = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if nested else value
    return values
