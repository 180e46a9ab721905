"""Other text encoders under a trained UNet: where a linear map says everything, its output stays what it was."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.spec import UNetSpec
from mindpangu.train.config import TrainConfig
from tests.conftest import without_graphs
from tests.tiny import training

runtime.start("CPU")
from mindspore import Tensor  # noqa: E402

from mindpangu.models.unet import UNet  # noqa: E402
from mindpangu.train.text_swap import TextMap, paired, ridge  # noqa: E402

RNG = np.random.default_rng(0)
LENGTH, OLD, NEW, OLD_POOLED, NEW_POOLED, NUMBERS = 6, 24, 32, 8, 12, 4


class FakeWords:
    """Text encoders whose features are given. Captions are all as long as each other."""

    def __init__(self, tokens, pooled):
        self.tokens, self.pooled = tokens, pooled

    def features(self, prompts):
        n = len(prompts)
        return self.tokens[:n], self.pooled[:n], np.full((n, 2), LENGTH)


def test_a_linear_relation_is_found():
    x, a, b = RNG.standard_normal((500, 7)), RNG.standard_normal((7, 3)), RNG.standard_normal(3)
    found_a, found_b = ridge(x, x @ a + b)
    np.testing.assert_allclose(found_a, a, atol=1e-3)
    np.testing.assert_allclose(found_b, b, atol=1e-3)


def test_a_unet_draws_the_same_from_the_new_features_where_the_old_ones_are_a_linear_map_of_them():
    count = 400
    now = RNG.standard_normal((count, LENGTH, NEW)).astype(np.float32)
    now_pooled = RNG.standard_normal((count, NEW_POOLED)).astype(np.float32)
    was = (now @ RNG.standard_normal((NEW, OLD)) + RNG.standard_normal(OLD)).astype(np.float32)
    was_pooled = (now_pooled @ RNG.standard_normal((NEW_POOLED, OLD_POOLED)) + 1).astype(np.float32)
    found = TextMap.fit(FakeWords(was, was_pooled), FakeWords(now, now_pooled), [""] * count)
    assert min(found.explained) > 0.9999

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
        net(x, t, Tensor(c[:3]), Tensor(np.concatenate([p[:3], numbers], 1).astype(np.float32))).asnumpy()
        for net, c, p in ((before, was, was_pooled), (after, now, now_pooled))
    ]
    assert np.abs(drawn[0]).mean() > 0.1
    np.testing.assert_allclose(drawn[1], drawn[0], rtol=0, atol=0.01 * np.abs(drawn[0]).max())


def test_tokens_are_paired_by_their_place_and_padding_by_padding():
    pairs = paired(np.array([3, 5, 6]), np.array([5, 3, 6]), 8)
    assert pairs.tolist() == [[0, 2, 4, 5, 6, 7, 7, 7], [0, 0, 1, 2, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_a_training_begins_with_the_net_of_other_text_encoders(runs, capsys):
    """Those of the run itself: the maps are the identity as far as its features vary, so the loss stays what it was."""
    from mindpangu.train.diffusion import TrainDiffusion

    def loss(**more):
        values = training("structure", runs, output_dir=str(runs / "structure"))
        values["diffusion"].update(**more)
        task = TrainDiffusion(parse(values, TrainConfig, "test"))
        task.start_from(runs / "structure" / "unet.safetensors")
        with without_graphs():
            return float(task.loss_net(*map(Tensor, task.batch(0, 8))).asnumpy())

    assert loss(text_before=str(runs / "clip")) == pytest.approx(loss(), rel=0.02)
    assert "are mapped" in capsys.readouterr().err


def test_text_before_without_text_is_refused(runs):
    values = training("structure", runs)
    values["diffusion"].update(text_before=str(runs / "clip"), lora={"rank": 2})
    values["load_checkpoint"] = str(runs / "structure" / "unet.safetensors")
    with pytest.raises(UserError, match="text_before"):
        parse(values, TrainConfig, "test")
