"""What the generators are shown: their own noise levels, windows, empty captions; a shared start."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.checkpoint.store import load_tensors
from mindpangu.config import parse
from mindpangu.train.config import TrainConfig
from mindpangu.train.stats import read_stats
from tests.tiny import SIZES, training


@pytest.fixture(scope="module")
def task(runs):
    from mindpangu.train.diffusion import TrainDiffusion

    runtime.start("CPU")
    values = training("texture", runs, output_dir=str(runs / "structure"))
    values["diffusion"].update(t_max=500, crop_share=0.5, crop_latents=2, caption_dropout=0.5)
    return TrainDiffusion(parse(values, TrainConfig, "test"))


def test_what_a_step_works_is_counted(task, runs):
    """Three times a forward pass, whose FLOPs tests/train/test_plan.py holds against PyTorch's counter."""
    from mindpangu.cost.flops import unet_layers

    batch = task.batch(0, 4)
    height, width = batch[0].shape[2:]
    layers = unet_layers(task.task.unet, 4, height, width, task.tokenizers[0]([""]).shape[1])
    assert task.work(batch) == (4 * height * width, 3 * sum(layer.flops for layer in layers))
    line = read_stats(runs / "structure")[-1]
    sides = {height * width for height, width in ((4, 4), (4, 6))}
    assert min(sides) * 0.99 <= line["latents_per_sec"] / line["img_per_sec"] <= max(sides) * 1.01
    assert line["tflop_per_sec"] > 0
    assert line["mfu"] is None


def test_batches_are_functions_of_seed_and_images_seen(task):
    for a, b in zip(task.batch(64, 4), task.batch(64, 4)):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(task.batch(64, 4)[1], task.batch(68, 4)[1])


@pytest.mark.parametrize("part", ["vae", "texture"])
def test_a_process_makes_its_own_rows_and_they_are_those_of_the_whole_batch(runs, part):
    from mindpangu.train.run import make_task

    one = make_task(parse(training(part, runs, output_dir=str(runs / "structure")), TrainConfig, "test"))
    for nimg in (0, 8):
        whole = one.batch(nimg, 8)
        shares = [one.batch(nimg, 8, slice(first, first + 2)) for first in range(0, 8, 2)]
        for array, parts in zip(whole, zip(*shares)):
            np.testing.assert_array_equal(np.concatenate(parts), array)
            assert len({row.tobytes() for row in array}) > 1 or array.shape[1:] == (1,)  # but for the size's index


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


def test_the_loss_by_noise_level_has_the_same_noise_each_time_and_knows_its_own_levels(task):
    from mindpangu.train.diffusion import BINS, MEASURED

    weights = {p.name: p.asnumpy() for p in task.loss_net.trainable_params()}
    weights.update({name: 0 * weights[name] for name in ("unet.out.2.weight", "unet.out.2.bias")})
    by_split = task.by_noise_level(weights)
    assert by_split == task.by_noise_level(weights)
    assert set(by_split) == {"trained", "heldout"}
    losses = by_split["heldout"]
    assert [loss is None for loss in losses] == [i >= BINS // 2 for i in range(BINS)]
    # A net with zeroes at its end predicts v = 0: its loss is the mean square of v = alpha·noise − sigma·x0.
    latents, _ = task.measured["heldout"]
    assert len(latents) == MEASURED
    for number, loss in enumerate(losses[: BINS // 2]):
        rng = np.random.default_rng([task.seed, number, 6])
        t = rng.uniform(number * 1000 / BINS, (number + 1) * 1000 / BINS, len(latents))
        noise = rng.standard_normal(latents.shape, np.float32)
        alpha_bar = task.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        v = np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * latents
        assert loss == pytest.approx(float((v**2).mean()), rel=1e-3)


def test_noise_levels_from_a_gaussian_lie_in_the_middle_of_the_range(task):
    from dataclasses import replace

    uniform = np.concatenate([task.batch(nimg, 4)[4] for nimg in range(0, 400, 4)])
    whole, task.task = task.task, replace(task.task, t_sampling="logit_normal")
    gaussian = np.concatenate([task.batch(nimg, 4)[4] for nimg in range(0, 400, 4)])
    task.task = whole
    assert ((gaussian > 0) & (gaussian < 500)).all()
    assert gaussian.std() < 0.85 * uniform.std()
    logit = np.log(gaussian / (500 - gaussian))
    assert abs(logit.mean()) < 0.2
    assert logit.std() == pytest.approx(1, abs=0.15)
