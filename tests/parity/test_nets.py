"""Our nets compute diffusers' numbers, in the layout of every family, from the same weights by the name tables."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime

runtime.start("CPU")

from mindspore import GRAPH_MODE, PYNATIVE_MODE, Tensor, set_context  # noqa: E402

from mindpangu.checkpoint.diffusers import unet_places, vae_places  # noqa: E402
from mindpangu.checkpoint.name_map import whole  # noqa: E402
from mindpangu.checkpoint.transformers import text_places, torch_name  # noqa: E402
from mindpangu.models.clip import text_encoder  # noqa: E402
from mindpangu.models.layers import SinusoidalEmbedding  # noqa: E402
from mindpangu.models.unet import TransformerBlock, UNet  # noqa: E402
from mindpangu.models.vae import AutoencoderKL, Middle  # noqa: E402
from mindpangu.spec import VAESpec  # noqa: E402
from tests.parity.golden_nets import (  # noqa: E402
    GOLDEN,
    SIZE_DIM,
    TEXTS,
    UNETS,
    VAE_WIDTH,
    VAES,
    WIDE,
    WIDE_CONTEXT,
    text_ids,
    unet_inputs,
    wide_inputs,
)
from tests.parity.weights import inputs, of_ours  # noqa: E402

TOLERANCE = 1e-4  # of the largest value

with np.load(GOLDEN) as file:
    GOLD = dict(file)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32 throughout; without graphs, whose compilation would take longer than these nets."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    set_context(mode=PYNATIVE_MODE)
    yield
    set_context(mode=GRAPH_MODE)


def error(ours: Tensor, key: str) -> float:
    """The largest difference, over the peer's largest value."""
    gold = GOLD[key]
    assert ours.shape == gold.shape
    return float(np.abs(ours.asnumpy() - gold).max() / np.abs(gold).max())


@pytest.mark.parametrize("family", sorted(UNETS))
def test_unet(family):
    spec, vector, _ = UNETS[family]
    net = UNet(spec).set_train(False)
    names = [p.name for p in net.get_parameters()]
    of_ours(net, unet_places(names, spec, vector or "class_embedding"))
    given = {key: Tensor(value) for key, value in unet_inputs(spec).items()}
    told = given["vector"] if spec.vector_dim else None
    if vector == "add_embedding":  # SDXL: pooled text, then the embedding of each size
        sizes = SinusoidalEmbedding(SIZE_DIM)(given["sizes"].reshape((-1,))).asnumpy().reshape(2, -1)
        told = Tensor(np.concatenate([given["pooled"].asnumpy(), sizes], axis=1))
    out = net(given["x"], given["t"], given["context"], told)
    assert error(out, f"unet.{family}") <= TOLERANCE


@pytest.mark.parametrize("family", sorted(VAES))
def test_vae(family):
    spec = VAES[family]
    net = AutoencoderKL(spec).set_train(False)
    of_ours(net, vae_places([p.name for p in net.get_parameters()], spec))
    mean, logvar = net.posterior(Tensor(inputs(1, 3, 32, 40, seed=3)))
    decoded = net.reconstruct(Tensor(inputs(1, spec.z_channels, 4, 5, seed=4)))
    assert error(mean, f"vae.{family}.mean") <= TOLERANCE
    assert error(logvar, f"vae.{family}.logvar") <= TOLERANCE
    assert error(decoded, f"vae.{family}.decoded") <= TOLERANCE


@pytest.mark.parametrize("family", sorted(TEXTS))
def test_text_encoder(family):
    spec = TEXTS[family]
    net = text_encoder(spec).set_train(False)
    of_ours(net, text_places([p.name for p in net.get_parameters()], spec))
    features, pooled = net(Tensor(text_ids(spec)))
    assert error(features, f"text.{family}.features") <= TOLERANCE
    assert error(pooled, f"text.{family}.pooled") <= TOLERANCE


def test_transformer_block_at_full_width():
    net = TransformerBlock(WIDE, WIDE_CONTEXT, WIDE // 64).set_train(False)
    of_ours(net, whole({p.name: torch_name(p.name) for p in net.get_parameters()}))
    assert error(net(*(Tensor(value) for value in wide_inputs())), "block.transformer") <= TOLERANCE


def test_vae_middle_at_full_width():
    net = Middle(VAE_WIDTH, 32).set_train(False)
    names = [p.name for p in net.get_parameters()]
    places = vae_places([f"decoder.mid.{name}" for name in names], VAESpec(4, VAE_WIDTH, (1,), 1))
    of_ours(net, {name: places[f"decoder.mid.{name}"] for name in names})
    assert error(net(Tensor(inputs(1, VAE_WIDTH, 4, 5, seed=7))), "block.vae_middle") <= TOLERANCE
