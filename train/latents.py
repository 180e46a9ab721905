"""The latent cache: scenes encoded once, grouped by size, so that a UNet's training never waits for the autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from mindpangu.checkpoint.store import load_tensors, save_checkpoint
from mindpangu.data.examples import Examples
from mindpangu.images import to_model
from mindpangu.models.vae import AutoencoderKL

ENCODE_BATCH = 16


@dataclass(frozen=True)
class Bucket:
    """The scenes of one size: latents (M, C, h, w) fp16 and the number of each scene."""

    size: str
    latents: np.ndarray
    scenes: np.ndarray


def encode_scenes(examples: Examples, vae: AutoencoderKL, count: int, path: Path) -> list[Bucket]:
    """Latents of scenes 0 … count, from `path` where they are, else computed and written there."""
    if not path.exists():
        tensors = {}
        of_size = np.array([examples.size_index(i) for i in range(count)])
        with tqdm(total=count, unit="img", desc="encoding") as bar:
            for number, size in enumerate(examples.config.sizes):
                scenes = np.flatnonzero(of_size == number)
                if len(scenes):
                    tensors[f"{size}.latents"] = _encode(examples, vae, scenes, bar)
                    tensors[f"{size}.scenes"] = scenes.astype(np.int32)
        save_checkpoint(path, tensors, {"scenes": count})
    tensors = load_tensors(path)
    sizes = [size for size in examples.config.sizes if f"{size}.latents" in tensors]
    return [Bucket(size, tensors[f"{size}.latents"], tensors[f"{size}.scenes"]) for size in sizes]


def _encode(examples: Examples, vae: AutoencoderKL, scenes: np.ndarray, bar: tqdm) -> np.ndarray:
    parts = []
    for start in range(0, len(scenes), ENCODE_BATCH):
        chosen = scenes[start : start + ENCODE_BATCH]
        parts.append(encode_batch(vae, [examples.image(examples.scene(int(i))) for i in chosen]))
        bar.update(len(chosen))
    return np.concatenate(parts)


def encode_pictures(vae: AutoencoderKL, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Latents (M, C, h, w) fp16 of pictures of one size, (H, W, 3) uint8."""
    starts = range(0, len(pictures), ENCODE_BATCH)
    return np.concatenate([encode_batch(vae, pictures[i : i + ENCODE_BATCH]) for i in starts])


def encode_batch(vae: AutoencoderKL, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Latents (M, C, h, w) fp16 of up to ENCODE_BATCH pictures of one size, (H, W, 3) uint8."""
    padded = [*pictures, *[pictures[-1]] * (ENCODE_BATCH - len(pictures))]  # one shape, so one compilation a size
    return vae.encode(Tensor(to_model(padded))).asnumpy()[: len(pictures)].astype(np.float16)
