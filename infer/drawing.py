"""The generation loop, the one for a single model and for several together: batches, early stop, pictures, metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from PIL import Image

from mindpangu import runtime
from mindpangu.diffusion.samplers import StepState
from mindpangu.errors import UserError
from mindpangu.images import to_pictures
from mindpangu.infer.request import Request
from mindpangu.version import __version__

Decode = Callable[[Any], Any]  # latents (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]


@dataclass(frozen=True)
class Drawing:
    """A picture and what made it. `settings` is plain data, as written into the PNG's metadata.

    `latents`: (C, h, w) float32, before decoding.
    """

    image: Image.Image
    prompt: str
    settings: Mapping[str, Any]
    latents: np.ndarray


@dataclass(frozen=True)
class BatchState(StepState):
    """A batch of pictures at a step of its sampling, and what decodes its latents."""

    decode: Decode

    @property
    def pictures(self) -> list[Image.Image]:
        """What the latents predicted by now decode to."""
        return decoded(self.decode, self.denoised)


Progress = Callable[[int, int], None]  # steps done, of all batches' steps
OnStep = Callable[[BatchState], Optional[bool]]  # False: end the batch here
Report = Callable[[StepState, Decode], None]
Denoising = Callable[[range, Report], Any]  # numbers of the request's pictures -> their clean latents


class StoppedError(Exception):
    """`on_step` asked to stop at this state."""

    def __init__(self, state: BatchState) -> None:
        super().__init__()
        self.state = state


def noise_of(seeds: Sequence[int], shape: Sequence[int], draw: int, member: int = 0) -> Any:
    """(len(seeds), *shape) unit Gaussian noise, each picture's a function of its own seed.

    `draw`: 0 is what sampling starts from, later ones are stochastic samplers'. `member`: of models that draw together,
    but for the output, each has a stream of its own.
    """
    from mindspore import Tensor

    streams = [np.random.default_rng([seed, member, draw]) for seed in seeds]
    return Tensor(np.stack([stream.standard_normal(tuple(shape), np.float32) for stream in streams]))


def drawings(
    request: Request,
    denoising: Denoising,
    decode: Decode,
    settings: Callable[[int], Mapping[str, Any]],
    progress: Optional[Progress] = None,
    on_step: Optional[OnStep] = None,
) -> Iterator[Drawing]:
    """Draw a request's pictures batch by batch, as they are finished.

    settings(number): what made a picture of the request, beside what the loop knows: seed, prompt, version, pictures
    drawn together ("batch"), and, where `on_step` ended it early, "stopped_after".
    """
    numbers = range(request.pictures)
    batches = [numbers[start : start + request.batch] for start in range(0, request.pictures, request.batch)]
    for done, batch in enumerate(batches):

        def report(state: StepState, decode: Decode, done: int = done) -> None:
            if progress is not None:
                progress(done * state.steps + state.step + 1, len(batches) * state.steps)
            shown = BatchState(state.step, state.steps, state.sigma, state.x, state.denoised, decode)
            if on_step is not None and on_step(shown) is False:
                raise StoppedError(shown)

        stopped: dict[str, int] = {}
        with runtime.alone():
            try:
                latents = denoising(batch, report)
                pictures = decoded(decode, latents)
            except StoppedError as early:
                latents, pictures = early.state.denoised, early.state.pictures
                stopped = {"stopped_after": early.state.step + 1}
            values = latents.asnumpy()
        for number, picture, latent in zip(batch, pictures, values):
            seed, prompt = request.seed_of(number), request.prompt_of(number)
            made = {"version": __version__, "prompt": prompt, "seed": seed, **settings(number), "batch": len(batch)}
            yield Drawing(_finished(picture, request), prompt, {**made, **stopped}, latent)


def decoded(decode: Decode, latents: Any) -> list[Image.Image]:
    """The pictures of clean latents. Raises: UserError where they are not finite."""
    pictures = decode(latents).asnumpy()
    if not np.isfinite(pictures).all():
        raise UserError(
            "the picture is not finite (NaN): guidance, or the weight of a style, LoRA or ControlNet, is too large, or "
            "the model's weights are damaged"
        )
    return [Image.fromarray(picture) for picture in to_pictures(pictures)]


def _finished(picture: Image.Image, request: Request) -> Image.Image:
    """With the init image's own pixels where it is not drawn anew."""
    if request.init_image is None:
        return picture
    return Image.fromarray(request.init_image.keep_rest(np.asarray(picture)))
