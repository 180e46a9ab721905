"""ControlNets at work: what each looks at, how hard and when it steers, and the denoiser that they steer together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image

from mindpangu import zoo
from mindpangu.diffusion import NetDenoiser, NoiseSchedule
from mindpangu.diffusion.denoiser import Prediction, repeat_rows
from mindpangu.errors import UserError
from mindpangu.infer.init_image import InitImage, read_lines

if TYPE_CHECKING:
    from mindpangu.models.controlnet import ControlNet


Picture = Union[Path, Image.Image]


@dataclass(frozen=True)
class Control:
    """A ControlNet and what it looks at: (H, W, 3) uint8, or (K, H, W, 3), one for each of K pictures to be drawn.

    `strength` scales what it adds; it steers from `start` to `end` of the sampling, 0 being noise and 1 the picture.
    `lines`: what it looks at are line drawings, dark on light or light on dark, shown to the net as the latter.
    """

    net: ControlNet
    picture: np.ndarray
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    lines: bool = False

    def __post_init__(self) -> None:
        """Raises: UserError where an option is out of its range."""
        if not 0 <= self.start < self.end <= 1 or not np.isfinite(self.strength):
            raise UserError(
                f"control: strength {self.strength}, start {self.start}, end {self.end}: a finite strength and "
                "0 <= start < end <= 1 are needed"
            )

    @classmethod
    def open(cls, net: ControlNet, pictures: Sequence[Picture], size: tuple[int, int], **options: Any) -> Control:
        """What `net` looks at, fitted to (width, height): one picture, or one for each that is to be drawn.

        Raises:
            UserError: a file is absent or no picture, or an option is out of its range.
        """
        fit = read_lines if options.get("lines") else _cover
        seen = np.stack([fit(one, size) for one in pictures])
        return cls(net, seen[0] if len(seen) == 1 else seen, **options)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells controls apart, as plain data for a picture's metadata."""
        digest = hashlib.sha256(self.picture.tobytes()).hexdigest()[:16]
        return {"picture": digest, "strength": self.strength, "start": self.start, "end": self.end}

    def of(self, numbers: range) -> Control:
        """What steers these pictures of a request."""
        return self if self.picture.ndim == 3 else replace(self, picture=self.picture[numbers.start : numbers.stop])


def control_net(folder: Path) -> ControlNet:
    """The ControlNet of a folder that `convert --controlnet` wrote, or of a zoo name. Raises: UserError."""
    from mindpangu.models.loading import load_controlnet

    return load_controlnet(zoo.locate(folder) / "controlnet.safetensors")


def _cover(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    return InitImage.open(picture, None, size).picture


class ControlledDenoiser:
    """A UNet's denoiser steered by any number of ControlNets; what they add is summed."""

    def __init__(self, unet: Any, controls: Sequence[Control], schedule: NoiseSchedule, prediction: Prediction) -> None:
        self.unet, self.schedule, self.prediction = unet, schedule, prediction
        self.controls = [(one, _hint(one.picture)) for one in controls]

    def __call__(self, x: Any, sigma: np.ndarray, cond: Sequence[Any] = ()) -> Any:
        passed = 1 - float(self.schedule.t(sigma[:1])[0]) / (self.schedule.spec.steps - 1)
        active = [(one, hint) for one, hint in self.controls if one.start <= passed <= one.end]
        net = partial(self._steered, active) if active else self.unet
        return NetDenoiser(net, self.schedule, self.prediction)(x, sigma, cond)

    def _steered(self, active: Sequence[tuple[Control, Any]], x: Any, t: Any, *cond: Any) -> Any:
        from mindspore import mutable

        total: list[Any] = []
        for one, hint in active:
            seen = hint if hint.shape[0] == 1 else repeat_rows(hint, x.shape[0] // hint.shape[0])
            given = [one.strength * y for y in one.net(x, t, seen, *cond)]
            total = [a + b for a, b in zip(total, given)] if total else given
        context, vector = (*cond, None, None)[:2]
        # A plain tuple would be a constant of the graph, which would be compiled anew at every step.
        return self.unet(x, t, context, vector, mutable(tuple(total)))


def _hint(picture: np.ndarray) -> Any:
    """(H, W, 3) or (K, H, W, 3) uint8 -> (1 or K, 3, H, W) in [0, 1]."""
    from mindspore import Tensor

    pictures = picture.reshape(-1, *picture.shape[-3:]).astype(np.float32)
    return Tensor(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2) / 255))
