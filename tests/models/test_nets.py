"""Nets: shapes, causality, zero-initialised residuals, parameter names of the release."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.spec import TextSpec, UNetSpec, VAESpec

runtime.start("CPU")
from mindspore import Tensor  # noqa: E402

from mindpangu.models.clip import at_end, text_encoder  # noqa: E402
from mindpangu.models.layers import SinusoidalEmbedding  # noqa: E402
from mindpangu.models.unet import UNet  # noqa: E402
from mindpangu.models.vae import AutoencoderKL  # noqa: E402

UNET = UNetSpec(4, 4, 16, (1, 2), 1, (0, 1), 16, 24, 12, norm_groups=4)


def normal(*shape):
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def test_unet_keeps_the_shape_and_starts_at_zero():
    out = UNet(UNET)(normal(2, 4, 8, 12), Tensor(np.array([3.0, 700.0], np.float32)), normal(2, 5, 24), normal(2, 12))
    assert out.shape == (2, 4, 8, 12)
    np.testing.assert_array_equal(out.asnumpy(), 0)  # the last convolution starts at zero


def test_unet_has_the_releases_parameter_names():
    """Some names of the released PanGu-Draw, whose three levels hold two blocks each (read in its manifest)."""
    names = {
        p.name for p in UNet(UNetSpec(4, 4, 16, (1, 2, 4), 2, (0, 1, 1), 16, 24, 12, norm_groups=4)).get_parameters()
    }
    for name in (
        "time_embed.2.weight",
        "label_emb.0.0.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.gamma",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.weight",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0.weight",
        "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj.weight",
        "middle_block.2.out_layers.3.weight",
        "output_blocks.2.2.conv.weight",
        "out.2.weight",
    ):
        assert name in names


def test_a_level_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="not divisible"):
        UNetSpec(4, 4, 10, (1,), 1, (1,), 16, 24, 0, norm_groups=4)


def test_vae_shapes_and_latent_scaling():
    spec = VAESpec(4, 16, (1, 2), 1, patch=2, norm_groups=4, scale=(2.0,), shift=(0.5,))
    plain, scaled = AutoencoderKL(VAESpec(4, 16, (1, 2), 1, patch=2, norm_groups=4)), AutoencoderKL(spec)
    for a, b in zip(plain.trainable_params(), scaled.trainable_params()):
        b.set_data(Tensor(a.asnumpy()))
    assert spec.factor == 4
    x = normal(1, 3, 16, 24)
    latents = plain.encode(x)
    assert latents.shape == (1, 4, 4, 6)
    np.testing.assert_allclose(scaled.encode(x).asnumpy(), (latents.asnumpy() - 0.5) * 2, atol=1e-5)
    np.testing.assert_allclose(scaled.decode(scaled.encode(x)).asnumpy(), plain.decode(latents).asnumpy(), atol=1e-4)


@pytest.mark.parametrize("output", ["last", "penultimate"])
def test_text_encoders_look_back_only(output):
    projection = 6 if output == "penultimate" else None
    encoder = text_encoder(TextSpec(50, 3, 16, 2, 2, "quick_gelu", output, 8, projection))
    ids = np.array([[1, 9, 8, 3, 0, 0, 0, 0]], np.int32)
    changed = ids.copy()
    changed[0, 2] = 30
    (a, pooled_a), (b, pooled_b) = encoder(Tensor(ids)), encoder(Tensor(changed))
    np.testing.assert_allclose(a.asnumpy()[:, :2], b.asnumpy()[:, :2], atol=1e-6)
    assert np.abs(a.asnumpy()[:, 2:] - b.asnumpy()[:, 2:]).max() > 1e-4
    assert pooled_a.shape == (1, projection or 16)
    assert np.abs(pooled_a.asnumpy() - pooled_b.asnumpy()).max() > 1e-6


def test_pooling_takes_the_first_end_token():
    features = np.arange(2 * 4 * 1, dtype=np.float32).reshape(2, 4, 1)
    ids = np.array([[1, 3, 3, 0], [1, 5, 5, 3]], np.int32)
    np.testing.assert_array_equal(at_end(Tensor(features), Tensor(ids), 3).asnumpy(), [[1.0], [7.0]])


def test_sinusoidal_embedding_is_ldms():
    out = SinusoidalEmbedding(8)(Tensor(np.array([0.0, 2.5], np.float32))).asnumpy()
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(2.5 * frequencies), np.sin(2.5 * frequencies)])
    np.testing.assert_allclose(out[0], [1, 1, 1, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(out[1], expected, atol=1e-5)
