"""PanGu-Draw's pipeline: tokenise, condition, draw noise, sample, decode."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from mindpangu import runtime, zoo
from mindpangu.checkpoint.lora import ADAPTER_FILE
from mindpangu.checkpoint.store import file_digest
from mindpangu.diffusion import (
    SAMPLERS,
    Conditioned,
    Denoiser,
    Guided,
    Inpainted,
    LaggingTimeDecoupled,
    NetDenoiser,
    NoiseSchedule,
    TimeDecoupled,
)
from mindpangu.diffusion.schedule import SIGMA_LISTS
from mindpangu.errors import UserError
from mindpangu.images import parse_size, to_model
from mindpangu.infer.control import Control, ControlledDenoiser
from mindpangu.infer.drawing import Decode, Drawing, OnStep, Progress, Report, drawings, noise_of
from mindpangu.infer.request import Request, check, check_size, request_for
from mindpangu.text.tokenizer import parse_weights, unread_marks
from mindpangu.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from mindpangu.models.loading import SharedUNet
    from mindpangu.spec import ModelSpec, PipelineSpec

REFINER_SCORE, REFINER_NEGATIVE_SCORE = 6.0, 2.5  # aesthetic scores that SDXL's refiner is given by default
DTYPES = ("auto", "fp32", "fp16")  # of weights in memory
ROUNDING = 1e-6  # of σ, on its way through a sampler
MAX_SHOWN = 60  # characters of what a prompt has beyond the text encoders' reach


def is_chinese(prompt: str) -> bool:
    """True where the prompt holds a CJK character."""
    return any("\u4e00" <= character <= "\u9fff" for character in prompt)


def numbers_for(spec: PipelineSpec, size: str, rows: int, negative: int) -> Optional[np.ndarray]:
    """The added conditioning beside the prompt, (rows, K); the first `negative` rows are the negative prompts.

    SDXL is conditioned on the statement that the picture has, and had, the size asked for, and is not cropped.
    """
    width, height = parse_size(size)
    if spec.added_cond == "none":
        return None
    if spec.added_cond == "index":
        return np.full((rows, 1), spec.sizes[spec.nearest_size(size)], np.float32)
    if spec.added_cond == "sdxl":
        return np.tile(np.array([height, width, 0, 0, height, width], np.float32), (rows, 1))
    numbers = np.tile(np.array([height, width, 0, 0, REFINER_SCORE], np.float32), (rows, 1))
    numbers[:negative, -1] = REFINER_NEGATIVE_SCORE
    return numbers


def guided_levels(request: Request, schedule: NoiseSchedule) -> tuple[float, float]:
    """The lowest and the highest σ at which a request uses guidance."""
    levels = SIGMA_LISTS[request.sigmas](schedule, request.steps)[:-1]
    within = [
        sigma for i, sigma in enumerate(levels) if request.guidance_start <= i / len(levels) < request.guidance_end
    ]
    if len(within) == len(levels):
        return 0.0, math.inf
    return min(within, default=0.0) * (1 - ROUNDING), max(within, default=0.0) * (1 + ROUNDING)


def check_refiner(request: Request, model: ModelSpec) -> None:
    """Raises: UserError where the refiner cannot go on with what the model draws."""
    if request.refiner is None:
        return
    other = request.refiner.model
    if (other.vae, other.pipeline.schedule) != (model.vae, model.pipeline.schedule):
        raise UserError(
            f"{other.pipeline.name} cannot refine {model.pipeline.name}: their autoencoders or noise schedules differ"
        )
    if not 0 < request.refine_below < model.pipeline.schedule.steps:
        raise UserError(f"refine_below is {request.refine_below}; above 0 and below {model.pipeline.schedule.steps}")
    check_size(request.size, other.pipeline)


class PanGuDraw:
    """A text-to-image model: one or more UNets, each for its noise levels, an autoencoder, one or two text encoders.

    >>> pictures = PanGuDraw.from_pretrained("emoji-128")("一只狐狸, 3D风格", steps=30, seed=1)
    >>> pictures[0].image.save("fox.png")
    """

    def __init__(self, folder: Path, offload: bool = False, dtype: str = "auto") -> None:
        """Load the model folder; with `offload` only the UNet in use lies in memory, read anew when its turn comes.

        `dtype`: of the weights in memory, fp32 or fp16, cast as they are used; auto: `runtime.weights_dtype`. MindSpore
        must have been started (`runtime.start`).

        Raises:
            UserError: a file is missing, corrupt, or does not fit.
        """
        from mindpangu.models.inventory import spec_of
        from mindpangu.models.loading import load_conditioner, load_tokenizers, load_unets, load_vae

        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype} is unknown; allowed: {', '.join(DTYPES)}")
        zoo.check(folder)
        self.folder = folder
        self.digest = hashlib.sha256(zoo.fingerprint(folder).encode()).hexdigest()[:16]
        self.model = spec_of(folder)
        self.spec = self.model.pipeline
        self.schedule = NoiseSchedule(self.spec.schedule)
        self.vae = load_vae(folder / "vae.safetensors", dtype)
        self.conditioner = None
        if self.spec.text_encoders:
            self.conditioner = load_conditioner(folder, self.spec.text_encoders, self.spec.size_dim, dtype)
        self.tokenizers = load_tokenizers(folder, self.spec.text_encoders)
        self.vocabulary = Vocabulary.load(folder)
        self.unets = load_unets([folder / f"{name}.safetensors" for name in self.spec.experts], offload, dtype)
        self.loras: list[dict[str, Any]] = []  # as the pictures' settings say them

    @classmethod
    def from_pretrained(
        cls, name_or_folder: Union[str, Path], device: str = "auto", offload: bool = False, dtype: str = "auto"
    ) -> PanGuDraw:
        """A zoo model by name ("emoji-128"), or one's own model folder, on "CPU", "Ascend" or whichever is there.

        `offload`: only the UNet in use lies in memory. `dtype`: of the weights in memory, see `__init__`.

        Raises:
            UserError: unknown name, absent device, damaged files.
        """
        folder = zoo.find(name_or_folder)
        runtime.start(device)
        return cls(folder, offload, dtype)

    def set_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Have exactly these LoRA files, each at its scale, merged into the weights; none: the weights as loaded.

        Raises:
            UserError: a file is no LoRA, or one of another model; nothing is changed then.
        """
        from mindpangu.checkpoint.lora import load_lora
        from mindpangu.models.inventory import parts
        from mindpangu.models.loading import fill_text_encoders

        shapes = parts(self.model) if loras else {}
        read = [(load_lora(path, self.model, shapes), scale) for path, scale in loras]
        for unet in self.unets:
            unet.set_loras(read)
        if self.conditioner is not None:
            fill_text_encoders(self.conditioner, self.folder, self.spec.text_encoders, read)
        self.loras = [{"file": path.name, "sha256": _digest(path), "scale": scale} for path, scale in loras]

    def __call__(
        self,
        prompts: Union[str, Sequence[str]],
        *,
        progress: Optional[Progress] = None,
        on_step: Optional[OnStep] = None,
        **options: Any,
    ) -> list[Drawing]:
        """Draw `n` pictures of each prompt; options are `Request`'s fields. progress(done, total) counts steps.

        on_step(state) is called with a `BatchState` at each step of a batch of pictures; where it returns False the
        batch ends there, with what is predicted by then, and the settings say so ("stopped_after").

        Returns:
            A list of Drawings, prompt by prompt.

        Raises:
            UserError: the model cannot do what is asked.
        """
        return list(self.draw(self.asked(prompts, **options), progress, on_step))

    def asked(self, prompts: Union[str, Sequence[str]], **options: Any) -> Request:
        """The request for prompts, checked; options are `Request`'s fields.

        Raises:
            UserError: the model cannot do what is asked.
        """
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        request = request_for(self.spec, prompts=texts, **options)
        check(request, self.spec)
        if not all(control.net.fits(self.model) for control in request.controls):
            raise UserError(f"a ControlNet does not fit {self.spec.name}: it was made for nets of another shape")
        check_refiner(request, self.model)
        self._check_latents(request)
        return request

    def draw(
        self, request: Request, progress: Optional[Progress] = None, on_step: Optional[OnStep] = None
    ) -> Iterator[Drawing]:
        """The pictures of a checked request, as they are finished."""
        from mindpangu.models.tiled import TiledDecoder

        nearest = self.spec.nearest_size(request.size)
        if nearest != request.size:
            warnings.warn(
                f"{self.spec.name} was not trained at {request.size}; it is conditioned on {nearest}", stacklevel=3
            )
        for prompt in request.prompts:
            self._warn_if_unread(prompt)
        with runtime.alone():
            unknown = self._unknown_words(request)
        decode = self.vae.decode if request.vae_tile is None else TiledDecoder(self.vae, request.vae_tile)

        def settings(number: int) -> dict[str, Any]:
            words = unknown[request.prompt_of(number)]
            return {**self._settings(request), "unknown": words} if words else self._settings(request)

        denoising = partial(self._denoise, request, decode)
        return drawings(request, denoising, decode, settings, progress, on_step)

    def _check_latents(self, request: Request) -> None:
        if request.latents is not None:
            vae = self.vae.spec
            wanted = (request.pictures, vae.z_channels, request.height // vae.factor, request.width // vae.factor)
            if request.latents.shape != wanted:
                raise UserError(f"latents have the shape {request.latents.shape}; {wanted} is needed")

    def _warn_if_unread(self, prompt: str) -> None:
        text = parse_weights(prompt).text
        marks = unread_marks(text)
        if marks:
            warnings.warn(
                f"{', '.join(marks)}: read as words; weights are written (red:1.4), and LoRAs given with --lora",
                stacklevel=4,
            )
        unread = max((tokenizer.unread(text) for tokenizer in self.tokenizers), key=len, default="").strip()
        if unread:
            limit = self.tokenizers[0].context_length
            shown = unread if len(unread) <= MAX_SHOWN else f"{unread[:MAX_SHOWN]}… ({len(unread)} characters)"
            warnings.warn(f"the prompt is longer than {limit} tokens; its end is not read: {shown}", stacklevel=4)

    def _unknown_words(self, request: Request) -> dict[str, dict[str, str]]:
        """Of each prompt the words that the model has never met, with the nearest that it knows; warns of them."""
        found: dict[str, dict[str, str]] = {}
        for prompt in dict.fromkeys(request.prompts):
            words = () if self.vocabulary is None else self.vocabulary.unknown(parse_weights(prompt).text)
            found[prompt] = self._nearest_words(words, request)
            if found[prompt]:
                said = ", ".join(f"'{word}' (nearest: {near})" for word, near in found[prompt].items())
                warnings.warn(f"{self.spec.name} has never met {said}", stacklevel=4)
        return found

    def _nearest_words(self, words: Sequence[str], request: Request) -> dict[str, str]:
        if self.vocabulary is None or not words:
            return {}
        near = {word: self.vocabulary.spelled_like(word) for word in words}
        rows = min(request.batch, request.pictures) * (2 + len(request.styles))  # those of the first batch: one graph
        strange = [word for word, like in near.items() if like is None][:rows]
        texts = [*strange, *[""] * (rows - len(strange))]
        pooled = self._encode(texts, numbers_for(self.spec, request.size, rows, 0))[1].asnumpy()
        width = self.vocabulary.directions.shape[1]
        near.update({w: self.vocabulary.nearest(w, row[:width]) for w, row in zip(strange, pooled)})
        return {word: like or "nothing" for word, like in near.items()}

    def _condition(self, request: Request, prompts: Sequence[str]) -> tuple[Any, ...]:
        """Rows for `Guided`: the negative prompt, the prompts, then the prompts with each style's words."""
        from mindspore import Tensor

        rows = [request.negative] * len(prompts) + list(prompts)
        for style in request.styles:
            row = self.spec.styles[style]
            rows += [row["zh" if is_chinese(p) else "en"].replace("{}", p) for p in prompts]
        added_cond = numbers_for(self.spec, request.size, len(rows), len(prompts))
        weighted = [parse_weights(row) for row in rows]
        texts = [one.text for one in weighted]
        cond = self._encode(texts, added_cond)
        if not any(one.spans for one in weighted):
            return cond
        context, nothing = cond[0], self._encode([""] * len(rows), added_cond)[0]
        weights = np.concatenate(
            [
                np.stack([tokenizer.weights(one) for one in weighted])[..., None].repeat(text.width, -1)
                for tokenizer, text in zip(self.tokenizers, self.model.texts.values())
            ],
            axis=-1,
        )
        return nothing + (context - nothing) * Tensor(weights), *cond[1:]

    def _encode(self, texts: Sequence[str], added_cond: Optional[np.ndarray]) -> tuple[Any, ...]:
        from mindspore import Tensor, mutable

        assert self.conditioner is not None
        # A plain tuple would be a constant of the graph, which would be compiled anew for every batch.
        ids = mutable(tuple(Tensor(tokenizer(texts)) for tokenizer in self.tokenizers))
        return self.conditioner(ids, None if added_cond is None else Tensor(added_cond))

    def denoiser(
        self,
        cache_interval: int = 1,
        lag: bool = False,
        controls: Sequence[Control] = (),
        schedule: Optional[NoiseSchedule] = None,
    ) -> TimeDecoupled:
        """A denoiser for one sampling; with an interval above 1 its nets reuse deep features.

        `schedule`: another model's, whose t the nets then take at each σ.
        """
        schedule = schedule or self.schedule
        nets = self.unets if cache_interval == 1 else [StepCache(unet, cache_interval) for unet in self.unets]
        kind = partial(ControlledDenoiser, controls=controls) if controls else NetDenoiser
        experts: list[Denoiser] = [kind(net, schedule=schedule, prediction=self.spec.prediction) for net in nets]
        lowest = list(self.spec.experts.values())[:-1]
        switch = LaggingTimeDecoupled if lag else TimeDecoupled
        return switch(experts, [float(schedule.sigma(t)) for t in lowest])

    def guided(self, request: Request, prompts: Sequence[str], schedule: Optional[NoiseSchedule] = None) -> Denoiser:
        """This model's denoiser for prompts, with its conditioning, if it knows words; `schedule` as for `denoiser`."""
        denoiser = self.denoiser(request.cache_interval, request.lag, request.controls, schedule)
        if self.conditioner is None:
            return Conditioned(denoiser, ())
        between = guided_levels(request, schedule or self.schedule)
        cond, styles = self._condition(request, prompts), tuple(request.styles.values())
        return Guided(denoiser, cond, request.guidance, styles, request.rescale, between)

    def _denoise(self, request: Request, decode: Decode, batch: range, report: Report) -> Any:
        """Clean latents of a batch: the numbers of its pictures in the request."""
        from mindspore import Tensor

        sigmas = SIGMA_LISTS[request.sigmas](self.schedule, request.steps)[request.first_step :]
        factor, channels = self.vae.spec.factor, self.vae.spec.z_channels
        shape = (channels, request.height // factor, request.width // factor)

        def noise(draw: int) -> Any:
            if draw == 0 and request.latents is not None:
                return Tensor(np.asarray(request.latents[batch.start : batch.stop], np.float32))
            return noise_of([request.seed_of(one) for one in batch], shape, draw)

        prompts = [request.prompt_of(one) for one in batch]
        denoiser: Denoiser = self.guided(request, prompts)
        if request.refiner is not None:
            refining = replace(request, styles={}, controls=())
            switch = float(self.schedule.sigma(request.refine_below))
            denoiser = TimeDecoupled([denoiser, request.refiner.guided(refining, prompts)], [switch])
        if request.init_image is None:
            start = noise(0) * float(np.sqrt(1 + sigmas[0] ** 2))
        else:
            known = self.vae.encode(Tensor(to_model([request.init_image.picture])))
            denoiser = Inpainted(denoiser, known, Tensor(request.init_image.latent_mask(factor)))
            start = known + noise(0) * float(sigmas[0])
        return SAMPLERS[request.sampler](
            denoiser,
            start,
            sigmas,
            noise=lambda step: noise(step + 1),
            callback=lambda state: report(state, decode),
        )

    def _settings(self, request: Request) -> dict[str, Any]:
        shown = request.options
        if request.init_image is None:
            del shown["strength"]
        else:
            shown["init_image"] = request.init_image.digest
        if request.controls:
            shown["controls"] = [control.settings for control in request.controls]
        if request.latents is not None:
            shown["latents"] = hashlib.sha256(np.ascontiguousarray(request.latents).tobytes()).hexdigest()[:16]
        if request.refiner is not None:
            shown.update(refiner=request.refiner.spec.name, refine_below=request.refine_below)
        if self.loras:
            shown["loras"] = self.loras
        if runtime.compute_dtype() != "fp32":
            shown["compute_dtype"] = runtime.compute_dtype()
        return {"model": self.spec.name, "digest": self.digest, **shown, "styles": dict(request.styles)}


def _digest(lora: Path) -> str:
    return file_digest(lora / ADAPTER_FILE if lora.is_dir() else lora)[:16]


class StepCache:
    """A net for one sampling, whose deep features are computed at every `interval`-th call (DeepCache, 2312.00858)."""

    def __init__(self, unet: SharedUNet, interval: int) -> None:
        self.unet, self.interval = unet, interval
        self.calls, self.deep = 0, None

    def __call__(self, *inputs: Any) -> Any:
        self.calls += 1
        if (self.calls - 1) % self.interval:
            return self.unet.reusing_deep(self.deep, *inputs)
        out, self.deep = self.unet.with_deep(*inputs)
        return out
