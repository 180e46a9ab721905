"""The loop: the optimiser's arithmetic, exact resume, refusals."""

from __future__ import annotations

import errno
import json
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu import runtime
from mindpangu.checkpoint.store import load_tensors
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import LRScheduleConfig, OptimizerConfig, TrainConfig
from mindpangu.train.schedule import coefficients, learning_rate
from tests.tiny import training


def config_in(folder, **changes) -> TrainConfig:
    return parse(training("vae", folder, **changes), TrainConfig, "test")


def states(folder):
    from mindpangu.train.state import states

    return states(folder)


class Line:
    """A task small enough to compile at once: fit a line to noisy points, which are functions of the images seen."""

    def __init__(self):
        from mindspore import Parameter, Tensor, nn

        class Loss(nn.Cell):
            def __init__(self):
                super().__init__()
                self.w = Parameter(Tensor(np.array([[0.5], [0.1]], np.float32)), name="w")
                self.b = Parameter(Tensor(np.zeros(1, np.float32)), name="b")

            def construct(self, x, y):
                error = (x * self.w.reshape((1, 2))).sum(1) + self.b - y
                return (error * error).mean()

        self.loss_net, self.exported = Loss(), {}

    def start_from(self, path):
        raise AssertionError("not asked for")

    def batch(self, nimg, count, part=slice(None)):
        rng = np.random.default_rng([7, nimg])
        x = rng.standard_normal((count, 2)).astype(np.float32)
        return x[part], (x @ [3.0, -1.0] + 0.5 + 0.1 * rng.standard_normal(count)).astype(np.float32)[part]

    def work(self, batch):
        return 0, 0.0

    def source(self, nimg, count, row):
        return f"point {nimg + row}"

    def samples(self, weights, path):
        path.write_bytes(b"drawn")

    def by_noise_level(self, weights):
        return {"trained": [0.5, None]}

    def export(self, weights, folder, card):
        self.exported = {**weights, "nimg": card["nimg"]}


def fit_line(config, until=None, task=None):
    from mindpangu.train.loop import fit

    runtime.start("CPU")
    task = task or Line()
    return fit(task, config, until), task


def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(tmp_path):
    changes = {"runner_config": {"images": 160}, "callbacks": {"log_images": 40, "checkpoint_images": 80}}
    whole, broken = config_in(tmp_path / "a", **changes), config_in(tmp_path / "b", **changes)
    _, a_task = fit_line(whole)
    fit_line(broken, until=80)
    with (broken.output_dir / "stats.jsonl").open("a") as stats:  # as a run leaves it that died after its checkpoint
        stats.write('{"nimg": 120, "loss": 999.0, "img_per_sec": 1.0}\n{"nimg": 1')
    state, b_task = fit_line(broken)
    assert (state.nimg, state.step) == (160, 40)
    a, b = (load_tensors(states(c.output_dir)[0]) for c in (whole, broken))
    assert a.keys() == b.keys()
    for name in a.keys() - {"progress"}:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("w", "b"):
        np.testing.assert_array_equal(a_task.exported[name], b_task.exported[name])
    lines = [json.loads(line) for line in (broken.output_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [40, 80, 120, 160]
    assert all(np.isfinite(line["loss"]) and line["loss"] < 999 and line["img_per_sec"] > 0 for line in lines)
    assert (broken.output_dir / "samples-00000160.png").read_bytes() == b"drawn"


def test_the_loop_learns(tmp_path):
    """The averaged weights come near the line that made the points."""
    config = config_in(
        tmp_path,
        runner_config={"images": 1600},
        lr_schedule={"learning_rate": 0.1, "final_ratio": 0.01},
        optimizer={"weight_decay": 0.0},
        ema_half_life_images=100,
        callbacks={"log_images": 800, "checkpoint_images": 1600, "sample_images": 1600},
    )
    _, task = fit_line(config)
    np.testing.assert_allclose(task.exported["w"].ravel(), [3.0, -1.0], atol=0.05)
    np.testing.assert_allclose(task.exported["b"], 0.5, atol=0.05)


class Spoiled(Line):
    """The line, but the targets of the batches at `bad` images are all `value`."""

    def __init__(self, bad, value=np.inf):
        super().__init__()
        self.bad, self.value = bad, value

    def batch(self, nimg, count, part=slice(None)):
        x, y = super().batch(nimg, count, part)
        return x, np.full_like(y, self.value) if nimg in self.bad else y


@pytest.mark.parametrize("operators", ["off", "fp32"])
@pytest.mark.parametrize("type_", ["adamw", "muon"])
def test_a_batch_that_gives_no_numbers_is_as_if_it_had_not_been(tmp_path, monkeypatch, operators, type_):
    """Weights and moments after 12 batches, two of them spoiled, are those of the ten others alone."""
    monkeypatch.setenv(runtime.CPU_OPERATORS, operators)

    class Others(Line):
        def batch(self, nimg, count, part=slice(None)):
            again = {8: 12, 12: 20, 16: 24, 20: 28, 24: 32, 28: 36, 32: 40, 36: 44}
            return super().batch(again.get(nimg, nimg), count, part)

    rate = {"lr_schedule": {"type": "constant", "warmup_images": 0}, "optimizer": {"type": type_}}
    spoiled = config_in(tmp_path / "a", runner_config={"images": 48}, **rate)
    clean = config_in(tmp_path / "b", runner_config={"images": 40}, **rate)
    state, _ = fit_line(spoiled, task=Spoiled({8, 16}))
    fit_line(clean, task=Others())
    assert (state.nimg, state.step, state.skipped) == (48, 10, 2)
    a, b = (load_tensors(states(c.output_dir)[0]) for c in (spoiled, clean))
    for name in a.keys() - {"progress"}:
        if not name.startswith("average"):  # the images seen are in its half-life
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    line = json.loads((spoiled.output_dir / "stats.jsonl").read_text().splitlines()[-1])
    assert line["skipped"] == 2
    assert np.isfinite(line["loss"])
    lines = [json.loads(line) for line in (spoiled.output_dir / "left-out-0.jsonl").read_text().splitlines()]
    assert lines == [
        {"nimg": nimg, "images": 4, "not_finite": [f"point {nimg + row}" for row in range(4)]} for nimg in (8, 16)
    ]
    assert not (clean.output_dir / "left-out-0.jsonl").exists()


def test_too_many_in_a_row_end_the_run_and_leave_checkpoint_and_culprit(tmp_path):
    config = config_in(tmp_path, runner_wrapper={"max_skips": 2}, callbacks={"checkpoint_images": 4})
    fit_line(config, until=4)
    (before,) = states(config.output_dir)
    content = before.read_bytes()
    task = Spoiled({4, 8, 12})
    with pytest.raises(UserError, match=r"3 steps in a row .* up to 16 images.*culprit-0.*lower lr_schedule\.learn"):
        fit_line(config, task=task)
    assert states(config.output_dir) == [before]
    assert before.read_bytes() == content
    culprit = load_tensors(config.output_dir / "culprit-0.safetensors")
    for i, array in enumerate(task.batch(12, 4)):
        np.testing.assert_array_equal(culprit[f"batch.{i}"], array)


def test_the_loss_scale_falls_until_gradients_are_numbers_and_rises_again(tmp_path):
    """Targets of 1e15: the squares of their gradients overflow in float32 from a scale of about 2**12 on."""
    scale = {"scale_sense": {"loss_scale_value": 2.0**30, "scale_factor": 4.0, "scale_window": 3}, "max_skips": 12}
    changes = {"runner_config": {"images": 100}, "callbacks": {"log_images": 4}}
    config = config_in(tmp_path, runner_wrapper=scale, **changes)
    state, _ = fit_line(config, task=Spoiled(set(range(0, 100, 4)), 1e15))
    lines = [json.loads(line) for line in (config.output_dir / "stats.jsonl").read_text().splitlines()]
    scales = [line["loss_scale"] for line in lines]
    first = scales.index(min(scales))
    assert scales[: first + 1] == [2.0 ** (28 - 2 * i) for i in range(first + 1)]
    assert 2.0**8 <= min(scales) <= 2.0**14
    assert max(scales[first:]) == 4 * min(scales)
    assert state.skipped + state.step == 25
    assert state.step >= 8
    assert [line["loss"] is None for line in lines][:5] == [True] * 5
    assert np.isfinite(lines[-1]["loss"] or lines[-2]["loss"])


def test_any_loss_scale_and_any_number_of_parts_give_the_same_steps(tmp_path):
    """Powers of two change nothing in float32 at all; summing over parts rounds otherwise."""
    finals = []
    whole = {"runner_config": {"images": 80, "batch_size": 8}}
    for name, changes in {
        "plain": whole,
        "scaled": {**whole, "runner_wrapper": {"scale_sense": {"loss_scale_value": 1024.0, "scale_window": 4}}},
        "in parts": {"runner_config": {"images": 80, "batch_size": 8, "gradient_accumulation_steps": 4}},
    }.items():
        config = config_in(tmp_path / name, **changes)
        state, _ = fit_line(config)
        finals.append((state, load_tensors(states(config.output_dir)[0])))
    (_, plain), (scaled_state, scaled), (_, parts) = finals
    assert scaled_state.loss_scale == 1024 * 2**2
    for name in plain.keys() - {"progress"}:
        np.testing.assert_array_equal(plain[name], scaled[name], err_msg=name)
        np.testing.assert_allclose(plain[name], parts[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_damaged_state_is_said_and_the_one_before_is_taken(tmp_path, capsys):
    config = config_in(tmp_path, runner_config={"images": 24}, callbacks={"checkpoint_images": 8})
    fit_line(config)
    newest, older = states(config.output_dir)
    assert [path.stem for path in (newest, older)] == ["state-000000000024", "state-000000000016"]
    whole = load_tensors(newest)
    newest.write_bytes(newest.read_bytes()[:-8] + b"12345678")
    fit_line(config)
    assert "SHA-256 check failed" in capsys.readouterr().err
    again = load_tensors(newest)
    for name in whole.keys() - {"progress"}:
        np.testing.assert_array_equal(whole[name], again[name], err_msg=name)
    for path in (newest, older):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 states is whole"):
        fit_line(config)


def test_a_full_disk_leaves_the_older_states(tmp_path, monkeypatch):
    config = config_in(tmp_path, runner_config={"images": 24}, callbacks={"checkpoint_images": 8})
    fit_line(config, until=16)
    before = {path: path.read_bytes() for path in states(config.output_dir)}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        fit_line(config)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in states(config.output_dir)} == before
    assert not list(config.output_dir.glob("*.part"))
    state, _ = fit_line(config)
    assert state.nimg == 24


@pytest.mark.parametrize("operators", ["off", "fp32"])
def test_the_step_is_adamw_with_bias_correction_and_clipping(operators, monkeypatch):
    """Three steps on a quadratic against AdamW written out in float64, MindSpore's optimizer and ours."""
    runtime.start("CPU")
    monkeypatch.setenv(runtime.CPU_OPERATORS, operators)
    from mindspore import Parameter, Tensor, nn

    from mindpangu.train.step import TrainStep

    class Quadratic(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = Parameter(Tensor(np.array([[3.0, -2.0]], np.float32)), name="w")
            self.b = Parameter(Tensor(np.array([5.0], np.float32)), name="b")

        def construct(self, scale):
            return scale * ((self.w**2).sum() + (self.b**2).sum())

    optimizer = OptimizerConfig(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, max_grad_norm=4.0)
    net, lr = Quadratic(), 0.05
    step = TrainStep(net)
    p = {"w": np.array([[3.0, -2.0]]), "b": np.array([5.0])}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(value) for k, value in p.items()}
    for k in range(1, 4):
        scale = 0.5 if k == 2 else 1.0
        _, norm = step(Tensor(coefficients(optimizer, lr, k)), Tensor(scale))
        gradient = {name: 2 * scale * value for name, value in p.items()}
        expected_norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        assert float(norm.asnumpy()) == pytest.approx(expected_norm, rel=1e-5)
        for name, value in p.items():
            g = gradient[name] * min(1.0, optimizer.max_grad_norm / expected_norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            m_hat, v_hat = m[name] / (1 - 0.9**k), v[name] / (1 - 0.95**k)
            decay = optimizer.weight_decay if name == "w" else 0.0
            p[name] = value - lr * (m_hat / (np.sqrt(v_hat) + optimizer.eps) + decay * value)
    np.testing.assert_allclose(net.w.asnumpy(), p["w"], rtol=2e-5)
    np.testing.assert_allclose(net.b.asnumpy(), p["b"], rtol=2e-5)


def test_learning_rate_warms_up_then_falls():
    cosine = LRScheduleConfig(learning_rate=1.0, warmup_images=100, final_ratio=0.1)
    assert learning_rate(cosine, 0, 1100) == pytest.approx(0.01)
    assert learning_rate(cosine, 100, 1100) == pytest.approx(1.0)
    assert learning_rate(cosine, 600, 1100) == pytest.approx(0.55)
    assert learning_rate(cosine, 1100, 1100) == pytest.approx(0.1)
    constant = LRScheduleConfig(learning_rate=0.3, type="constant", cooldown_images=200)
    assert learning_rate(constant, 800, 1000) == 0.3
    assert learning_rate(constant, 900, 1000) == pytest.approx(0.15)
    assert learning_rate(LRScheduleConfig(learning_rate=0.3, type="constant"), 999, 1000) == 0.3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"clip": None, "vae": None},
            "exactly one of vae, clip, text_distillation, diffusion, bridge is needed",
        ),
        ({"runner_config": {"images": 0}}, "must both be positive"),
        ({"lr_schedule": {"cooldown_images": 8}}, "belong to type constant"),
        ({"lr_schedul": 1}, "did you mean 'lr_schedule'"),
        ({"data": {"sizes": ["12"]}}, "WIDTHxHEIGHT"),
        ({"context": {"device_target": "GPU"}}, "allowed: auto, CPU, Ascend"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        config_in(tmp_path, **change)


def test_a_size_the_model_does_not_know(tmp_path):
    from mindpangu.train.run import run

    values = training("structure", tmp_path, data={"sizes": ["64x64"], "size_weights": [1.0]})
    with pytest.raises(UserError, match=r"not among diffusion\.sizes"):
        run(parse(values, TrainConfig, "test"))


@pytest.mark.parametrize("operators", runtime.cpu_precisions())
@pytest.mark.parametrize("shape", [(4, 4), (8, 3), (3, 2, 3, 3)])
def test_muon_moves_along_the_singular_vectors_and_vectors_move_by_adamw(operators, shape, monkeypatch):
    """Two steps on <direction, w> against Newton–Schulz in float64; tall, wide, and a kernel."""
    runtime.start("CPU")
    monkeypatch.setenv(runtime.CPU_OPERATORS, operators)
    from mindspore import Parameter, Tensor, nn

    from mindpangu.train.step import TrainStep

    rng = np.random.default_rng(sum(shape))
    start, directions = rng.normal(size=shape), rng.normal(size=(2, *shape))

    class Linear(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = Parameter(Tensor(start.astype(np.float32)), name="w")
            self.b = Parameter(Tensor(np.zeros(3, np.float32)), name="b")

        def construct(self, direction):
            return (direction * self.w).sum() + self.b.sum()

    optimizer, lr = OptimizerConfig(type="muon", momentum=0.9, weight_decay=0.1, max_grad_norm=1e9), 0.1
    net, w, m = Linear(), start.copy(), np.zeros(shape)
    step = TrainStep(net, muon=True)
    for k, direction in enumerate(directions, 1):
        _, norm = step(Tensor(coefficients(optimizer, lr, k)), Tensor(direction.astype(np.float32)))
        assert float(norm.asnumpy()) == pytest.approx(np.sqrt((direction**2).sum() + 3), rel=1e-5)
        m = 0.9 * m + 0.1 * direction
        x = (0.9 * m + 0.1 * direction).reshape(shape[0], -1)
        x /= np.linalg.norm(x)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        assert 0.5 < np.linalg.svd(x, compute_uv=False).min() <= np.linalg.svd(x, compute_uv=False).max() < 1.3
        w -= lr * (0.2 * np.sqrt(max(x.shape)) * x.reshape(shape) + 0.1 * w)
    tolerance = 2e-3 if operators == "bf16" else 1e-5
    np.testing.assert_allclose(net.w.asnumpy(), w, atol=tolerance * np.abs(w).max())
    np.testing.assert_allclose(net.b.asnumpy(), -2 * lr, rtol=1e-4)


def test_the_average_that_is_exported_has_seen_the_last_step(tmp_path):
    """It is moved every eight steps; what is trained after that counts, also in a training of fewer."""
    config = config_in(tmp_path, runner_config={"images": 12}, lr_schedule={"type": "constant", "warmup_images": 0})
    _, task = fit_line(config)
    first, last = Line().loss_net.w.asnumpy(), task.loss_net.w.asnumpy()
    moved = (task.exported["w"] - first) / (last - first)
    assert (moved > 0.5).all() and (moved <= 1).all()
    state = load_tensors(states(config.output_dir)[0])
    np.testing.assert_array_equal(state["average.w"], first)  # what is resumed is not what is exported


def test_a_checkpoint_is_written_while_the_net_trains_on_and_holds_what_was_then(tmp_path, monkeypatch):
    from mindpangu.train import loop

    class Noting(Line):
        asked = 0

        def batch(self, nimg, count, part=slice(None)):
            Noting.asked = nimg
            return super().batch(nimg, count, part)

    changes = {"runner_config": {"images": 32}, "callbacks": {"log_images": 8, "checkpoint_images": 16}}
    quiet = config_in(tmp_path / "quiet", **changes)
    fit_line(quiet)
    save, asked = loop.save_state, []

    def slow(folder, state, *rest):
        ends = time.monotonic() + 20
        while state.nimg == 16 and Noting.asked < 24 and time.monotonic() < ends:
            time.sleep(0.001)
        asked.append(Noting.asked)
        save(folder, state, *rest)

    monkeypatch.setattr(loop, "save_state", slow)
    config = config_in(tmp_path / "slow", **changes)
    fit_line(config, task=Noting())
    assert asked[0] >= 24  # two batches on
    for one, other in zip(states(config.output_dir), states(quiet.output_dir)):
        assert one.name == other.name
        state, wanted = load_tensors(one), load_tensors(other)
        for name in wanted.keys() - {"progress"}:
            np.testing.assert_array_equal(state[name], wanted[name], err_msg=name)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_its_own_words(tmp_path, monkeypatch):
    from mindpangu.train import loop

    def full(*_):
        raise UserError("state: the disk is full")

    monkeypatch.setattr(loop, "save_state", full)
    config = config_in(tmp_path, runner_config={"images": 800}, callbacks={"log_images": 800, "checkpoint_images": 8})
    task = Line()
    with pytest.raises(UserError, match="the disk is full"):
        fit_line(config, task=task)
    assert not task.exported


def test_a_checkpoint_at_a_skipped_step_is_written_at_the_next_and_at_the_end(tmp_path):
    changes = {"runner_config": {"images": 16}, "callbacks": {"log_images": 4, "checkpoint_images": 8}}
    fit_line(config_in(tmp_path / "a", **changes), task=Spoiled({4}))
    assert states(tmp_path / "a" / "vae")[-1].stem == "state-000000000012"
    fit_line(config_in(tmp_path / "b", **changes), task=Spoiled({12}))
    assert states(tmp_path / "b" / "vae")[0].stem == "state-000000000016"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"compositions": 0.5}}, "data"),
        ({"context": {"seed": 4}}, r"context\.seed"),
        ({"lr_schedule": {"learning_rate": 0.5}}, "lr_schedule"),
        ({"optimizer": {"weight_decay": 0.5}}, "optimizer"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path, changes, named):
    """A finished run would not be trained any further, and its sidecar would tell what did not happen."""
    fit_line(config_in(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "vae").glob("*.json")}
    with pytest.raises(UserError, match=f"holds a finished run of other settings .{named}"):
        fit_line(config_in(tmp_path, **changes))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "vae").glob("*.json")}
    fit_line(config_in(tmp_path))  # its own settings: nothing is left to train
    more = {"runner_config": {"images": 32}, "lr_schedule": {"learning_rate": 0.5}}
    assert fit_line(config_in(tmp_path, **more))[0].nimg == 32  # and it may go on, with another learning rate


def test_lines_of_stats_that_are_torn_are_passed_over(tmp_path):
    from mindpangu.train.stats import read_stats

    config = config_in(tmp_path)
    fit_line(config)
    with (config.output_dir / "stats.jsonl").open("ab") as stats:
        stats.write(b'garbage\n\0\0\0\n[1]\n{"nimg": "x"}\n{"nimg": 99}\n{"nimg": 1')
    assert [line["nimg"] for line in read_stats(config.output_dir)] == [8, 16, 99]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=40), most=st.integers(1, 8))
def test_buckets_hold_every_tensor_once_in_order_and_none_is_much_larger_than_its_share(sizes, most):
    from mindpangu.parallel.ranks import buckets

    found = buckets(sizes, most)
    assert len(found) <= most
    assert [i for one in found for i in range(len(sizes))[one]] == list(range(len(sizes)))
    assert max(sum(sizes[one]) for one in found) <= sum(sizes) / most + max(sizes)
