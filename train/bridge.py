"""A latent bridge's task: pairs of encodings of the same pictures, by two autoencoders, at two sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from PIL import Image, ImageFilter
from tqdm import tqdm

from mindpangu.checkpoint.store import half, load_into, load_tensors, prefixed, save_checkpoint, unprefixed
from mindpangu.data.examples import Examples, Stream
from mindpangu.images import parse_size, to_model, to_pictures
from mindpangu.models.bridge import LatentBridge
from mindpangu.models.loading import load_vae
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import BridgeSpec
from mindpangu.train.config import TrainConfig
from mindpangu.train.loop import Task
from mindpangu.train.rows import ALL, Rows

ENCODE_BATCH = 16
BLURRED = 0.5  # share of the pictures
MAX_BLUR = 0.08  # of the picture's width; a Gaussian's standard deviation
SHOWN = 8


class BridgeLoss(nn.Cell):
    """construct(z, wanted) -> the mean squared error of the bridge's latents; scalar."""

    def __init__(self, net: LatentBridge) -> None:
        super().__init__()
        self.net = net

    def construct(self, z: Tensor, wanted: Tensor) -> Tensor:
        error = self.net(z) - wanted
        return (error * error).mean()


class TrainBridge(Task):
    """The `loop.Task` for a latent bridge."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises: UserError where an autoencoder is missing, or a size is none of its multiples."""
        assert config.bridge is not None
        self.task, self.seed = config.bridge, config.context.seed
        assert config.data is not None
        self.examples = Examples(config.data, seed=self.seed)
        near, far = load_vae(self.task.source), load_vae(self.task.target)
        before, after = parse_size(self.task.in_size), parse_size(self.task.out_size)
        self.spaces = {"source": (near, before), "target": (far, after)}
        self.spec = BridgeSpec(
            near.spec.z_channels,
            latent_size(near, before),
            far.spec.z_channels,
            latent_size(far, after),
            self.task.channels,
            self.task.blocks,
        )
        self.net = LatentBridge(self.spec)
        self.loss_net = BridgeLoss(self.net)
        self._shown = LatentBridge(self.spec)
        path = config.output_dir / "latents.safetensors"
        if not path.exists():
            save_checkpoint(path, self._encoded(), {"scenes": self.task.scenes})
        self.pairs = load_tensors(path)

    def picture(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Scene `index`, (height, width, 3) uint8: sharp, or as blurred as its number says."""
        image = self.examples.image(self.examples.scene(index, size))
        rng = self.examples.rng(index, "blur")
        if rng.random() >= BLURRED:
            return image
        blur = ImageFilter.GaussianBlur(MAX_BLUR * size[0] * rng.random() ** 2)
        return np.asarray(Image.fromarray(image).filter(blur))

    def _encoded(self) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.spaces}
        for first in tqdm(range(0, self.task.scenes, ENCODE_BATCH), desc="encoding", unit=f"{ENCODE_BATCH} img"):
            numbers = range(first, first + ENCODE_BATCH)  # whole batches, so that one shape is compiled
            for name, (vae, size) in self.spaces.items():
                images = Tensor(to_model([self.picture(i, size) for i in numbers]))
                found[name].append(vae.encode(images).asnumpy().astype(np.float16))
        return {name: np.concatenate(parts)[: self.task.scenes] for name, parts in found.items()}

    def start_from(self, path: Path) -> None:
        """Take the first weights from a bridge.safetensors."""
        load_into(self.net.trainable_params(), prefixed(load_tensors(path), "net."), str(path))

    def batch(self, nimg: int, count: int, part: slice = ALL) -> tuple[np.ndarray, ...]:
        """Pairs at random."""
        rows = Rows(self.seed, nimg, count, part)
        chosen = [int(rng.integers(self.task.scenes)) for rng in rows.each(Stream.PICTURE)]
        return tuple(self.pairs[name][chosen].astype(np.float32) for name in ("source", "target"))

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Pictures as the target's autoencoder keeps them (top), and from the other side of the bridge (below)."""
        load_into(self._shown.trainable_params(), unprefixed(weights, "net."), "the average")
        far, _ = self.spaces["target"]
        z, wanted = (Tensor(self.pairs[name][:SHOWN].astype(np.float32)) for name in ("source", "target"))
        rows = [to_pictures(far.decode(latents).asnumpy()) for latents in (wanted, self._shown(z))]
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """bridge.safetensors in fp16."""
        tensors = half(unprefixed(weights, "net."))
        save_checkpoint(folder / "bridge.safetensors", tensors, {"spec": asdict(self.spec), **card})


def latent_size(vae: AutoencoderKL, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in latents of a picture's in pixels. Raises: UserError where it is no multiple of the factor."""
    return size[0] // vae.spec.factor, size[1] // vae.spec.factor
