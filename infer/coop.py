"""Coop-Diffusion at work: models of different autoencoders, sizes and controls draw one picture together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import numpy as np
from PIL import Image

from mindpangu.checkpoint.store import read_card
from mindpangu.config import dump
from mindpangu.data.examples import to_pictures
from mindpangu.diffusion import SAMPLERS
from mindpangu.diffusion.coop import Bridge, Coop, walk
from mindpangu.diffusion.schedule import SIGMA_LISTS, NoiseSchedule
from mindpangu.errors import UserError
from mindpangu.infer.control import Control
from mindpangu.infer.pipeline import Drawing, PanGuDraw, Progress, picture_noise
from mindpangu.infer.request import Request, check

if TYPE_CHECKING:
    from mindpangu.models.vae import AutoencoderKL

LANCZOS = 3  # lobes
MEMBER_DRAWS = 1_000_000  # numbers of draws that a member other than the output has to itself


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet's folder, and how it steers a member; see `Control`."""

    net: Path
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class MemberConfig:
    """A model that takes part: zoo name or folder, and what it is asked for; None: its own default.

    `prompt`: what it is told, {} standing for the user's prompt; "" for a model that knows none.
    """

    model: str
    size: Optional[str] = None
    guidance: Optional[float] = None
    styles: dict[str, float] = field(default_factory=dict)
    negative: str = ""
    prompt: str = "{}"
    controls: tuple[ControlConfig, ...] = ()


@dataclass(frozen=True)
class Influence:
    """How much of a member's picture is another's: `share` (the paper's d) at t ≥ `above` of the output's schedule.

    With `fade` it falls from `share` at the noisiest t to 0 at `above`, evenly in t.
    """

    share: float
    above: float = 0.0
    fade: bool = False

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


def resampling(before: int, after: int) -> np.ndarray:
    """(after, before) float32: Lanczos resampling of a line of pixels, antialiased where it shrinks."""
    scale = max(1.0, before / after)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    x = (np.arange(before)[None] - centres[:, None]) / scale
    weights = np.where(np.abs(x) < LANCZOS, np.sinc(x) * np.sinc(x / LANCZOS), 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class ImageBridge:
    """A clean latent of one model -> of another: decode, resize the picture, encode (algorithm 1, step 2).

    Sizes are (width, height) in pixels.
    """

    def __init__(
        self, source: AutoencoderKL, target: AutoencoderKL, before: Sequence[int], after: Sequence[int]
    ) -> None:
        from mindspore import Tensor

        self.source, self.target, self.resized = source, target, tuple(before) != tuple(after)
        self.columns = Tensor(np.ascontiguousarray(resampling(before[0], after[0]).T))
        self.rows = Tensor(resampling(before[1], after[1]))

    def __call__(self, x0: Any) -> Any:
        from mindspore import ops

        picture = self.source.decode(x0)
        if self.resized:
            picture = ops.matmul(self.rows, ops.matmul(picture, self.columns))
        return self.target.encode(picture)


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

    def __init__(self, config: CoopConfig, line: Optional[Path] = None, device: str = "auto") -> None:
        """Load the members; each model once. `line`: the picture that the controls look at.

        Raises:
            UserError: a model or a picture is absent or unfit, or the members cannot draw together.
        """
        self.config, self.names = config, tuple(config.members)
        models: dict[str, PanGuDraw] = {}
        for member in config.members.values():
            if member.model not in models:
                models[member.model] = PanGuDraw.from_pretrained(member.model, device)
        self.models = [models[member.model] for member in config.members.values()]
        self.output = self.names.index(config.output)
        self.requests = [self._request(name, model, line) for name, model in zip(self.names, self.models)]
        self.shapes = [
            (m.vae.spec.z_channels, r.height // m.vae.spec.factor, r.width // m.vae.spec.factor)
            for m, r in zip(self.models, self.requests)
        ]
        if config.one_noise and len(set(self.shapes)) > 1:
            raise UserError(f"one_noise: latents of different shapes: {', '.join(map(str, self.shapes))}")

    def _request(self, name: str, model: PanGuDraw, line: Optional[Path]) -> Request:
        member, spec = self.config.members[name], model.spec
        request = Request(
            ("a picture",),
            member.size or spec.default_size,
            spec.default_guidance if member.guidance is None else member.guidance,
            styles=member.styles or spec.default_styles,
            negative=member.negative,
        )
        check(request, spec)
        if not member.controls:
            return request
        if line is None:
            raise UserError(f"member {name} looks at a picture; give it with --line")
        sides = (request.width, request.height)
        opened = [Control.open(one.net, line, sides, one.strength, one.start, one.end) for one in member.controls]
        for control in opened:
            if not all(control.fits(unet, model.vae.spec.factor) for unet in model.model.unets.values()):
                raise UserError(f"member {name}: a ControlNet does not fit {spec.name}: it was made for other nets")
        return replace(request, controls=tuple(opened))

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        steps: int = 30,
        seed: int = 0,
        n: int = 1,
        sampler: str = "euler",
        sigmas: str = "uniform",
        batch: int = 8,
        progress: Optional[Progress] = None,
    ) -> list[Drawing]:
        """Draw `n` pictures of each prompt, in the output's space; the options are `Request`'s.

        Raises:
            UserError: something cannot be done as asked.
        """
        from mindspore import Tensor

        model, request = self.models[self.output], self.requests[self.output]
        request = replace(
            request, prompts=tuple(prompts), steps=steps, seed=seed, n=n, sampler=sampler, sigmas=sigmas, batch=batch
        )
        check(request, model.spec)
        levels = SIGMA_LISTS[sigmas](model.schedule, steps)
        drawings: list[Drawing] = []
        for first in range(0, request.pictures, batch):
            numbers = range(first, min(first + batch, request.pictures))
            starts = [request.start_of(number) for number in numbers]

            def noise(i: int, draw: int, starts: Sequence[tuple[int, str, int]] = starts) -> Any:
                own = 0 if i == self.output or (self.config.one_noise and draw == 0) else (i + 1) * MEMBER_DRAWS
                return Tensor(np.stack([picture_noise(*start, own + draw, self.shapes[i]) for start in starts]))

            def report(state: dict, done: int = first * steps, size: int = len(numbers)) -> None:
                if progress is not None:
                    progress(done + (state["step"] + 1) * size, request.pictures * steps)

            coop = self._coop([prompt for _, prompt, _ in starts])
            latents = walk(SAMPLERS[sampler], coop, levels, self.output, noise, report)
            pictures = to_pictures(model.vae.decode(latents).asnumpy())
            for start, picture, latent in zip(starts, pictures, latents.asnumpy()):
                settings = {"steps": steps, "sampler": sampler, "sigmas": sigmas, **self._settings(*start)}
                drawings.append(Drawing(Image.fromarray(picture), start[1], start[2], settings, latent))
        return drawings

    def _coop(self, prompts: Sequence[str]) -> Coop:
        """The members' denoisers, told these prompts, and the bridges between them."""
        output = self.models[self.output]
        members = []
        for name, model, request in zip(self.names, self.models, self.requests):
            told = [self.config.members[name].prompt.replace("{}", prompt) for prompt in prompts]
            schedule = output.schedule if self.config.match == "t" else None
            members.append(model.guided(request, told, schedule))
        bridges: dict[tuple[int, int], Bridge] = {}
        for name, row in self.config.weights.items():
            for other in row:
                j, i = self.names.index(other), self.names.index(name)
                if self._one_space(j, i):
                    bridges[j, i] = lambda x0: x0
                else:
                    image = ImageBridge(self.models[j].vae, self.models[i].vae, self._sides(j), self._sides(i))
                    bridges[j, i] = Reused(image, self.config.bridge_every)
        return Coop(members, bridges, partial(self.config.table, output.schedule))

    def _one_space(self, j: int, i: int) -> bool:
        """Whether the latents of two members mean the same."""
        cards = [read_card(self.models[k].folder / "vae.safetensors") for k in (j, i)]
        same = cards[0].get("sha256", cards[0].get("shards")) == cards[1].get("sha256", cards[1].get("shards"))
        return same and self._sides(j) == self._sides(i)

    def _sides(self, i: int) -> tuple[int, int]:
        return self.requests[i].width, self.requests[i].height

    def _settings(self, seed: int, prompt: str, index: int) -> dict[str, Any]:
        controls = {n: [c.settings for c in r.controls] for n, r in zip(self.names, self.requests) if r.controls}
        return {"coop": dump(self.config), "controls": controls, "prompt": prompt, "seed": seed, "index": index}
