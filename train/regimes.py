"""Ways to train a text-to-image model on pictures of all sizes, as lists of stages (PanGu-Draw, table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Optional

from mindpangu.errors import UserError
from mindpangu.spec import UNetSpec

UpscalingRule = Literal["drop", "enlarge"]


@dataclass(frozen=True)
class Stage:
    """Train `net` on t in [t_min, t_max) at `size`×`size` pixels, for `images` pictures.

    Pictures whose shorter side is at least `min_side` are used; those smaller than `size` are then enlarged.
    `start_from`: the net whose weights it begins with.
    """

    net: str
    size: int
    min_side: int
    images: int
    t_min: int = 0
    t_max: int = 1000
    start_from: Optional[str] = None

    @property
    def rule(self) -> UpscalingRule:
        """What happens to pictures smaller than the training size."""
        return "enlarge" if self.min_side < self.size else "drop"


@dataclass(frozen=True)
class Regime:
    """`stages`, and how a picture is drawn: (net, share of the sampler's steps, size), one after the other.

    `width`: how many times as wide each net is as the model's (twice the parameters: √2). `nets_upscale`: nets that
    take a smaller picture beside the noise, as a cascade's second and third do.
    """

    name: str
    stages: tuple[Stage, ...]
    drawing: tuple[tuple[str, float, int], ...]
    width: float = 1.0
    nets_upscale: tuple[str, ...] = ()

    @property
    def nets(self) -> tuple[str, ...]:
        """The nets that are trained, in order."""
        return tuple(dict.fromkeys(stage.net for stage in self.stages))


@dataclass(frozen=True)
class Histogram:
    """How many pictures have a shorter side of at least each key, in pixels: {0: all, 512: …, 1024: …}."""

    pictures: dict[int, int]
    source: str = field(default="")

    def __post_init__(self) -> None:
        sides, counts = list(self.pictures), list(self.pictures.values())
        if 0 not in self.pictures or sides != sorted(sides) or counts != sorted(counts, reverse=True) or counts[-1] < 0:
            raise ValueError(
                f"pictures {self.pictures}: rising sides from 0, and for each how many pictures are as large: falling"
            )

    def of_at_least(self, side: int) -> int:
        """How many pictures are at least so large.

        Raises:
            UserError: the histogram does not say.
        """
        if side not in self.pictures:
            raise UserError(
                f"the histogram {self.source} does not say how many pictures have {side} pixels; it knows "
                f"{', '.join(map(str, self.pictures))}"
            )
        return self.pictures[side]


def histogram_of(sides: Mapping[int, int], wanted: tuple[int, ...], source: str) -> Histogram:
    """A histogram from {shorter side: pictures of exactly that side}, at the sides that are asked for."""
    steps = sorted({0, *wanted})
    return Histogram({step: sum(n for side, n in sides.items() if side >= step) for step in steps}, source)


DOUBLE = 2**0.5  # twice the parameters

# The paper's three strategies at its resolutions. Their schedules are not published: every stage sees `images`
# pictures here, so that equal amounts of training are compared.


def cascaded(images: int) -> Regime:
    """Three nets: 256 on everything, then two that enlarge (GLIDE, DeepFloyd-IF)."""
    return Regime(
        "cascaded",
        (Stage("base", 256, 0, images), Stage("to_512", 512, 512, images), Stage("to_1024", 1024, 1024, images)),
        (("base", 1.0, 256), ("to_512", 1.0, 512), ("to_1024", 1.0, 1024)),
        nets_upscale=("to_512", "to_1024"),
    )


def resolution_boost(images: int) -> Regime:
    """One net of twice the parameters, at 512, then at 1024 (Stable Diffusion)."""
    return Regime(
        "resolution_boost",
        (Stage("net", 512, 512, images), Stage("net", 1024, 1024, images, start_from="net")),
        (("net", 1.0, 1024),),
        width=DOUBLE,
    )


def time_decoupled(images: int, t_struct: int = 500) -> Regime:
    """Two nets: structure at 1024 on everything, texture at 512 on what is large; texture is sampled at 1024."""
    return Regime(
        "time_decoupled",
        (
            Stage("structure", 1024, 0, images, t_min=t_struct, start_from="a common net"),
            Stage("texture", 512, 512, images, t_max=t_struct, start_from="a common net"),
        ),
        (("structure", 1 - t_struct / 1000, 1024), ("texture", t_struct / 1000, 1024)),
    )


REGIMES = {"cascaded": cascaded, "resolution_boost": resolution_boost, "time_decoupled": time_decoupled}


def widened(spec: UNetSpec, factor: float) -> UNetSpec:
    """The UNet with about `factor` times the channels: the nearest number that its heads and norm groups divide."""
    if factor == 1:
        return spec
    step = spec.norm_groups
    while any(step * mult % (spec.head_dim or spec.heads) for mult in spec.channel_mult[1:]):
        step += spec.norm_groups
    channels = max(step, round(spec.model_channels * factor / step) * step)
    return UNetSpec(**{**vars(spec), "model_channels": channels})
