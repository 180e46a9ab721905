"""The generators' task: a UNet on cached latents, on its share of the noise schedule (PanGu-Draw, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Optional, TypeVar

import numpy as np
from mindspore import Parameter, Tensor, mutable, nn
from mindspore import ops as mops
from PIL import Image

from mindpangu import zoo
from mindpangu.checkpoint.lora import load_text_encoder_lora
from mindpangu.checkpoint.store import half, load_into, load_tensors, prefixed, save_checkpoint, unprefixed
from mindpangu.cost.flops import BACKWARD, unet_flops
from mindpangu.data.examples import DataConfig, Examples, Stream
from mindpangu.diffusion import Denoiser, Guided, NetDenoiser, NoiseSchedule
from mindpangu.diffusion.denoiser import Prediction, training_target
from mindpangu.diffusion.samplers import euler
from mindpangu.errors import UserError
from mindpangu.images import parse_size, to_pictures
from mindpangu.models.conditioner import Conditioner
from mindpangu.models.inventory import shapes_of
from mindpangu.models.layers import DOWN, UP
from mindpangu.models.loading import fill_text_encoders, load_conditioner, load_tokenizers, load_vae, read_spec
from mindpangu.models.lora import TEXT_ENCODER_LAYERS, UNET_LAYERS, adapt, text_encoder_file, unet_file
from mindpangu.models.stages import recompute
from mindpangu.models.unet import UNet
from mindpangu.spec import TEXT_ENCODERS, TextSpec
from mindpangu.train.config import TrainConfig
from mindpangu.train.latents import Bucket, encode_pictures, encode_scenes
from mindpangu.train.rows import ALL, Rows
from mindpangu.train.text_map import TextMap

SHOWN, SHOWN_STEPS, SHOWN_GUIDANCE = 8, 16, 4.0
BINS, MEASURED = 16, 64  # noise levels at which the loss is measured, and scenes over which

Net = TypeVar("Net", bound=nn.Cell)


def frozen(net: Net) -> Net:
    """The net, which learns nothing."""
    for parameter in net.get_parameters():
        parameter.requires_grad = False
    return net


def text_encoder_specs(folder: Path) -> dict[str, TextSpec]:
    """What the text encoders of a folder are. Raises: UserError."""
    return {encoder: read_spec(zoo.part_path(folder, encoder), TextSpec) for encoder in TEXT_ENCODERS}


def _whole(unet: UNet) -> list[Parameter]:
    """The weights of a net, without what a LoRA adds."""
    return [p for p in unet.get_parameters() if not p.name.endswith((DOWN, UP))]


class DiffusionLoss(nn.Cell):
    """construct(latents, noise, alpha, sigma (N, 1, 1, 1), t (N,), *cond) -> scalar.

    The mean squared error of the prediction for the latent alpha·latents + sigma·noise. `cond`, where there are words:
    ids_a, ids_b, size_index (N, 1). The text encoders stay as they are but for what is trainable of them.
    """

    def __init__(
        self, unet: UNet, conditioner: Optional[Conditioner], prediction: Prediction, auto_prefix: bool = True
    ) -> None:
        super().__init__(auto_prefix)
        self.unet, self.prediction = unet, prediction
        self.worded = conditioner is not None
        if conditioner is not None:
            self.conditioner = conditioner
            self.taught = bool(conditioner.trainable_params())

    def predict(self, x: Tensor, t: Tensor, cond: tuple[Tensor, ...]) -> Tensor:
        """The net's output."""
        if not self.worded:
            return self.unet(x, t)
        context, vector = self.words(cond)
        return self.unet(x, t, context, vector)

    def words(self, cond: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Context and vector of ids_a, ids_b and size_index; gradients pass where the text encoders learn."""
        context, vector = self.conditioner(cond[:2], cond[2])
        if self.taught:
            return context, vector
        return mops.stop_gradient(context), mops.stop_gradient(vector)

    def construct(
        self, latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, t: Tensor, *cond: Tensor
    ) -> Tensor:
        out = self.predict(alpha * latents + sigma * noise, t, cond)
        error = out - training_target(self.prediction, latents, noise, alpha, sigma)
        return (error * error).mean()


def heldout_of(config: DataConfig, seed: int) -> Optional[Examples]:
    """The held-out pictures of a data set, or None where it has none of what is trained on."""
    try:
        return Examples(config, "heldout", seed)
    except UserError:
        return None


class TrainDiffusion:
    """The `loop.Task` for the common net, the structure generator and the texture generator."""

    conditioner: Optional[Conditioner]  # what tells the net within its loss; None for features and for no words

    def __init__(self, config: TrainConfig) -> None:
        """Raises: UserError where the data asks for a size that the model does not know, or a part is missing."""
        assert config.diffusion is not None
        self.task, self.seed = config.diffusion, config.context.seed
        unknown = [size for size in (config.data.sizes if config.data else ()) if size not in self.task.sizes]
        if unknown:
            raise UserError(f"data.sizes {unknown} are not among diffusion.sizes {list(self.task.sizes)}")
        self.schedule = NoiseSchedule(self.task.schedule)
        self.vae = load_vae(self.task.vae / "vae.safetensors")
        self.open(config)
        self.build()
        if config.recompute_config.recompute:
            recompute(self.loss_net.unet)

    def open(self, config: TrainConfig) -> None:
        """The data, and what tells the nets of it. Raises: UserError."""
        assert config.data is not None
        self.examples = Examples(config.data, seed=self.seed)
        self.conditioner = None
        if self.task.text is not None:
            self.open_text_encoders(self.task.text)
        self.buckets = encode_scenes(
            self.examples, self.vae, self.task.scenes, config.output_dir / "latents.safetensors"
        )
        self.heldout_examples = heldout_of(config.data, self.seed)

    def open_text_encoders(self, folder: Path) -> None:
        """Tokenizers and text encoders, as a LoRA is to find them. Raises: UserError."""
        lora = self.task.lora
        self.conditioner = load_conditioner(folder, TEXT_ENCODERS, self.task.size_dim)
        self.tokenizers = load_tokenizers(folder, TEXT_ENCODERS)
        if lora is not None and lora.beside is not None:
            specs = text_encoder_specs(folder)
            beside = load_text_encoder_lora(lora.beside, specs, {name: shapes_of(spec) for name, spec in specs.items()})
            fill_text_encoders(self.conditioner, folder, TEXT_ENCODERS, [(beside, 1.0)])
        frozen(self.conditioner)
        if lora is not None and lora.text_encoders:
            adapt(self.conditioner, TEXT_ENCODER_LAYERS, lora.rank, lora.alpha, lora.modules)

    def build(self) -> None:
        """The net that learns, within its loss, and one to show what it has learned."""
        self.loss_net = DiffusionLoss(self.unet(), self.conditioner, self.task.prediction)
        self._shown = self.unet()
        loss = DiffusionLoss(self._shown, self.conditioner, self.task.prediction, auto_prefix=False)
        self._measure = loss.set_train(False)

    def unet(self) -> UNet:
        """A net of the task's shape; what is trainable of it is what is trained."""
        unet, lora = UNet(self.task.unet), self.task.lora
        if lora is not None:
            adapt(unet, UNET_LAYERS, lora.rank, lora.alpha, lora.modules)
        return unet

    def start_from(self, path: Path) -> None:
        """Take the first weights, or with `lora` those that stay, from a unet.safetensors."""
        weights = load_tensors(path)
        if self.task.text_map is not None:
            weights = TextMap.load(self.task.text_map).folded(weights)
        load_into(_whole(self.loss_net.unet), prefixed(weights, "unet."), str(path))
        if self.task.lora is not None:
            load_into(_whole(self._shown), weights, str(path))

    def batch(self, nimg: int, count: int, part: slice = ALL) -> tuple[np.ndarray, ...]:
        """Latents of one size, noise, and what conditions the nets; some batches are cut to windows."""
        rows = Rows(self.seed, nimg, count, part)
        common, each = rows.common(Stream.DIFFUSION), rows.each(Stream.PICTURE)
        latents, cond = self.pick(rows, common, each)
        if common.random() < self.task.crop_share:
            latents = self._windows(latents, each)
        first, last = self.t_range
        t = np.array([first + (last - first) * self._share(rng) for rng in each])
        noise = np.stack([rng.standard_normal(latents.shape[1:], np.float32) for rng in each])
        return self.noised(latents, noise, t, cond)

    def source(self, nimg: int, count: int, row: int) -> str:
        """Which picture of the training a row of a batch is."""
        return f"picture {nimg + row} of the training"

    def work(self, batch: Sequence[np.ndarray]) -> tuple[int, float]:
        """Positions of latents, and three times the FLOPs of the net's matrix products (gradients take twice)."""
        count, _, height, width = batch[0].shape
        return count * height * width, (1.0 + BACKWARD) * count * self._flops(height, width)

    @lru_cache(maxsize=64)  # noqa: B019 - one task a process
    def _flops(self, height: int, width: int) -> int:
        tokens = 0
        if self.task.text is not None:
            tokens = text_encoder_specs(self.task.text)[TEXT_ENCODERS[0]].context_length
        return unet_flops(self.task.unet, height, width, tokens)

    def _share(self, rng: np.random.Generator) -> float:
        """Where in its range t is, 0 to 1."""
        if self.task.t_sampling == "logit_normal":
            return float(1 / (1 + np.exp(-rng.standard_normal())))
        return rng.random()

    @property
    def t_range(self) -> tuple[int, int]:
        """The lowest and the highest t that is trained."""
        return self.task.t_min, min(self.task.t_max, self.task.schedule.steps - 1)

    def noised(
        self, latents: np.ndarray, noise: np.ndarray, t: np.ndarray, cond: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, ...]:
        """The inputs of the loss for latents (N, C, h, w) with noise of t (N,)."""
        alpha_bar = self.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        alpha, sigma = np.sqrt(alpha_bar).astype(np.float32), np.sqrt(1 - alpha_bar).astype(np.float32)
        return latents, noise, alpha, sigma, t.astype(np.float32), *cond

    def by_noise_level(self, weights: Mapping[str, np.ndarray]) -> dict[str, list[Optional[float]]]:
        """The loss with the same noise each time, in BINS of t: of pictures that are "trained" on, and "heldout" ones.

        None where t is not trained; no "heldout" where the data holds nothing out.
        """
        load_into(self._shown.trainable_params(), unprefixed(weights, "unet."), "the average")
        return {split: [self._loss_in_bin(i, *batch) for i in range(BINS)] for split, batch in self.measured.items()}

    def _loss_in_bin(self, number: int, latents: np.ndarray, cond: tuple[np.ndarray, ...]) -> Optional[float]:
        width, (first, last) = self.task.schedule.steps / BINS, self.t_range
        low, high = max(number * width, first), min((number + 1) * width, last)
        if low >= high:
            return None
        rng = np.random.default_rng([self.seed, number, Stream.NOISE_LEVELS])
        t = rng.uniform(low, high, len(latents))
        batch = self.noised(latents, rng.standard_normal(latents.shape, np.float32), t, cond)
        return round(float(self._measure(*map(Tensor, batch)).asnumpy()), 5)

    @cached_property
    def measured(self) -> dict[str, tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        """Latents of MEASURED scenes of the first size of each split, and what conditions the nets on them."""
        found = {}
        for split, examples in (("trained", self.examples), ("heldout", self.heldout_examples)):
            if examples is None:
                continue
            size = examples.config.sizes[0]
            scenes = [examples.scene(i, parse_size(size)) for i in range(MEASURED)]
            latents = encode_pictures(self.vae, [examples.image(scene) for scene in scenes]).astype(np.float32)
            cond: tuple[np.ndarray, ...] = ()
            if self.conditioner is not None:
                prompts = [examples.caption(scene, i) for i, scene in enumerate(scenes)]
                index = np.full((MEASURED, 1), self.task.sizes.index(size), np.float32)
                cond = (*(tokenizer(prompts) for tokenizer in self.tokenizers), index)
            found[split] = latents, cond
        return found

    def pick(
        self, rows: Rows, common: np.random.Generator, each: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Latents (N, C, h, w) of one size, float32, and what conditions the nets on them, for the N `rows`.

        `common` draws what the whole batch shares, `each` what its rows have of their own.
        """
        shares = np.array([len(b.scenes) for b in self.buckets], np.float64)
        bucket = self.buckets[int(common.choice(len(self.buckets), p=shares / shares.sum()))]
        chosen = [int(rng.integers(len(bucket.scenes))) for rng in each]
        return bucket.latents[chosen].astype(np.float32), self.cond(bucket, bucket.scenes[chosen], rows.numbers.start)

    def cond(self, bucket: Bucket, scenes: np.ndarray, nimg: int) -> tuple[np.ndarray, ...]:
        """Captions of the scenes, drawn afresh, and the index of their size; nothing where there are no words."""
        if self.conditioner is None:
            return ()
        prompts = [self._prompt(int(scene), nimg + j) for j, scene in enumerate(scenes)]
        size_index = np.full((len(scenes), 1), self.task.sizes.index(bucket.size), np.float32)
        return (*(tokenizer(prompts) for tokenizer in self.tokenizers), size_index)

    def _windows(self, latents: np.ndarray, each: Sequence[np.random.Generator]) -> np.ndarray:
        side, (height, width) = self.task.crop_latents, latents.shape[2:]
        tops = [int(rng.integers(height - side + 1)) for rng in each]
        lefts = [int(rng.integers(width - side + 1)) for rng in each]
        return np.stack([z[:, y : y + side, x : x + side] for z, y, x in zip(latents, tops, lefts)])

    def _prompt(self, scene: int, index: int) -> str:
        if self.examples.rng(index, "dropout").random() < self.task.caption_dropout:
            return ""
        return self.examples.caption(self.examples.scene(scene), index)

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Pictures (top) and what the net alone makes of their captions, from the noisiest t it knows (below)."""
        load_into(self._shown.trainable_params(), unprefixed(weights, "unet."), "the average")
        denoiser = NetDenoiser(self._shown, self.schedule, self.task.prediction)
        x0, cond = self.shown()
        self.show(Guided(denoiser, cond, SHOWN_GUIDANCE) if cond else denoiser, x0, path)

    def shown(self) -> tuple[np.ndarray, tuple[Tensor, ...]]:
        """A few latents; where there are words, context and vector of as many empty captions and of theirs."""
        bucket = self.buckets[0]
        x0 = bucket.latents[:SHOWN].astype(np.float32)
        if self.conditioner is None:
            return x0, ()
        index = np.full((2 * SHOWN, 1), self.task.sizes.index(bucket.size), np.float32)
        scenes = [int(scene) for scene in bucket.scenes[:SHOWN]]
        prompts = [""] * SHOWN + [self.examples.caption(self.examples.scene(scene), scene) for scene in scenes]
        ids = tuple(Tensor(tokenizer(prompts)) for tokenizer in self.tokenizers)
        return x0, self.conditioner(mutable(ids), Tensor(index))

    def show(self, denoiser: Denoiser, x0: np.ndarray, path: Path) -> None:
        """Latents, and what the denoiser makes of noise, or of them under all the noise that it knows."""
        top = min(self.task.t_max, self.task.schedule.steps - 1)
        sigmas = np.append(self.schedule.sigma(np.linspace(top, self.task.t_min, SHOWN_STEPS)), 0.0)
        noise = np.random.default_rng(self.seed).standard_normal(x0.shape, np.float32)
        start = Tensor((x0 if top < self.task.schedule.steps - 1 else 0) + noise * np.float32(sigmas[0]))
        drawn = euler(denoiser, start, sigmas)
        rows = [to_pictures(self.vae.decode(z).asnumpy()) for z in (Tensor(x0), drawn)]
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """unet.safetensors in fp16, or lora.safetensors."""
        lora = self.task.lora
        if lora is not None:
            scale = lora.alpha / lora.rank
            tensors = unet_file(self._shown, unprefixed(weights, "unet."), scale, lora.expert or "")
            if self.task.text is not None:
                for i, (encoder, spec) in enumerate(text_encoder_specs(self.task.text).items()):
                    learned = unprefixed(weights, f"conditioner.text_encoders.{i}.")
                    tensors.update(text_encoder_file(spec, learned, scale, encoder))
            save_checkpoint(folder / "lora.safetensors", tensors, card)
            return
        tensors = half(unprefixed(weights, "unet."))
        save_checkpoint(folder / "unet.safetensors", tensors, {"spec": asdict(self.task.unet), **card})
