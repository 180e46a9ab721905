"""The autoencoder in tiles computes what it computes in one piece, wherever the tiles end."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from mindpangu import runtime
from mindpangu.models.tiled import TiledDecoder, TiledEncoder
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import VAESpec

PLAIN = VAESpec(z_channels=4, channels=8, channel_mult=(1, 2, 4), num_res_blocks=1, norm_groups=4, scale=(0.2,))
PATCHED = VAESpec(z_channels=4, channels=8, channel_mult=(2, 2), num_res_blocks=2, norm_groups=4, patch=2)


def varied(spec):
    """An autoencoder without zeros and ones: every layer counts."""
    vae, rng = AutoencoderKL(spec).set_train(False), np.random.default_rng(0)
    for parameter in vae.get_parameters():
        parameter.set_data(Tensor(0.3 * rng.standard_normal(parameter.shape).astype(np.float32)))
    return vae


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr(runtime, "cpu_operators", lambda: "fp32")


@pytest.mark.parametrize("spec", [PLAIN, PATCHED])
def test_equals_the_whole_encoder(spec):
    vae, rng = varied(spec), np.random.default_rng(1)
    pictures = Tensor(rng.standard_normal((2, 3, 5 * spec.factor, 3 * spec.factor)).astype(np.float32))
    whole = vae.encode(pictures).asnumpy()
    for side in (4, 7, 100):
        tiled = TiledEncoder(vae, side)(pictures).asnumpy()
        assert tiled.shape == whole.shape
        assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max(), side


@pytest.mark.parametrize("spec", [PLAIN, PATCHED])
def test_equals_the_whole_decoder(spec):
    vae, rng = varied(spec), np.random.default_rng(1)
    latents = Tensor(rng.standard_normal((2, 4, 5, 7)).astype(np.float32))
    whole = vae.decode(latents).asnumpy()
    for side in (5, 16, 100):
        tiled = TiledDecoder(vae, side)(latents).asnumpy()
        assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max(), side
