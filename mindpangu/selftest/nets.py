"""Narrow nets of every family against diffusers' and transformers' numbers, ten steps of training against PyTorch's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cache, partial

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu import runtime
from mindpangu.checkpoint.diffusers import Vector, unet_places, vae_places
from mindpangu.checkpoint.name_map import whole
from mindpangu.checkpoint.transformers import text_places, torch_name
from mindpangu.models.clip import text_encoder
from mindpangu.models.layers import SinusoidalEmbedding
from mindpangu.models.unet import TransformerBlock, UNet
from mindpangu.models.vae import AutoencoderKL, Middle
from mindpangu.parallel.ranks import ALONE, Ranks
from mindpangu.selftest.check import ALLOWED, Check, Outcome, error
from mindpangu.selftest.narrow import (
    BETAS,
    DECAY,
    MAX_NORM,
    RATE,
    SIZE_DIM,
    STEPS,
    TEXTS,
    TRAINED,
    UNETS,
    VAE_WIDTH,
    VAES,
    WIDE,
    WIDE_CONTEXT,
    golden,
    text_ids,
    training_batch,
    unet_inputs,
    wide_inputs,
)
from mindpangu.selftest.weights import inputs, of_ours
from mindpangu.spec import VAESpec
from mindpangu.train.config import OptimizerConfig
from mindpangu.train.schedule import coefficients
from mindpangu.train.step import TrainStep

DEPTH = 3  # a net's errors in those of an operator
QUICK = ("pangu_draw", "clip_l", "chinese_clip")  # the nets that a CPU compiles in a selftest


def unet(family: str) -> dict[str, np.ndarray]:
    """The noise that a family's UNet predicts."""
    spec, vector, _ = UNETS[family]
    net = UNet(spec).set_train(False)
    way: Vector = "add_embedding" if vector == "add_embedding" else "class_embedding"
    of_ours(net, unet_places([p.name for p in net.get_parameters()], spec, way))
    given = {key: Tensor(value) for key, value in unet_inputs(spec).items()}
    of_vector = given["vector"] if spec.vector_dim else None
    if vector == "add_embedding":  # SDXL: pooled text, then the embedding of each size
        sizes = SinusoidalEmbedding(SIZE_DIM)(given["sizes"].reshape((-1,))).asnumpy().reshape(2, -1)
        of_vector = Tensor(np.concatenate([given["pooled"].asnumpy(), sizes], axis=1))
    return {f"unet.{family}": net(given["x"], given["t"], given["context"], of_vector).asnumpy()}


class _Encode(nn.Cell):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.posterior(x)


class _Decode(_Encode):
    def construct(self, x: Tensor) -> Tensor:
        return self.vae.reconstruct(x)


def vae(family: str) -> dict[str, np.ndarray]:
    """The posterior of a picture, and a picture of latents."""
    spec = VAES[family]
    net = AutoencoderKL(spec).set_train(False)
    of_ours(net, vae_places([p.name for p in net.get_parameters()], spec))
    mean, logvar = _Encode(net)(Tensor(inputs(1, 3, 32, 40, seed=3)))
    decoded = _Decode(net)(Tensor(inputs(1, spec.z_channels, 4, 5, seed=4)))
    found = {"mean": mean, "logvar": logvar, "decoded": decoded}
    return {f"vae.{family}.{key}": value.asnumpy() for key, value in found.items()}


def text(family: str) -> dict[str, np.ndarray]:
    """What goes to cross-attention, and the pooled features."""
    spec = TEXTS[family]
    net = text_encoder(spec).set_train(False)
    of_ours(net, text_places([p.name for p in net.get_parameters()], spec))
    features, pooled = net(Tensor(text_ids(spec)))
    return {f"text.{family}.features": features.asnumpy(), f"text.{family}.pooled": pooled.asnumpy()}


def transformer_block() -> dict[str, np.ndarray]:
    """SDXL's widest."""
    net = TransformerBlock(WIDE, WIDE_CONTEXT, WIDE // 64).set_train(False)
    of_ours(net, whole({p.name: torch_name(p.name) for p in net.get_parameters()}))
    return {"block.transformer": net(*(Tensor(value) for value in wide_inputs())).asnumpy()}


def vae_middle() -> dict[str, np.ndarray]:
    """The autoencoder's middle at its real width."""
    net = Middle(VAE_WIDTH, 32).set_train(False)
    names = [p.name for p in net.get_parameters()]
    places = vae_places([f"decoder.mid.{name}" for name in names], VAESpec(4, VAE_WIDTH, (1,), 1))
    of_ours(net, {name: places[f"decoder.mid.{name}"] for name in names})
    return {"block.vae_middle": net(Tensor(inputs(1, VAE_WIDTH, 4, 5, seed=7))).asnumpy()}


class _Loss(nn.Cell):
    """The mean squared error of a UNet."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def construct(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor, target: Tensor) -> Tensor:
        return mops.square(self.net(x, t, context, vector) - target).mean()


def training(ranks: Ranks = ALONE) -> tuple[list[float], list[float]]:
    """Losses and seconds of ten steps; the first one compiles."""
    net = UNet(TRAINED)
    of_ours(net, unet_places([p.name for p in net.get_parameters()], TRAINED, "class_embedding"))
    step = TrainStep(_Loss(net), ranks=ranks)
    step.set_train()
    optimizer = OptimizerConfig(betas=BETAS, weight_decay=DECAY, max_grad_norm=MAX_NORM)
    scale = 1024.0 if runtime.multiplies_in_fp16() else 1.0
    losses, seconds = [], []
    for number in range(STEPS):
        started = time.monotonic()
        batch = [array[ranks.part(len(array))] for array in training_batch(number)]
        loss, _ = step(Tensor(coefficients(optimizer, RATE, number + 1, scale)), *map(Tensor, batch))
        losses.append(float(loss.asnumpy()))
        seconds.append(time.monotonic() - started)
    return losses, seconds


_alone = cache(training)


def multiplied_in() -> str:
    """The coarsest type that a net multiplies in here."""
    dtype, device = runtime.compute_dtype(), runtime.start()
    if "bf16" in (dtype, runtime.cpu_operators() if device == "CPU" else ""):
        return "bf16"
    return "hf32" if dtype == "fp32" and device == "Ascend" else dtype


def against_golden(found: Mapping[str, np.ndarray]) -> Outcome:
    """The worst of some outputs."""
    errors = {key: error(value, golden()[key].astype(np.float64)) for key, value in found.items()}
    worst = max(errors, key=errors.__getitem__)
    return Outcome(errors[worst], "error", DEPTH * ALLOWED[multiplied_in()], f"worst: {worst}")


def of_curve(losses: list[float]) -> Outcome:
    """The largest relative difference from PyTorch's losses."""
    curve = golden()["training.losses"]
    differences = np.abs(np.array(losses) / curve - 1)
    ours, theirs = (", ".join(f"{loss:.4f}" for loss in part) for part in (losses, curve))
    return Outcome(float(differences.max()), "error", ALLOWED[multiplied_in()], f"losses {ours}; PyTorch's {theirs}")


def first_step() -> Outcome:
    """For information: Ascend compiles a graph for minutes the first time, and takes it from its cache afterwards."""
    _, seconds = _alone()
    return Outcome(seconds[0], "s", note=f"compilation in it; the others {1000 * np.median(seconds[1:]):.1f} ms")


def checks() -> Iterator[Check]:
    """Each net, then the training."""
    for kind, families, run in (("UNet", UNETS, unet), ("autoencoder", VAES, vae), ("text encoder", TEXTS, text)):
        for family in families:
            made = partial(_outcome, run, family)
            yield Check("net", f"{kind} of {family}, narrow", made, family in QUICK)
    yield Check("net", "transformer block of SDXL, full width", partial(_outcome, transformer_block), False)
    yield Check("net", "autoencoder's middle, full width", partial(_outcome, vae_middle), False)
    yield Check("training", "ten steps, AdamW", lambda: of_curve(_alone()[0]))
    yield Check("training", "first step", first_step)


def _outcome(run, *arguments: str) -> Outcome:
    return against_golden(run(*arguments))
