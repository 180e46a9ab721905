"""Coop-Diffusion at work: models of different autoencoders, sizes and controls draw one picture together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import numpy as np

from mindpangu import zoo
from mindpangu.checkpoint.store import read_card
from mindpangu.config import dump
from mindpangu.diffusion import SAMPLERS
from mindpangu.diffusion.coop import Bridge, Coop, MemberState, sample
from mindpangu.diffusion.denoiser import Denoiser
from mindpangu.diffusion.schedule import SIGMA_LISTS, NoiseSchedule
from mindpangu.diffusion.windows import Windowed
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.infer.control import Control, Picture, control_net
from mindpangu.infer.drawing import Drawing, OnStep, Progress, Report, drawings, noise_of
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.request import Request, check, request_for

if TYPE_CHECKING:
    from mindpangu.models.controlnet import ControlNet
    from mindpangu.models.vae import AutoencoderKL

LARGEST_WHOLE = 1024  # pixels a side that a bridge decodes and encodes in one piece


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet's folder, or name in the zoo, and how it steers a member; see `Control`."""

    net: Path
    lines: bool = False
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start {self.start}, end {self.end}: 0 <= start < end <= 1 is needed")


@dataclass(frozen=True)
class MemberConfig:
    """A model that takes part: zoo name or folder, and what it is asked for; None: its own default.

    `prompt`: what it is asked, {} standing for the user's prompt. `window`: a size that it knows; `size` may be any
    larger one then, denoised window by window.
    """

    model: str
    size: Optional[str] = None
    guidance: Optional[float] = None
    styles: dict[str, float] = field(default_factory=dict)
    negative: str = ""
    prompt: str = "{}"
    window: Optional[str] = None
    controls: tuple[ControlConfig, ...] = ()


@dataclass(frozen=True)
class InfluenceConfig:
    """How much of a member's picture is another's: `share` (the paper's d) at t ≥ `above` of the output's schedule.

    With `fade` it falls from `share` at the noisiest t to 0 at `above`, evenly in t; at t ≥ `below` there is none.
    `effect`: not the other's picture but what its controls change in it is added, `share` times, which may be above 1.
    `bridge`: a folder with a learned bridge from the other's latents to the member's, or its name in the zoo; None: by
    way of the picture.
    """

    share: float
    above: float = 0.0
    below: Optional[float] = None
    fade: bool = False
    effect: bool = False
    bridge: Optional[Path] = None

    def __post_init__(self) -> None:
        if self.share < 0 or (self.share > 1 and not self.effect):
            raise ValueError(f"share is {self.share}; 0 to 1 is allowed, and above 1 with effect: true")
        if self.below is not None and self.below <= self.above:
            raise ValueError(f"above {self.above}, below {self.below}: above < below is needed")

    def at(self, t: float, last: float) -> float:
        """The share at t, of a schedule whose noisiest is `last`."""
        if t < self.above or (self.below is not None and t >= self.below):
            return 0.0
        return self.share * (t - self.above) / (last - self.above) if self.fade else self.share


WeightTable = dict[str, dict[str, InfluenceConfig]]  # {member: {other member: its influence}}


@dataclass(frozen=True)
class CoopConfig:
    """Who draws together (configs/infer/). `weights`: {member: {other member: its influence}}; the rest is its own.

    `bridge_every`: a bridge is crossed every so many steps, and its last result serves between. `match`: the members'
    noise schedules meet at equal σ, or, as printed in the paper, at equal t. `one_noise`: all begin with the same
    noise, as printed; their latents must have one shape.
    """

    members: dict[str, MemberConfig]
    output: str
    weights: WeightTable
    bridge_every: int = 1
    match: Literal["sigma", "t"] = "sigma"
    one_noise: bool = False

    def __post_init__(self) -> None:
        named = [self.output, *self.weights, *(other for row in self.weights.values() for other in row)]
        for name in named:
            if name not in self.members:
                raise ValueError(f"member '{name}' is unknown; there are {', '.join(self.members)}")
        for name, row in self.weights.items():
            if name in row:
                raise ValueError(f"weights.{name}: {name} is itself what the others leave")
            for other, one in row.items():
                if one.effect and not self.members[other].controls:
                    raise ValueError(f"weights.{name}.{other}: effect is that of controls, and {other} has none")
            if sum(one.share for one in row.values() if not one.effect) > 1:
                raise ValueError(f"weights.{name}: the shares of {', '.join(row)} add up to more than 1")
        if self.bridge_every < 1:
            raise ValueError(f"bridge_every is {self.bridge_every}; at least 1 is needed")

    @property
    def uncontrolled(self) -> tuple[str, ...]:
        """The members that are also asked without their controls: those whose controls' effect is wanted."""
        rows = self.weights.values()
        return tuple(name for name in self.members if any(name in row and row[name].effect for row in rows))

    def table(self, schedule: NoiseSchedule, sigma: float) -> np.ndarray:
        """The weights at σ of the members, then of the `uncontrolled` ones; (all, all), rows add up to 1."""
        t, last = float(schedule.t(np.array([sigma]))[0]), float(schedule.spec.steps - 1)
        names, beside = list(self.members), [*self.members, *self.uncontrolled]
        table = np.eye(len(beside))
        for name, row in self.weights.items():
            own = table[names.index(name)]
            for other, influence in row.items():
                share = influence.at(t, last)
                own[names.index(other)] += share
                less = len(names) + self.uncontrolled.index(other) if influence.effect else names.index(name)
                own[less] -= share
        return table


class ImageBridge:
    """A clean latent of one model -> of another: decode, resize the picture, encode (algorithm 1, step 2).

    Sizes are (width, height) in pixels. Pictures larger than `tile` pixels a side are decoded and encoded in tiles.
    """

    def __init__(
        self,
        source: AutoencoderKL,
        target: AutoencoderKL,
        before: tuple[int, int],
        after: tuple[int, int],
        tile: int = LARGEST_WHOLE,
    ) -> None:
        from mindpangu.models.bridge import Resize
        from mindpangu.models.tiled import TiledDecoder, TiledEncoder

        self.decode = source.decode if max(before) <= tile else TiledDecoder(source, tile)
        self.resize = Resize(before, after)
        self.encode = target.encode if max(after) <= tile else TiledEncoder(target, tile)

    def __call__(self, x0: Any) -> Any:
        return self.encode(self.resize(self.decode(x0)))


class Reused:
    """A bridge that is crossed at every so many calls, and gives its last result between."""

    def __init__(self, bridge: Bridge, every: int) -> None:
        self.bridge, self.every, self.calls = bridge, every, 0
        self.last: Any = None

    def __call__(self, x0: Any) -> Any:
        if self.calls % self.every == 0:
            self.last = self.bridge(x0)
        self.calls += 1
        return self.last


class CoopDraw:
    """Models that draw together.

    >>> pictures = CoopDraw(load("configs/infer/coop_low_high.yaml", CoopConfig))("一只狐狸, 3D风格", seed=1)
    """

    def __init__(self, config: CoopConfig, device: str = "auto", models: Optional[dict[str, PanGuDraw]] = None) -> None:
        """Load the members; each model once.

        `models`: those that are loaded already, by name; more are added.

        Raises:
            UserError: a model is absent or unfit, or the members cannot draw together.
        """
        self.config, self.names = config, tuple(config.members)
        models = {} if models is None else models
        for member in config.members.values():
            if member.model not in models:
                models[member.model] = _latent_model(member.model, device)
        self.models = [models[member.model] for member in config.members.values()]
        self.output = self.names.index(config.output)
        self.requests = [self._request(name, model) for name, model in zip(self.names, self.models)]
        self._nets: dict[Path, Any] = {}  # ControlNets and learned bridges, by folder
        self._by_picture: dict[tuple[int, int], ImageBridge] = {}  # a new one would be compiled anew
        for name, model in zip(self.names, self.models):
            self._check_controls(name, model)
        self._cards = _cards(config)
        self._spaces = [_space(model.folder / "vae.safetensors") for model in self.models]
        self.sides = [self._canvas(i) for i in range(len(self.names))]
        self.shapes = [
            (m.vae.spec.z_channels, height // m.vae.spec.factor, width // m.vae.spec.factor)
            for m, (width, height) in zip(self.models, self.sides)
        ]
        if config.one_noise and len(set(self.shapes)) > 1:
            raise UserError(f"one_noise: latents of different shapes: {', '.join(map(str, self.shapes))}")

    def _request(self, name: str, model: PanGuDraw) -> Request:
        member, spec = self.config.members[name], model.spec
        request = request_for(
            spec,
            prompts=("a picture",),
            size=member.window or member.size,
            guidance=member.guidance,
            styles=member.styles or None,
            negative=member.negative,
        )
        check(request, spec)
        return request

    def _check_controls(self, name: str, model: PanGuDraw) -> None:
        member = self.config.members[name]
        if member.controls and member.window is not None:
            raise UserError(f"member {name}: window {member.window} does not go with controls")
        for one in member.controls:
            net = self._control_net(one.net)
            if not net.fits(model.model):
                raise UserError(
                    f"member {name}: a ControlNet does not fit {model.spec.name}: it was made for nets of another shape"
                )

    def _canvas(self, i: int) -> tuple[int, int]:
        """Width and height that a member draws, in pixels. Raises: UserError."""
        member, request = self.config.members[self.names[i]], self.requests[i]
        if member.window is None or member.size is None:
            return request.width, request.height
        step = self.models[i].vae.spec.factor
        try:
            sides = parse_size(member.size)
        except ValueError as error:
            raise UserError(f"member {self.names[i]}: {error}") from None
        if any(side % step or side < least for side, least in zip(sides, (request.width, request.height))):
            raise UserError(
                f"member {self.names[i]}: size {member.size}; multiples of {step}, no side below the window's "
                f"{member.window}, are allowed"
            )
        return sides

    def __call__(self, prompts: Sequence[str], **options: Any) -> list[Drawing]:
        """The drawings of `draw`, when all are finished."""
        return list(self.draw(prompts, **options))

    def draw(
        self,
        prompts: Sequence[str],
        *,
        lines: Sequence[Picture] = (),
        weights: Optional[WeightTable] = None,
        progress: Optional[Progress] = None,
        on_step: Optional[OnStep] = None,
        **options: Any,
    ) -> Iterator[Drawing]:
        """Draw pictures of each prompt, in the output's space, as they are finished; see `asked` for the options.

        `lines`: what the members' ControlNets look at, one for all pictures or one for each. `weights`: other
        influences than the recipe's. `progress` and `on_step` are `PanGuDraw`'s; while the output's member does not
        take part yet, `on_step` is shown another's latents.

        Raises:
            UserError: something cannot be done as asked. ValueError: the weights are none.
        """
        model, request = self.models[self.output], self.asked(prompts, **options)
        config = self.config if weights is None else replace(self.config, weights=weights)
        controls = self.looking_at(lines, request.pictures)
        levels = SIGMA_LISTS[request.sigmas](model.schedule, request.steps)
        settings = self._settings(request, config)

        def denoising(batch: range, report: Report) -> Any:
            seeds = [request.seed_of(number) for number in batch]

            def noise(i: int, draw: int) -> Any:
                own = i != self.output and not (config.one_noise and draw == 0)
                return noise_of(seeds, self.shapes[i], draw, i + 1 if own else 0)

            coop = self._coop(config, controls, [request.prompt_of(number) for number in batch], batch)

            def show(state: MemberState) -> None:
                report(state, self.models[state.member].vae.decode)

            return sample(SAMPLERS[request.sampler], coop, levels, self.output, noise, show)

        def made(number: int) -> dict[str, Any]:
            looked = {
                name: [one.of(range(number, number + 1)).settings for one in of_member]
                for name, of_member in zip(self.names, controls)
                if of_member
            }
            return {**settings, "controls": looked}

        return drawings(request, denoising, model.vae.decode, made, progress, on_step)

    def asked(self, prompts: Sequence[str], **options: Any) -> Request:
        """What the output's member is asked for. The options are those of `Request`'s fields that no recipe sets:
        steps, seed, n, sampler, sigmas, batch.

        Raises:
            UserError: something cannot be done as asked.
        """
        given = request_for(self.models[self.output].spec, prompts=tuple(prompts), **options)
        asked = {name: getattr(given, name) for name in ("prompts", *options)}
        request = replace(self.requests[self.output], **asked)
        check(request, self.models[self.output].spec)
        return request

    @property
    def looks(self) -> bool:
        """Whether a member has a ControlNet, and so a picture to look at."""
        return any(member.controls for member in self.config.members.values())

    @property
    def digest(self) -> str:
        """What tells recipes apart: the members' weights, those of their ControlNets and bridges, and who does what."""
        return self._digest(self.config)

    def _digest(self, config: CoopConfig) -> str:
        content = repr((dump(config), [model.digest for model in self.models], self._cards))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def looking_at(self, lines: Sequence[Picture], pictures: int) -> list[tuple[Control, ...]]:
        """The ControlNets of each member, looking at the line drawings of so many pictures, or at one for all.

        Raises:
            UserError: no readable pictures, or not as many as are needed.
        """
        if not self.looks and lines:
            raise UserError("no member looks at a line drawing; leave line out")
        if self.looks and len(lines) not in (1, pictures):
            allowed = "one" if pictures == 1 else f"one, or {pictures}"
            raise UserError(f"a member looks at a line drawing; {allowed} must be given with line, not {len(lines)}")
        return [
            tuple(
                Control.open(
                    self._control_net(one.net),
                    lines,
                    (request.width, request.height),
                    strength=one.strength,
                    start=one.start,
                    end=one.end,
                    lines=one.lines,
                )
                for one in self.config.members[name].controls
            )
            for name, request in zip(self.names, self.requests)
        ]

    def _control_net(self, folder: Path) -> ControlNet:
        if folder not in self._nets:
            self._nets[folder] = control_net(folder)
        return self._nets[folder]

    def _coop(
        self, config: CoopConfig, controls: Sequence[tuple[Control, ...]], prompts: Sequence[str], numbers: range
    ) -> Coop:
        """The members' denoisers for these pictures and prompts, and the bridges between them."""
        output = self.models[self.output]
        schedule = output.schedule if config.match == "t" else None

        def denoiser(i: int, looking: Sequence[Control]) -> Denoiser:
            name, model, request = self.names[i], self.models[i], self.requests[i]
            texts = [config.members[name].prompt.replace("{}", prompt) for prompt in prompts]
            steered = replace(request, controls=tuple(control.of(numbers) for control in looking))
            one = model.guided(steered, texts, schedule)
            if config.members[name].window is None:
                return one
            factor = model.vae.spec.factor
            return Windowed(one, (request.height // factor, request.width // factor))

        members = [denoiser(i, looking) for i, looking in enumerate(controls)]
        beside = {len(members) + k: self.names.index(name) for k, name in enumerate(config.uncontrolled)}
        members += [denoiser(i, ()) for i in beside.values()]
        bridges: dict[tuple[int, int], Bridge] = {}
        for name, row in config.weights.items():
            for other, influence in row.items():
                j, i = self.names.index(other), self.names.index(name)
                bridges[j, i] = self._bridge(j, i, influence.bridge)
                for extra in (extra for extra, looked in beside.items() if looked == j and influence.effect):
                    bridges[extra, i] = self._bridge(j, i, influence.bridge)
        return Coop(members, bridges, partial(config.table, output.schedule), beside=beside)

    def _bridge(self, j: int, i: int, learned: Optional[Path]) -> Bridge:
        """From member j's latents to member i's. Raises: UserError where a learned bridge leads elsewhere."""
        if self._one_space(j, i):
            return lambda x0: x0
        if learned is None:
            if (j, i) not in self._by_picture:
                vaes = self.models[j].vae, self.models[i].vae
                self._by_picture[j, i] = ImageBridge(*vaes, self.sides[j], self.sides[i])
            across: Bridge = self._by_picture[j, i]
        else:
            across = self.learned(j, i, learned)
        return Reused(across, self.config.bridge_every)

    def learned(self, j: int, i: int, folder: Path) -> Bridge:
        """The learned bridge of a folder, from member j's latents to member i's. Raises: UserError."""
        if folder not in self._nets:
            from mindpangu.models.loading import load_bridge

            self._nets[folder] = load_bridge(zoo.locate(folder) / "bridge.safetensors")
        spec = self._nets[folder].spec
        there = [(spec.in_channels, *spec.in_size[::-1]), (spec.out_channels, *spec.out_size[::-1])]
        if there != [self.shapes[j], self.shapes[i]]:
            raise UserError(
                f"bridge {folder} leads from latents (channels, height, width) {there[0]} to {there[1]}; "
                f"{self.names[j]} has {self.shapes[j]} and {self.names[i]} {self.shapes[i]}"
            )
        return self._nets[folder]

    def _one_space(self, j: int, i: int) -> bool:
        """Whether the latents of two members mean the same."""
        return self._spaces[j] == self._spaces[i] and self.sides[j] == self.sides[i]

    def _settings(self, request: Request, config: CoopConfig) -> dict[str, Any]:
        return {
            "model": " + ".join(dict.fromkeys(model.spec.name for model in self.models)),
            "digest": self._digest(config),
            "size": "{}x{}".format(*self.sides[self.output]),
            "steps": request.steps,
            "sampler": request.sampler,
            "sigmas": request.sigmas,
            "coop": dump(config),
        }


def _space(vae: Path) -> Any:
    """What tells latent spaces apart: the autoencoder's content, by its sidecar."""
    card = read_card(vae)
    return card.get("sha256", card.get("shards"))


def _cards(config: CoopConfig) -> list[dict[str, Any]]:
    """What the sidecars of a recipe's ControlNets and bridges say. Raises: UserError."""
    files = [one.net / "controlnet.safetensors" for member in config.members.values() for one in member.controls]
    files += [
        one.bridge / "bridge.safetensors" for row in config.weights.values() for one in row.values() if one.bridge
    ]
    return [read_card(zoo.locate(file.parent) / file.name) for file in files]


def _latent_model(name: str, device: str) -> PanGuDraw:
    """A member's model. Raises: UserError, by name where it draws pixels and so has no latents to share."""
    folder = zoo.find(name)
    if not (folder / "vae.json").is_file():
        raise UserError(f"model '{name}' has no autoencoder ({folder / 'vae.json'}): only latent models draw together")
    return PanGuDraw.from_pretrained(name, device)
