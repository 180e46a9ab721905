"""What a user asks a pipeline for, checked before anything is computed."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Optional, Protocol, Union

import numpy as np

from mindpangu.config import is_text
from mindpangu.diffusion.denoiser import Denoiser
from mindpangu.diffusion.samplers import SAMPLERS
from mindpangu.diffusion.schedule import SIGMA_LISTS
from mindpangu.errors import UserError, nearest
from mindpangu.images import parse_size
from mindpangu.infer.control import Control
from mindpangu.infer.init_image import InitImage
from mindpangu.spec import ModelSpec, PipelineSpec

MAX_SEED = 2**64 - 1
RANDOM_SEED = -1
WHOLE = ("steps", "seed", "n", "batch", "cache_interval", "vae_tile", "refine_below")
REAL = ("guidance", "rescale", "guidance_start", "guidance_end", "strength")


@dataclass(frozen=True)
class SamplingOptions:
    """How a picture is drawn, as plain data: said once for requests, rows of a prompt file, metadata and kept graphs.

    size: "WxH", guidance: the scale s of classifier-free guidance, styles: weight of each style row; each None for the
    model's own default. sampler, sigmas: keys of SAMPLERS and SIGMA_LISTS. cache_interval: every so many steps the nets
    compute their deep features, and reuse them between. lag: switch the experts one step late, as the released code
    does. rescale: φ of guidance rescale. guidance_start, guidance_end: the part of the sampling, 0 to 1, in which
    guidance is used (arXiv 2404.07724); elsewhere the conditional prediction stands alone. strength: the share of the
    steps that is sampled from an init image.
    """

    size: Optional[str] = None
    steps: int = 30
    guidance: Optional[float] = None
    styles: Optional[dict[str, float]] = None
    negative: str = ""
    sampler: str = "euler"
    sigmas: str = "uniform"
    cache_interval: int = 1
    lag: bool = False
    rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    strength: float = 0.6

    @property
    def options(self) -> dict[str, Any]:
        """The options alone, by name."""
        return {name: getattr(self, name) for name in OPTION_NAMES}


class Refiner(Protocol):
    """A second model, `PanGuDraw` itself, as far as a request is concerned."""

    digest: str
    model: ModelSpec
    spec: PipelineSpec

    def guided(self, request: Request, prompts: Sequence[str]) -> Denoiser:
        """Its denoiser for prompts."""


OPTION_NAMES = tuple(one.name for one in fields(SamplingOptions))


@dataclass(frozen=True)
class Request(SamplingOptions):
    """Prompts and how to draw them; made by `request_for`, which puts the model's defaults in.

    n: pictures a prompt; seed: of each prompt's first picture, the others having seed + 1, seed + 2, …, or one for each
    picture; init_image: a picture to start from; controls: ControlNets that steer; latents: unit Gaussian (pictures, C,
    h, w) to start from instead of the seed's; refiner: another model of the same latents that draws at t <
    refine_below; batch: pictures drawn together, the fewer the less memory; vae_tile: side in pixels of the tiles in
    which pictures are decoded, None for whole pictures.
    """

    size: str = ""
    guidance: float = 1.0
    styles: dict[str, float] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    seed: Union[int, tuple[int, ...]] = 0
    n: int = 1
    init_image: Optional[InitImage] = None
    controls: tuple[Control, ...] = ()
    latents: Optional[np.ndarray] = None
    refiner: Optional[Refiner] = None
    refine_below: int = 200
    batch: int = 8
    vae_tile: Optional[int] = None

    @property
    def graph_key(self) -> tuple[Any, ...]:
        """What the graphs depend on that are compiled for it, the nets aside; for `runtime.kept_graphs`."""
        options = {**self.options, "styles": sorted(self.styles), "negative": None}
        if self.init_image is None:
            options["strength"] = None
        controls = [(one.net.spec, one.start, one.end) for one in self.controls]
        refiner = self.refiner and (self.refiner.digest, self.refine_below)
        return (options, self.pictures, self.batch, self.vae_tile, controls, refiner)

    @property
    def width(self) -> int:
        """Pixels across."""
        return parse_size(self.size)[0]

    @property
    def first_step(self) -> int:
        """The step at which sampling from an init image starts."""
        return 0 if self.init_image is None else self.steps - max(1, round(self.steps * self.strength))

    @property
    def pictures(self) -> int:
        """How many are asked for."""
        return len(self.prompts) * self.n

    def prompt_of(self, number: int) -> str:
        """The prompt of picture `number`."""
        return self.prompts[number // self.n]

    def seed_of(self, number: int) -> int:
        """The seed of picture `number`."""
        return self.seed + number % self.n if isinstance(self.seed, int) else self.seed[number]

    @property
    def height(self) -> int:
        """Pixels down."""
        return parse_size(self.size)[1]


def request_for(spec: PipelineSpec, **asked: Any) -> Request:
    """A request by the names of its fields; what is None or left out is the model's own, or the field's, default.

    NumPy's numbers count as numbers, 3.0 as 3 where a whole one is needed, and a seed of RANDOM_SEED as a new one.

    Raises:
        UserError: something is no number, or not a whole one.
    """
    asked = {name: _plain(name, value) for name, value in asked.items()}
    if asked.get("seed") == RANDOM_SEED:
        asked["seed"] = secrets.randbelow(2**32)
    defaults = {
        "size": spec.default_size,
        "guidance": spec.default_guidance,
        "styles": dict(spec.default_styles),
    }
    return Request(**{**defaults, **{name: value for name, value in asked.items() if value is not None}})


def _plain(name: str, value: Any) -> Any:
    """An option as plain Python numbers. Raises: UserError."""
    if name == "seed" and isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_plain(name, one) for one in value)
    number = value.item() if isinstance(value, np.generic) else value
    if name in WHOLE and number is not None:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number // 1:
            raise UserError(f"{name} is {value!r}; a whole number is needed")
        return int(number)
    if name in REAL and number is not None:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UserError(f"{name} is {value!r}; a number is needed")
        return float(number)
    if name == "styles" and isinstance(number, dict):
        return {
            str(style): weight.item() if isinstance(weight, np.generic) else weight for style, weight in number.items()
        }
    return number


def check_size(size: str, spec: PipelineSpec) -> None:
    """Raises: UserError where "WxH" is no size, or none that the model can draw."""
    try:
        possible = spec.can_draw(size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not possible:
        raise UserError(f"size {size} cannot be drawn by {spec.name}; it draws {spec.sizes_in_words}")


def check_text(what: str, text: str) -> None:
    """Raises: UserError where text is none, or came in another encoding than the terminal's."""
    if not isinstance(text, str) or not is_text(text):
        raise UserError(f"{what} cannot be read: half a character is in it; was it typed in another encoding?")


def check(request: Request, spec: PipelineSpec) -> None:
    """Refuse what the model cannot do.

    Raises:
        UserError: one line: what was found, what is allowed.
    """
    if not request.prompts:
        raise UserError('no prompt was given; for example: mindpangu generate "a red apple"')
    for number, prompt in enumerate(request.prompts, start=1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"prompt {number} is empty; say what to draw")
        check_text(f"prompt {number}", prompt)
    check_text("the negative prompt", request.negative)
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
    if not math.isfinite(request.guidance):
        raise UserError(
            f"guidance is {request.guidance}; a finite number is needed, for example {spec.default_guidance}"
        )
    if not 0 <= request.rescale <= 1:
        raise UserError(f"rescale is {request.rescale}; 0 to 1 is allowed")
    if not 0 <= request.guidance_start < request.guidance_end <= 1:
        raise UserError(
            f"guidance_start {request.guidance_start}, guidance_end {request.guidance_end}: "
            "0 ≤ start < end ≤ 1 is needed"
        )
    if not 0 < request.strength <= 1:
        raise UserError(f"strength is {request.strength}; above 0 and at most 1 is allowed")
    if request.init_image is not None and request.init_image.picture.shape[:2] != (request.height, request.width):
        height, width = request.init_image.picture.shape[:2]
        raise UserError(f"the init image is {width}x{height} and size is {request.size}; they must be equal")
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
