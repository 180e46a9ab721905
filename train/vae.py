"""The autoencoder's task: random crops, L1 + MSE + edge loss + KL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as mops
from PIL import Image

from mindpangu.checkpoint.store import half, load_into, load_tensors, prefixed, save_checkpoint, unprefixed
from mindpangu.data.examples import Examples, Stream
from mindpangu.images import to_model, to_pictures
from mindpangu.models.vae import AutoencoderKL
from mindpangu.train.config import TrainConfig, VAEConfig
from mindpangu.train.loop import Task
from mindpangu.train.rows import ALL, Rows

LATENT_STATISTICS = 512  # scenes over which scale and shift are measured
GRID = 8


class VAELoss(nn.Cell):
    """construct(x (N, 3, s, s), noise like the latents) -> scalar."""

    def __init__(self, net: AutoencoderKL, task: VAEConfig) -> None:
        super().__init__()
        self.net = net
        self.mse_weight, self.edge_weight, self.kl_weight = task.mse_weight, task.edge_weight, task.kl_weight

    def construct(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, logvar = self.net.posterior(x)
        error = self.net.reconstruct(mean + mops.exp(0.5 * logvar) * noise) - x
        # Edges: the gradient of the error, so that a blurred outline costs more than a faint tint.
        across = mops.abs(error[:, :, :, 1:] - error[:, :, :, :-1]).mean()
        down = mops.abs(error[:, :, 1:, :] - error[:, :, :-1, :]).mean()
        # KL(N(mean, var) || N(0, 1)) per latent.
        kl = 0.5 * (mean * mean + mops.exp(logvar) - 1.0 - logvar).mean()
        reconstruction = mops.abs(error).mean() + self.mse_weight * (error * error).mean()
        return reconstruction + self.edge_weight * (across + down) + self.kl_weight * kl


class TrainVAE(Task):
    """The `loop.Task` for the autoencoder."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.vae is not None
        self.task, self.seed = config.vae, config.context.seed
        assert config.data is not None
        self.examples = Examples(config.data, seed=self.seed)
        self.net = AutoencoderKL(self.task.spec)
        self.loss_net = VAELoss(self.net, self.task)
        self._shown = AutoencoderKL(self.task.spec)

    def start_from(self, path: Path) -> None:
        """Take the first weights from a vae.safetensors."""
        load_into(self.net.trainable_params(), prefixed(load_tensors(path), "net."), str(path))

    def batch(self, nimg: int, count: int, part: slice = ALL) -> tuple[np.ndarray, ...]:
        """Crops of scenes nimg … nimg + count, and the posterior's noise."""
        rows, side = Rows(self.seed, nimg, count, part), self.task.crop // self.task.spec.factor
        shape = self.task.spec.z_channels, side, side
        noise = [rng.standard_normal(shape, np.float32) for rng in rows.each(Stream.AUTOENCODER)]
        return to_model([self._crop(i) for i in rows.numbers]), np.stack(noise)

    def _crop(self, index: int) -> np.ndarray:
        image = self.examples.image(self.examples.scene(index))
        rng = self.examples.rng(index, "crop")
        top = int(rng.integers(image.shape[0] - self.task.crop + 1))
        left = int(rng.integers(image.shape[1] - self.task.crop + 1))
        return image[top : top + self.task.crop, left : left + self.task.crop]

    def _load(self, weights: Mapping[str, np.ndarray]) -> AutoencoderKL:
        load_into(self._shown.trainable_params(), unprefixed(weights, "net."), "the average")
        return self._shown.set_train(False)

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        heldout = Examples(replace(self.examples.config, compositions=0.0), "heldout", seed=self.seed)
        scenes = [heldout.scene(i, (128, 128)) for i in range(GRID)]
        x = to_model([heldout.image(s) for s in scenes])
        net = self._load(weights)
        y = to_pictures(net.decode(net.encode(Tensor(x))).asnumpy())
        rows = [np.concatenate(list(to_pictures(x)), axis=1), np.concatenate(list(y), axis=1)]
        Image.fromarray(np.concatenate(rows, axis=0)).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """vae.safetensors in fp16; the sidecar's spec carries the shift and scale of the latents, per channel."""
        net = self._load(weights)
        means = []
        for start in range(0, LATENT_STATISTICS, 16):
            x = to_model([self.examples.image(self.examples.scene(i, (128, 128))) for i in range(start, start + 16)])
            means.append(net.posterior(Tensor(x))[0].asnumpy())
        latents = np.concatenate(means)
        shift = latents.mean((0, 2, 3))
        scale = 1 / latents.std((0, 2, 3))
        spec = replace(
            self.task.spec,
            shift=tuple(round(float(v), 5) for v in shift),
            scale=tuple(round(float(v), 5) for v in scale),
        )
        tensors = half(unprefixed(weights, "net."))
        save_checkpoint(folder / "vae.safetensors", tensors, {"spec": asdict(spec), **card})
