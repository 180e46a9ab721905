"""A ControlNet's task: it learns to steer a generator, which stays as it is, along line drawings (arXiv 2302.05543)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import Tensor
from PIL import Image

from mindpangu.checkpoint.store import half, load_into, load_tensors, prefixed, save_checkpoint, unprefixed
from mindpangu.data.lines import LineDrawings, as_lines, edges
from mindpangu.diffusion import NetDenoiser
from mindpangu.diffusion.denoiser import Prediction
from mindpangu.errors import UserError
from mindpangu.images import read_picture
from mindpangu.models.controlnet import ControlNet
from mindpangu.models.loading import read_spec
from mindpangu.models.unet import UNet
from mindpangu.spec import ControlNetSpec, UNetSpec
from mindpangu.train.diffusion import SHOWN, DiffusionLoss, TrainDiffusion, frozen
from mindpangu.train.latents import Bucket


class ControlLoss(DiffusionLoss):
    """construct(latents, noise, alpha, sigma (N, 1, 1, 1), t (N,), hint (N, 3, H, W) in [0, 1]) -> scalar."""

    def __init__(self, controlnet: ControlNet, unet: UNet, prediction: Prediction) -> None:
        super().__init__(unet, None, prediction)
        self.controlnet = controlnet

    def predict(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """The steered UNet's output."""
        return self.unet(x, t, None, None, self.controlnet(x, t, cond[0]))


class TrainControl(TrainDiffusion):
    """The `loop.Task` for a ControlNet."""

    def build(self) -> None:
        """A ControlNet that starts as a copy of the frozen net's way down.

        Raises:
            UserError: the net in the checkpoint is not the one that the file describes.
        """
        control = self.task.control
        assert control is not None
        if read_spec(control.base, UNetSpec) != self.task.unet:
            raise UserError(f"{control.base}: the UNet there is not shaped as diffusion.unet says")
        spec = ControlNetSpec(self.task.unet, hint_widths=control.hint_widths)
        if spec.factor != self.vae.spec.factor:
            raise UserError(
                f"{len(control.hint_widths)} hint_widths take pictures to 1/{spec.factor}, the autoencoder to "
                f"1/{self.vae.spec.factor}; they must be equal"
            )
        self.edge_share, self.lines = control.edge_share, LineDrawings(self.examples)
        base, unet, net = load_tensors(control.base), UNet(self.task.unet), ControlNet(spec)
        load_into(unet.trainable_params(), base, str(control.base))
        for parameter in net.trainable_params():
            if parameter.name in base:
                parameter.set_data(Tensor(base[parameter.name].astype(np.float32)))
        self.loss_net = ControlLoss(net, frozen(unet), self.task.prediction)
        self.spec, self._shown_net = spec, ControlNet(spec)

    def start_from(self, path: Path) -> None:
        """Take the first weights from a controlnet.safetensors."""
        load_into(self.loss_net.controlnet.trainable_params(), prefixed(load_tensors(path), "controlnet."), str(path))

    def hint(self, scene: int) -> np.ndarray:
        """(H, W, 3) uint8: what the net sees of a scene."""
        drawn = self.examples.scene(scene)
        if self.examples.rng(scene, "hint").random() < self.edge_share:
            return as_lines(edges(self.examples.image(drawn)))
        return self.lines(drawn)

    def cond(self, bucket: Bucket, scenes: np.ndarray, nimg: int) -> tuple[np.ndarray, ...]:
        """The scenes' hints."""
        hints = np.stack([self.hint(int(scene)) for scene in scenes]).astype(np.float32) / 255
        return (np.ascontiguousarray(hints.transpose(0, 3, 1, 2)),)

    def by_noise_level(self, weights: Mapping[str, np.ndarray]) -> dict[str, list[Optional[float]]]:
        """Not measured."""
        return {}

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Scenes, what the steered net draws along their hints, and the hints."""
        load_into(self._shown_net.trainable_params(), unprefixed(weights, "controlnet."), "the average")
        scenes = self.buckets[0].scenes[:SHOWN]
        hints = Tensor(self.cond(self.buckets[0], scenes, 0)[0])

        def net(x: Tensor, t: Tensor) -> Tensor:
            return self.loss_net.unet(x, t, None, None, self._shown_net(x, t, hints))

        self.show(NetDenoiser(net, self.schedule, self.task.prediction), self.shown()[0], path)
        strip = np.concatenate([self.hint(int(scene)) for scene in scenes], axis=1)
        shown = np.asarray(read_picture(path).convert("RGB"))
        Image.fromarray(np.concatenate([shown, strip])).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """controlnet.safetensors in fp16."""
        tensors = half(unprefixed(weights, "controlnet."))
        save_checkpoint(folder / "controlnet.safetensors", tensors, {"spec": asdict(self.spec), **card})
