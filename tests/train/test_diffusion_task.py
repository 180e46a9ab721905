"""What the generators are shown: their own noise levels, windows, empty captions; a shared start."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.checkpoint.store import load_tensors
from mindpangu.config import parse
from mindpangu.train.config import TrainConfig
from tests.tiny import SIZES, training


@pytest.fixture(scope="module")
def task(runs):
    from mindpangu.train.diffusion import TrainDiffusion

    runtime.start("CPU")
    values = training("texture", runs, output_dir=str(runs / "structure"))
    values["diffusion"].update(t_max=500, crop_share=0.5, crop_latents=2, caption_dropout=0.5)
    return TrainDiffusion(parse(values, TrainConfig, "test"))


def test_batches_are_functions_of_seed_and_images_seen(task):
    for a, b in zip(task.batch(64, 4), task.batch(64, 4)):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(task.batch(64, 4)[1], task.batch(68, 4)[1])


def test_noise_levels_stay_on_the_generators_side(task):
    for nimg in range(0, 80, 4):
        _, _, alpha, sigma, t, *_ = task.batch(nimg, 4)
        assert (t >= 0).all()
        assert (t < 500).all()
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-5)


def test_some_batches_are_windows_and_all_know_their_size(task):
    shapes = set()
    for nimg in range(0, 160, 4):
        latents, noise, *_, size_index = task.batch(nimg, 4)
        assert latents.shape == noise.shape
        shapes.add(latents.shape[2:])
        assert set(size_index[:, 0]) <= set(range(len(SIZES)))
    assert (2, 2) in shapes
    assert shapes & {(4, 4), (4, 6)}


def test_some_captions_are_empty(task):
    empty = task.tokenizers[0]([""])[0]
    rows = np.concatenate([task.batch(nimg, 4)[5] for nimg in range(0, 80, 4)])
    share = (rows == empty).all(1).mean()
    assert 0.2 < share < 0.8


def test_starting_from_another_nets_export(task, runs):
    task.start_from(runs / "structure" / "unet.safetensors")
    wanted = load_tensors(runs / "structure" / "unet.safetensors")
    got = {p.name: p.asnumpy() for p in task.loss_net.unet.trainable_params()}
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[f"unet.{name}"].astype(np.float16), value)
    task.start_from(runs / "texture" / "unet.safetensors")


def test_only_the_unet_learns(task):
    assert {p.name.split(".")[0] for p in task.loss_net.trainable_params()} == {"unet"}
