"""Nets from checkpoints; two sets of weights in one Cell do not mix."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mindpangu.checkpoint.store import load_into, load_tensors
from mindpangu.errors import UserError


@pytest.mark.parametrize("offload", [False, True])
def test_unets_of_equal_spec_share_a_cell_and_keep_their_own_weights(runs, offload):
    from mindspore import Tensor

    from mindpangu.models.loading import load_unets
    from mindpangu.models.unet import UNet

    paths = [runs / "structure" / "unet.safetensors", runs / "texture" / "unet.safetensors"]
    unets = load_unets(paths, offload)
    assert unets[0].cells is unets[1].cells
    rng = np.random.default_rng(0)
    inputs = [
        Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((1, 4, 4, 4), (1,), (1, 12, 32), (1, 24))
    ]
    alone = UNet(unets[0].cells.whole.spec)
    for k in (0, 1, 0):
        load_into(alone.trainable_params(), load_tensors(paths[k]), "alone")
        np.testing.assert_array_equal(unets[k](*inputs).asnumpy(), alone(*inputs).asnumpy())


def test_a_unet_in_two_parts_is_the_unet(runs):
    """Deep features of the same step give the same output; other ones another, of the same shape."""
    from mindspore import Tensor

    from mindpangu.models.loading import load_unets

    unet = load_unets([runs / "texture" / "unet.safetensors"])[0]
    rng = np.random.default_rng(0)
    inputs = [
        Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((1, 4, 4, 4), (1,), (1, 12, 32), (1, 24))
    ]
    whole = unet(*inputs).asnumpy()
    out, deep = unet.with_deep(*inputs)
    np.testing.assert_allclose(out.asnumpy(), whole, atol=1e-6)
    np.testing.assert_allclose(unet.reusing_deep(deep, *inputs).asnumpy(), whole, atol=1e-6)
    other = unet.reusing_deep(2 * deep, *inputs).asnumpy()
    assert other.shape == whole.shape and np.abs(other - whole).max() > 1e-3


def test_a_sidecar_without_a_spec_is_named(runs, tmp_path):
    from mindpangu.models.loading import load_vae

    path = tmp_path / "vae.safetensors"
    path.write_bytes((runs / "vae" / "vae.safetensors").read_bytes())
    (tmp_path / "vae.json").write_text(json.dumps({"nimg": 1}))
    with pytest.raises(UserError, match=r"vae\.json: spec: found None"):
        load_vae(path)
