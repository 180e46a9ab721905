"""ControlNets at work: what each looks at, how hard and when it steers, and the denoiser that they steer together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindpangu.diffusion import NetDenoiser, NoiseSchedule
from mindpangu.diffusion.denoiser import Prediction
from mindpangu.errors import UserError
from mindpangu.infer.source import Source

if TYPE_CHECKING:
    from mindpangu.models.controlnet import ControlNet
    from mindpangu.models.spec import UNetSpec


@dataclass(frozen=True)
class Control:
    """A ControlNet and the picture (H, W, 3) uint8 that it looks at.

    `strength` scales what it adds; it steers from `start` to `end` of the walk, 0 being pure noise and 1 the picture.
    """

    net: ControlNet
    picture: np.ndarray
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def open(
        cls,
        folder: Path,
        picture: Path,
        size: tuple[int, int],
        strength: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> Control:
        """The ControlNet of a folder that `convert --controlnet` wrote, and a picture fitted to (width, height).

        Raises:
            UserError: a file is absent or not what it should be, or an option is out of its range.
        """
        from mindpangu.models.loading import load_controlnet

        if not 0 <= start < end <= 1 or not np.isfinite(strength):
            raise UserError(
                f"control {folder}: strength {strength}, start {start}, end {end}: a finite strength and "
                "0 <= start < end <= 1 are needed"
            )
        net = load_controlnet(folder / "controlnet.safetensors")
        return cls(net, Source.open(picture, None, size).picture, strength, start, end)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells controls apart, as plain data for a picture's metadata."""
        digest = hashlib.sha256(self.picture.tobytes()).hexdigest()[:16]
        return {"picture": digest, "strength": self.strength, "start": self.start, "end": self.end}

    def fits(self, spec: UNetSpec, factor: int) -> bool:
        """Whether the net was made for UNets of this shape and an autoencoder of this factor."""
        return replace(self.net.spec, out_channels=spec.out_channels) == spec and self.net.factor == factor


class ControlledDenoiser:
    """A UNet's denoiser steered by any number of ControlNets; what they add is summed."""

    def __init__(self, unet: Any, controls: Sequence[Control], schedule: NoiseSchedule, prediction: Prediction) -> None:
        self.unet, self.schedule, self.prediction = unet, schedule, prediction
        self.controls = [(one, _hint(one.picture)) for one in controls]

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any]) -> Any:
        passed = 1 - float(self.schedule.t(sigma[:1])[0]) / (self.schedule.spec.steps - 1)
        active = [(one, hint) for one, hint in self.controls if one.start <= passed <= one.end]
        net = partial(self._steered, active) if active else self.unet
        return NetDenoiser(net, self.schedule, self.prediction)(x, sigma, cond)

    def _steered(self, active: Sequence[tuple[Control, Any]], x: Any, t: Any, *cond: Any) -> Any:
        total: list[Any] = []
        for one, hint in active:
            given = [one.strength * y for y in one.net(x, t, hint, *cond)]
            total = [a + b for a, b in zip(total, given)] if total else given
        context, vector = (*cond, None, None)[:2]
        return self.unet(x, t, context, vector, tuple(total))


def _hint(picture: np.ndarray) -> Any:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    from mindspore import Tensor

    return Tensor(np.ascontiguousarray(picture.astype(np.float32).transpose(2, 0, 1)[None] / 255))
