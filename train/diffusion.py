"""The generators' task: a UNet on cached latents, on its share of the noise schedule (PanGu-Draw, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as mops
from PIL import Image

from mindpangu.checkpoint.store import load_into, load_tensors, save_checkpoint
from mindpangu.checkpoint.weights import half, prefixed, unprefixed
from mindpangu.data.examples import Examples, to_pictures
from mindpangu.diffusion import Guided, NetDenoiser, NoiseSchedule
from mindpangu.diffusion.denoiser import training_target
from mindpangu.diffusion.samplers import euler
from mindpangu.errors import UserError
from mindpangu.models.conditioner import Conditioner
from mindpangu.models.loading import load_conditioner, load_tokenizers, load_vae
from mindpangu.models.unet import UNet
from mindpangu.train.config import DiffusionTask, TrainConfig
from mindpangu.train.latents import encode_scenes

TOWERS = ("text_a", "text_b")
SHOWN, SHOWN_STEPS, SHOWN_GUIDANCE = 8, 16, 4.0


class DiffusionLoss(nn.Cell):
    """construct(latents, noise, alpha, sigma (N, 1, 1, 1), t (N,), ids_a, ids_b, size_index (N, 1)) -> scalar.

    The mean squared error of the prediction for the latent alpha·latents + sigma·noise.
    """

    def __init__(self, unet: UNet, conditioner: Conditioner, task: DiffusionTask) -> None:
        super().__init__()
        self.unet, self.conditioner, self.prediction = unet, conditioner, task.prediction

    def construct(
        self,
        latents: Tensor,
        noise: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        t: Tensor,
        ids_a: Tensor,
        ids_b: Tensor,
        size_index: Tensor,
    ) -> Tensor:
        context, vector = self.conditioner((ids_a, ids_b), size_index)
        out = self.unet(alpha * latents + sigma * noise, t, mops.stop_gradient(context), mops.stop_gradient(vector))
        error = out - training_target(self.prediction, latents, noise, alpha, sigma)
        return (error * error).mean()


class TrainDiffusion:
    """The `loop.Task` for the common net, the structure generator and the texture generator."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises: UserError where the data asks for a size that the model does not know, or a part is missing."""
        assert config.diffusion is not None
        self.task, self.seed = config.diffusion, config.context.seed
        unknown = [size for size in config.data.sizes if size not in self.task.sizes]
        if unknown:
            raise UserError(f"data.sizes {unknown} are not among diffusion.sizes {list(self.task.sizes)}")
        self.examples = Examples(config.data, seed=self.seed)
        self.schedule = NoiseSchedule(self.task.schedule)
        self.vae = load_vae(self.task.vae / "vae.safetensors")
        conditioner = load_conditioner(self.task.text, TOWERS, self.task.size_dim)
        for parameter in conditioner.get_parameters():
            parameter.requires_grad = False
        self.tokenizers = load_tokenizers(self.task.text, TOWERS)
        self.conditioner = conditioner
        self.loss_net = DiffusionLoss(UNet(self.task.unet), conditioner, self.task)
        self._shown = UNet(self.task.unet)
        self.buckets = encode_scenes(
            self.examples, self.vae, self.task.scenes, config.output_dir / "latents.safetensors"
        )

    def start_from(self, path: Path) -> None:
        """Take the first weights from a unet.safetensors."""
        load_into(self.loss_net.unet.trainable_params(), prefixed(load_tensors(path), "unet."), str(path))

    def batch(self, nimg: int, count: int) -> tuple[np.ndarray, ...]:
        """Latents of one size, noise, and captions drawn afresh; some batches are cut to windows."""
        rng = np.random.default_rng([self.seed, nimg, 3])
        shares = np.array([len(b.scenes) for b in self.buckets], np.float64)
        bucket = self.buckets[int(rng.choice(len(self.buckets), p=shares / shares.sum()))]
        chosen = rng.integers(len(bucket.scenes), size=count)
        latents = bucket.latents[chosen].astype(np.float32)
        if rng.random() < self.task.crop_share:
            latents = self._windows(latents, rng)
        noise = rng.standard_normal(latents.shape, np.float32)
        t = rng.uniform(self.task.t_min, min(self.task.t_max, self.task.schedule.steps - 1), count)
        alpha_bar = self.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        prompts = [self._prompt(int(bucket.scenes[c]), nimg + j) for j, c in enumerate(chosen)]
        size_index = np.full((count, 1), self.task.sizes.index(bucket.size), np.float32)
        return (
            latents,
            noise,
            np.sqrt(alpha_bar).astype(np.float32),
            np.sqrt(1 - alpha_bar).astype(np.float32),
            t.astype(np.float32),
            *(tokenizer(prompts) for tokenizer in self.tokenizers),
            size_index,
        )

    def _windows(self, latents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side, (height, width) = self.task.crop_latents, latents.shape[2:]
        tops = rng.integers(height - side + 1, size=len(latents))
        lefts = rng.integers(width - side + 1, size=len(latents))
        return np.stack([z[:, y : y + side, x : x + side] for z, y, x in zip(latents, tops, lefts)])

    def _prompt(self, scene: int, index: int) -> str:
        if self.examples.rng(index, "dropout").random() < self.task.caption_dropout:
            return ""
        return self.examples.caption(self.examples.scene(scene), index)

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Scenes (top) and what the net alone makes of their captions, from the noisiest t it knows (below)."""
        load_into(self._shown.trainable_params(), unprefixed(weights, "unet."), "the average")
        bucket = self.buckets[0]
        x0 = bucket.latents[:SHOWN].astype(np.float32)
        index = np.full((2 * SHOWN, 1), self.task.sizes.index(bucket.size), np.float32)
        captions = [self.examples.caption(self.examples.scene(int(s)), int(s)) for s in bucket.scenes[:SHOWN]]
        prompts = [""] * SHOWN + captions
        cond = self.conditioner(tuple(Tensor(tokenizer(prompts)) for tokenizer in self.tokenizers), Tensor(index))
        denoiser = Guided(NetDenoiser(self._shown, self.schedule, self.task.prediction), SHOWN_GUIDANCE)
        top = min(self.task.t_max, self.task.schedule.steps - 1)
        sigmas = np.append(self.schedule.sigma(np.linspace(top, self.task.t_min, SHOWN_STEPS)), 0.0)
        noise = np.random.default_rng(self.seed).standard_normal(x0.shape, np.float32)
        start = Tensor((x0 if top < self.task.schedule.steps - 1 else 0) + noise * np.float32(sigmas[0]))
        drawn = euler(lambda x, sigma: denoiser(x, sigma, cond), start, sigmas)
        rows = [to_pictures(self.vae.decode(z).asnumpy()) for z in (Tensor(x0), drawn)]
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """unet.safetensors in fp16."""
        tensors = half(unprefixed(weights, "unet."))
        save_checkpoint(folder / "unet.safetensors", tensors, {"spec": asdict(self.task.unet), **card})
