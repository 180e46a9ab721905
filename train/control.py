"""A ControlNet's task: it learns to steer a generator, which stays as it is, along line drawings (arXiv 2302.05543)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import Tensor
from PIL import Image

from mindpangu.checkpoint.store import half, load_into, load_tensors, prefixed, save_checkpoint, unprefixed
from mindpangu.data.lines import LineDrawings, as_lines, by_hand, edges
from mindpangu.diffusion import Guided, NetDenoiser
from mindpangu.diffusion.denoiser import Prediction, repeat_rows
from mindpangu.errors import UserError
from mindpangu.images import read_picture
from mindpangu.models.conditioner import Conditioner
from mindpangu.models.controlnet import ControlNet
from mindpangu.models.loading import read_spec
from mindpangu.models.unet import UNet
from mindpangu.spec import ControlNetSpec, UNetSpec
from mindpangu.train.diffusion import SHOWN, SHOWN_GUIDANCE, DiffusionLoss, TrainDiffusion, frozen
from mindpangu.train.latents import Bucket

BY_HAND = 0.5  # share of edges that are drawn thick


class ControlLoss(DiffusionLoss):
    """construct(latents, noise, alpha, sigma (N, 1, 1, 1), t (N,), hint (N, 3, H, W) in [0, 1], *cond) -> scalar.

    `cond` as in `DiffusionLoss`, where the UNet knows words.
    """

    def __init__(
        self, controlnet: ControlNet, unet: UNet, conditioner: Optional[Conditioner], prediction: Prediction
    ) -> None:
        super().__init__(unet, conditioner, prediction)
        self.controlnet = controlnet

    def predict(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """The steered UNet's output."""
        hint, context, vector = cond[0], None, None
        if self.worded:
            context, vector = self.words(cond[1:])
        return self.unet(x, t, context, vector, self.controlnet(x, t, hint, context, vector))


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
        self.edge_share = control.edge_share
        self.lines = LineDrawings(self.examples) if self.edge_share < 1 else None
        base, unet, net = load_tensors(control.base), UNet(self.task.unet), ControlNet(spec)
        load_into(unet.trainable_params(), base, str(control.base))
        for parameter in net.trainable_params():
            if parameter.name in base:
                parameter.set_data(Tensor(base[parameter.name].astype(np.float32)))
        self.loss_net = ControlLoss(net, frozen(unet), self.conditioner, self.task.prediction)
        self.spec, self._shown_net = spec, ControlNet(spec)

    def start_from(self, path: Path) -> None:
        """Take the first weights from a controlnet.safetensors."""
        load_into(self.loss_net.controlnet.trainable_params(), prefixed(load_tensors(path), "controlnet."), str(path))

    def hint(self, scene: int) -> np.ndarray:
        """(H, W, 3) uint8: what the net sees of a scene."""
        drawn, rng = self.examples.scene(scene), self.examples.rng(scene, "hint")
        if self.lines is not None and rng.random() >= self.edge_share:
            return self.lines(drawn)
        found = edges(self.examples.image(drawn))
        return as_lines(by_hand(found) if rng.random() < BY_HAND else found)

    def cond(self, bucket: Bucket, scenes: np.ndarray, nimg: int) -> tuple[np.ndarray, ...]:
        """The scenes' hints, and their captions where there are words."""
        hints = np.stack([self.hint(int(scene)) for scene in scenes]).astype(np.float32) / 255
        return np.ascontiguousarray(hints.transpose(0, 3, 1, 2)), *super().cond(bucket, scenes, nimg)

    def by_noise_level(self, weights: Mapping[str, np.ndarray]) -> dict[str, list[Optional[float]]]:
        """Not measured."""
        return {}

    def work(self, batch: Sequence[np.ndarray]) -> tuple[int, float]:
        """Not counted."""
        return 0, 0.0

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Scenes, what the steered net draws along their hints, and the hints."""
        load_into(self._shown_net.trainable_params(), unprefixed(weights, "controlnet."), "the average")
        scenes, (x0, cond) = self.buckets[0].scenes[:SHOWN], self.shown()
        hints = Tensor(self.cond(self.buckets[0], scenes, 0)[0])

        def net(x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
            seen = repeat_rows(hints, x.shape[0] // SHOWN)
            context, vector = (*given, None, None)[:2]
            return self.loss_net.unet(x, t, context, vector, self._shown_net(x, t, seen, context, vector))

        denoiser = NetDenoiser(net, self.schedule, self.task.prediction)
        self.show(Guided(denoiser, cond, SHOWN_GUIDANCE) if cond else denoiser, x0, path)
        strip = np.concatenate([self.hint(int(scene)) for scene in scenes], axis=1)
        shown = np.asarray(read_picture(path).convert("RGB"))
        Image.fromarray(np.concatenate([shown, strip])).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """controlnet.safetensors in fp16."""
        tensors = half(unprefixed(weights, "controlnet."))
        save_checkpoint(folder / "controlnet.safetensors", tensors, {"spec": asdict(self.spec), **card})
