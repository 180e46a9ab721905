"""What a user asks a pipeline for, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional, Union

import numpy as np

from mindpangu.diffusion.samplers import SAMPLERS
from mindpangu.diffusion.schedule import SIGMA_LISTS
from mindpangu.errors import UserError, nearest
from mindpangu.images import parse_size
from mindpangu.infer.control import Control
from mindpangu.infer.init_image import Source
from mindpangu.spec import PipelineSpec

if TYPE_CHECKING:
    from mindpangu.infer.pipeline import PanGuDraw

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """Prompts and how to draw them.

    size: "WxH"; guidance: s of classifier-free guidance; styles: weight of each style row; n: pictures a prompt;
    seed: one for all pictures, or one for each, which is then what that seed alone draws of its prompt; indices: with
    one seed for each, which of that seed's pictures it is, by default its first;
    sampler, sigmas: keys of SAMPLERS and SIGMA_LISTS; cache_interval: every so many steps the nets compute their deep
    features, and reuse them between; source: a picture to start from; strength: how much of the walk from noise it goes
    through, 1 for all; lag: switch the nets one step late, as the released code does; controls: ControlNets that steer;
    latents: unit Gaussian (pictures, C, h, w) to start from instead of the seed's;
    rescale: φ of guidance rescale; refiner: another model of the same latents that draws at t < refine_below;
    batch: pictures drawn together, the fewer the less memory; vae_tile: side in pixels of the tiles in which pictures
    are decoded, None for whole pictures.
    """

    prompts: tuple[str, ...]
    size: str
    guidance: float
    steps: int = 30
    styles: Mapping[str, float] = field(default_factory=dict)
    negative: str = ""
    seed: Union[int, tuple[int, ...]] = 0
    n: int = 1
    indices: tuple[int, ...] = ()
    sampler: str = "euler"
    sigmas: str = "uniform"
    cache_interval: int = 1
    source: Optional[Source] = None
    strength: float = 0.6
    lag: bool = False
    controls: tuple[Control, ...] = ()
    latents: Optional[np.ndarray] = None
    rescale: float = 0.0
    refiner: Optional[PanGuDraw] = None
    refine_below: int = 200
    batch: int = 8
    vae_tile: Optional[int] = None

    @property
    def width(self) -> int:
        """Pixels across."""
        return parse_size(self.size)[0]

    @property
    def first_step(self) -> int:
        """The step at which a walk from a source starts."""
        return 0 if self.source is None else self.steps - max(1, round(self.steps * self.strength))

    @property
    def pictures(self) -> int:
        """How many are asked for."""
        return len(self.prompts) * self.n

    def start_of(self, number: int) -> tuple[int, str, int]:
        """Of picture `number`: seed, prompt, and its index among those of one prompt and one seed."""
        prompt, index = divmod(number, self.n)
        if isinstance(self.seed, int):
            return self.seed, self.prompts[prompt], index
        return self.seed[number], self.prompts[prompt], self.indices[number] if self.indices else 0

    @property
    def height(self) -> int:
        """Pixels down."""
        return parse_size(self.size)[1]


def check_size(size: str, spec: PipelineSpec) -> None:
    """Raises: UserError where "WxH" is no size, or none that the model can draw."""
    try:
        possible = spec.can_draw(size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not possible:
        raise UserError(f"size {size} cannot be drawn by {spec.name}; it draws {spec.sizes_in_words}")


def check(request: Request, spec: PipelineSpec) -> None:
    """Refuse what the model cannot do.

    Raises:
        UserError: one line: what was found, what is allowed.
    """
    if not request.prompts:
        raise UserError('no prompt was given; for example: mindpangu generate "a red apple"')
    for number, prompt in enumerate(request.prompts, start=1):
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; say what to draw")
    check_size(request.size, spec)
    for name, count in (
        ("steps", request.steps),
        ("n", request.n),
        ("cache_interval", request.cache_interval),
        ("batch", request.batch),
        ("vae_tile", 1 if request.vae_tile is None else request.vae_tile),
    ):
        if count < 1:
            raise UserError(f"{name} is {count}; at least 1 is needed")
    if request.steps > spec.schedule.steps:
        raise UserError(f"steps is {request.steps}; the noise schedule has {spec.schedule.steps}")
    for seed in (request.seed,) if isinstance(request.seed, int) else request.seed:
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed is {seed}; 0 to {MAX_SEED} is allowed")
    if not isinstance(request.seed, int) and len(request.seed) != request.pictures:
        raise UserError(f"{len(request.seed)} seeds for {request.pictures} pictures; give one, or one for each picture")
    if request.indices and (isinstance(request.seed, int) or len(request.indices) != len(request.seed)):
        raise UserError("indices: one for each of the pictures' seeds is needed")
    if not math.isfinite(request.guidance):
        raise UserError(
            f"guidance is {request.guidance}; a finite number is needed, for example {spec.default_guidance}"
        )
    if not 0 <= request.rescale <= 1:
        raise UserError(f"rescale is {request.rescale}; 0 to 1 is allowed")
    if not 0 < request.strength <= 1:
        raise UserError(f"strength is {request.strength}; above 0 and at most 1 is allowed")
    if request.source is not None and request.source.picture.shape[:2] != (request.height, request.width):
        height, width = request.source.picture.shape[:2]
        raise UserError(f"the source is {width}x{height} and size is {request.size}; they must be equal")
    for control in request.controls:
        height, width = control.picture.shape[-3:-1]
        if (height, width) != (request.height, request.width):
            raise UserError(f"a control picture is {width}x{height} and size is {request.size}; they must be equal")
    if request.controls and request.cache_interval > 1:
        raise UserError(f"cache_interval {request.cache_interval} does not go with ControlNets; use 1")
    for style, weight in request.styles.items():
        if style not in spec.styles:
            raise UserError(
                f"style '{style}' is unknown to {spec.name}; it knows {', '.join(spec.styles)}"
                f"{nearest(style, spec.styles)}"
            )
        if not math.isfinite(weight):
            raise UserError(f"style {style}={weight}: a finite weight is needed, for example {style}=2")
    for what, value, allowed in (
        ("sampler", request.sampler, list(SAMPLERS)),
        ("sigmas", request.sigmas, list(SIGMA_LISTS)),
    ):
        if value not in allowed:
            raise UserError(f"{what} '{value}' is unknown; allowed: {', '.join(allowed)}{nearest(value, allowed)}")
