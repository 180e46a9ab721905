"""Coop-Diffusion at work: models of different autoencoders, sizes and controls draw one picture together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import numpy as np
from PIL import Image

from mindpangu import zoo
from mindpangu.checkpoint.store import read_card
from mindpangu.config import dump
from mindpangu.diffusion import SAMPLERS
from mindpangu.diffusion.coop import Bridge, Coop, sample
from mindpangu.diffusion.denoiser import Denoiser
from mindpangu.diffusion.schedule import SIGMA_LISTS, NoiseSchedule
from mindpangu.diffusion.windows import Windowed
from mindpangu.errors import UserError
from mindpangu.images import parse_size, to_pictures
from mindpangu.infer.control import Control
from mindpangu.infer.pipeline import Drawing, OnStep, PanGuDraw, Progress, StoppedError, picture_noise, tell
from mindpangu.infer.request import Request, check, request_for
from mindpangu.version import __version__

if TYPE_CHECKING:
    from mindpangu.models.vae import AutoencoderKL

LARGEST_WHOLE = 1024  # pixels a side that a bridge decodes and encodes in one piece
MEMBER_DRAWS = 1_000_000  # numbers of draws that a member other than the output has to itself


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet's folder, or name in the zoo, and how it steers a member; see `Control`."""

    net: Path
    lines: bool = False
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


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
class Influence:
    """How much of a member's picture is another's: `share` (the paper's d) at t ≥ `above` of the output's schedule.

    With `fade` it falls from `share` at the noisiest t to 0 at `above`, evenly in t. `bridge`: a folder with a learned
    bridge from the other's latents to the member's, or its name in the zoo; None: by way of the picture.
    """

    share: float
    above: float = 0.0
    fade: bool = False
    bridge: Optional[Path] = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; 0 to 1 is allowed")

    def at(self, t: float, last: float) -> float:
        """The share at t, of a schedule whose noisiest is `last`."""
        if t < self.above:
            return 0.0
        return self.share * (t - self.above) / (last - self.above) if self.fade else self.share


@dataclass(frozen=True)
class CoopConfig:
    """Who draws together (configs/infer/). `weights`: {member: {other member: its influence}}; the rest is its own.

    `bridge_every`: a bridge is crossed every so many steps, and its last result serves between. `match`: the members'
    noise schedules meet at equal σ, or, as printed in the paper, at equal t. `one_noise`: all begin with the same
    noise, as printed; their latents must have one shape.
    """

    members: dict[str, MemberConfig]
    output: str
    weights: dict[str, dict[str, Influence]]
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
            if sum(one.share for one in row.values()) > 1:
                raise ValueError(f"weights.{name}: the shares of {', '.join(row)} add up to more than 1")
        if self.bridge_every < 1:
            raise ValueError(f"bridge_every is {self.bridge_every}; at least 1 is needed")

    def table(self, schedule: NoiseSchedule, sigma: float) -> np.ndarray:
        """The weights at σ, (members, members); rows add up to 1."""
        t, last = float(schedule.t(np.array([sigma]))[0]), float(schedule.spec.steps - 1)
        names = list(self.members)
        table = np.eye(len(names))
        for name, row in self.weights.items():
            for other, influence in row.items():
                share = influence.at(t, last)
                table[names.index(name), names.index(other)] = share
                table[names.index(name), names.index(name)] -= share
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

    def __init__(
        self,
        config: CoopConfig,
        line: Optional[Union[Path, Image.Image]] = None,
        device: str = "auto",
        models: Optional[dict[str, PanGuDraw]] = None,
    ) -> None:
        """Load the members; each model once. `line`: the picture that the controls look at.

        `models`: those that are loaded already, by name; more are added.

        Raises:
            UserError: a model or a picture is absent or unfit, or the members cannot draw together.
        """
        self.config, self.names = config, tuple(config.members)
        models = {} if models is None else models
        for member in config.members.values():
            if member.model not in models:
                models[member.model] = _latent_model(member.model, device)
        self.models = [models[member.model] for member in config.members.values()]
        self.output = self.names.index(config.output)
        self.requests = [self._request(name, model, line) for name, model in zip(self.names, self.models)]
        self._cards = _cards(config)
        self._nets: dict[Path, Any] = {}  # learned bridges, by folder
        self._by_picture: dict[tuple[int, int], ImageBridge] = {}  # a new one would be compiled anew
        self.sides = [self._canvas(i) for i in range(len(self.names))]
        self.shapes = [
            (m.vae.spec.z_channels, height // m.vae.spec.factor, width // m.vae.spec.factor)
            for m, (width, height) in zip(self.models, self.sides)
        ]
        if config.one_noise and len(set(self.shapes)) > 1:
            raise UserError(f"one_noise: latents of different shapes: {', '.join(map(str, self.shapes))}")

    def _request(self, name: str, model: PanGuDraw, line: Optional[Union[Path, Image.Image]]) -> Request:
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
        if not member.controls:
            return request
        if member.window is not None:
            raise UserError(f"member {name}: window {member.window} does not go with controls")
        if line is None:
            raise UserError(f"member {name} looks at a picture; give it with --line")
        sides = (request.width, request.height)
        opened = [
            Control.open(one.net, line, sides, one.strength, one.start, one.end, one.lines) for one in member.controls
        ]
        for control in opened:
            if not all(control.fits(unet, model.vae.spec.factor) for unet in model.model.unets.values()):
                raise UserError(f"member {name}: a ControlNet does not fit {spec.name}: it was made for other nets")
        return replace(request, controls=tuple(opened))

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

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        progress: Optional[Progress] = None,
        on_step: Optional[OnStep] = None,
        **options: Any,
    ) -> list[Drawing]:
        """Draw pictures of each prompt, in the output's space; see `asked` for the options.

        `on_step` is `PanGuDraw`'s; while the output's member does not take part yet it is shown another's picture.

        Raises:
            UserError: something cannot be done as asked.
        """
        from mindspore import Tensor

        model, request = self.models[self.output], self.asked(prompts, **options)
        levels = SIGMA_LISTS[request.sigmas](model.schedule, request.steps)
        drawings: list[Drawing] = []
        for first in range(0, request.pictures, request.batch):
            numbers = range(first, min(first + request.batch, request.pictures))
            starts = [request.start_of(number) for number in numbers]

            def noise(i: int, draw: int, starts: Sequence[tuple[int, str, int]] = starts) -> Any:
                own = 0 if i == self.output or (self.config.one_noise and draw == 0) else (i + 1) * MEMBER_DRAWS
                return Tensor(np.stack([picture_noise(*start, own + draw, self.shapes[i]) for start in starts]))

            def report(state: dict, first: int = first, size: int = len(numbers)) -> None:
                if progress is not None:
                    progress(first * request.steps + (state["step"] + 1) * size, request.pictures * request.steps)
                shown = self.output if self.output in state["drawn"] else state["drawn"][0]
                denoised = state["denoised"].parts[state["drawn"].index(shown)]
                tell(on_step, {**state, "denoised": denoised, "decode": self.models[shown].vae.decode})

            coop = self._coop([prompt for _, prompt, _ in starts], numbers)
            decode, stopped = model.vae.decode, {}
            try:
                latents = sample(SAMPLERS[request.sampler], coop, levels, self.output, noise, report)
            except StoppedError as early:
                latents, decode = early.state["denoised"], early.state["decode"]
                stopped = {"stopped_after": early.state["step"] + 1}
            pictures = to_pictures(decode(latents).asnumpy())
            for number, start, picture, latent in zip(numbers, starts, pictures, latents.asnumpy()):
                settings = {**self._settings(request, number), "batch": len(numbers), **stopped}
                drawings.append(Drawing(Image.fromarray(picture), start[1], start[2], settings, latent))
        return drawings

    def asked(self, prompts: Sequence[str], **options: Any) -> Request:
        """What the output's member is asked for. The options are those of `Request`'s fields that no recipe sets:
        steps, seed, indices, n, sampler, sigmas, batch.

        Raises:
            UserError: something cannot be done as asked.
        """
        seed = options.get("seed", 0)
        given = {**options, "prompts": tuple(prompts), "seed": seed if isinstance(seed, int) else tuple(seed)}
        request = replace(self.requests[self.output], **given)
        check(request, self.models[self.output].spec)
        return request

    @property
    def looks(self) -> bool:
        """Whether a member has a ControlNet, and so a picture to look at."""
        return any(request.controls for request in self.requests)

    @property
    def digest(self) -> str:
        """What tells recipes apart: the members' weights, those of their ControlNets and bridges, and who does what."""
        content = repr((dump(self.config), [model.digest for model in self.models], self._cards))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def weigh(self, weights: dict[str, dict[str, Influence]]) -> None:
        """Have the same members draw with other influences. Raises: ValueError where they are none."""
        self.config = replace(self.config, weights=weights)

    def look_at(self, lines: Sequence[Union[Path, Image.Image]]) -> None:
        """Have the controls look at other pictures, one for each that is to be drawn. Raises: UserError."""
        self.requests = [
            replace(request, controls=tuple(one.looking_at(lines) for one in request.controls))
            for request in self.requests
        ]

    def _coop(self, prompts: Sequence[str], numbers: range) -> Coop:
        """The members' denoisers for these pictures and prompts, and the bridges between them."""
        output = self.models[self.output]
        members = []
        for name, model, request in zip(self.names, self.models, self.requests):
            texts = [self.config.members[name].prompt.replace("{}", prompt) for prompt in prompts]
            schedule = output.schedule if self.config.match == "t" else None
            controls = tuple(control.of(numbers) for control in request.controls)
            one: Denoiser = model.guided(replace(request, controls=controls), texts, schedule)
            if self.config.members[name].window is not None:
                factor = model.vae.spec.factor
                one = Windowed(one, (request.height // factor, request.width // factor))
            members.append(one)
        bridges: dict[tuple[int, int], Bridge] = {}
        for name, row in self.config.weights.items():
            for other, influence in row.items():
                j, i = self.names.index(other), self.names.index(name)
                bridges[j, i] = self._bridge(j, i, influence.bridge)
        return Coop(members, bridges, partial(self.config.table, output.schedule))

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
        cards = [read_card(self.models[k].folder / "vae.safetensors") for k in (j, i)]
        same = cards[0].get("sha256", cards[0].get("shards")) == cards[1].get("sha256", cards[1].get("shards"))
        return same and self.sides[j] == self.sides[i]

    def _settings(self, request: Request, number: int) -> dict[str, Any]:
        seed, prompt, index = request.start_of(number)
        own = range(number, number + 1)
        controls = {n: [c.of(own).settings for c in r.controls] for n, r in zip(self.names, self.requests)}
        return {
            "model": " + ".join(dict.fromkeys(model.spec.name for model in self.models)),
            "digest": self.digest,
            "version": __version__,
            "prompt": prompt,
            "seed": seed,
            "index": index,
            "size": "{}x{}".format(*self.sides[self.output]),
            "steps": request.steps,
            "sampler": request.sampler,
            "sigmas": request.sigmas,
            "coop": dump(self.config),
            "controls": {name: looked for name, looked in controls.items() if looked},
        }


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
