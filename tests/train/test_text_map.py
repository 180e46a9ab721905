"""Other text encoders under a trained UNet: maps of features join its weights, and its output stays what it was."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.spec import UNetSpec
from mindpangu.train.config import TrainConfig
from tests.tiny import training

runtime.start("CPU")
from mindspore import Tensor  # noqa: E402

from mindpangu.models.unet import UNet  # noqa: E402
from mindpangu.train.text_map import TextMap  # noqa: E402

RNG = np.random.default_rng(0)
LENGTH, OLD, NEW, OLD_POOLED, NEW_POOLED, NUMBERS = 6, 24, 32, 8, 12, 4


def test_a_unet_draws_the_same_from_the_new_features_as_from_what_they_are_mapped_to(tmp_path):
    shapes = (NEW, OLD), (OLD,), (NEW_POOLED, OLD_POOLED), (OLD_POOLED,)
    TextMap(*(RNG.standard_normal(shape).astype(np.float32) for shape in shapes)).save(tmp_path / "map.safetensors", {})
    found = TextMap.load(tmp_path / "map.safetensors")
    now = RNG.standard_normal((3, LENGTH, NEW)).astype(np.float32)
    now_pooled = RNG.standard_normal((3, NEW_POOLED)).astype(np.float32)
    was = now @ found.tokens + found.tokens_bias
    was_pooled = now_pooled @ found.pooled + found.pooled_bias

    before = UNet(UNetSpec(4, 4, 16, (1, 2), 1, (0, 1), 16, OLD, OLD_POOLED + NUMBERS, norm_groups=4))
    after = UNet(UNetSpec(4, 4, 16, (1, 2), 1, (0, 1), 16, NEW, NEW_POOLED + NUMBERS, norm_groups=4))
    for p in before.get_parameters():  # no layer is left at its zeros
        p.set_data(Tensor((0.2 * RNG.standard_normal(p.shape)).astype(np.float32)))
    changed = found.folded({p.name: p.asnumpy() for p in before.get_parameters()})
    for p in after.get_parameters():
        p.set_data(Tensor(changed[p.name]))
    x = Tensor(RNG.standard_normal((3, 4, 8, 8)).astype(np.float32))
    t, numbers = Tensor(np.array([3.0, 500.0, 900.0], np.float32)), RNG.standard_normal((3, NUMBERS))
    drawn = [
        net(x, t, Tensor(c), Tensor(np.concatenate([p, numbers], 1).astype(np.float32))).asnumpy()
        for net, c, p in ((before, was, was_pooled), (after, now, now_pooled))
    ]
    assert np.abs(drawn[0]).mean() > 0.1
    np.testing.assert_allclose(drawn[1], drawn[0], rtol=0, atol=1e-4 * np.abs(drawn[0]).max())


def test_text_map_beside_a_lora_is_refused(runs):
    values = training("structure", runs)
    values["diffusion"].update(text_map="map.safetensors", lora={"rank": 2})
    values["load_checkpoint"] = str(runs / "structure" / "unet.safetensors")
    with pytest.raises(UserError, match="text_map"):
        parse(values, TrainConfig, "test")
