"""The loop: the optimiser's arithmetic, exact resume, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.checkpoint.store import load_tensors
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import LRSchedule, Optimizer, TrainConfig
from mindpangu.train.schedule import coefficients, learning_rate
from tests.tiny import training


def config_in(folder, **changes) -> TrainConfig:
    return parse(training("vae", folder, **changes), TrainConfig, "test")


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

    def batch(self, nimg, count):
        rng = np.random.default_rng([7, nimg])
        x = rng.standard_normal((count, 2)).astype(np.float32)
        return x, (x @ [3.0, -1.0] + 0.5 + 0.1 * rng.standard_normal(count)).astype(np.float32)

    def samples(self, weights, path):
        path.write_bytes(b"drawn")

    def export(self, weights, folder, card):
        self.exported = {**weights, "nimg": card["nimg"]}


def fit_line(config, until=None):
    from mindpangu.train.loop import fit

    runtime.start("CPU")
    task = Line()
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
    a, b = (load_tensors(c.output_dir / "state.safetensors") for c in (whole, broken))
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


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = config_in(tmp_path, callbacks={"checkpoint_images": 4})
    fit_line(config, until=4)
    before = (config.output_dir / "state.safetensors").read_bytes()
    wild = config_in(tmp_path, lr_schedule={"learning_rate": 1e30}, callbacks={"checkpoint_images": 100})
    with pytest.raises(UserError, match=r"lower lr_schedule\.learning_rate"):
        fit_line(wild)
    assert (config.output_dir / "state.safetensors").read_bytes() == before


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

    optimizer = Optimizer(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, max_grad_norm=4.0)
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
    cosine = LRSchedule(learning_rate=1.0, warmup_images=100, final_ratio=0.1)
    assert learning_rate(cosine, 0, 1100) == pytest.approx(0.01)
    assert learning_rate(cosine, 100, 1100) == pytest.approx(1.0)
    assert learning_rate(cosine, 600, 1100) == pytest.approx(0.55)
    assert learning_rate(cosine, 1100, 1100) == pytest.approx(0.1)
    constant = LRSchedule(learning_rate=0.3, type="constant", cooldown_images=200)
    assert learning_rate(constant, 800, 1000) == 0.3
    assert learning_rate(constant, 900, 1000) == pytest.approx(0.15)
    assert learning_rate(LRSchedule(learning_rate=0.3, type="constant"), 999, 1000) == 0.3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": None, "vae": None}, "exactly one of vae, clip, diffusion and bridge"),
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


@pytest.mark.parametrize("operators", ["off", "fp32", "bf16"])
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

    optimizer, lr = Optimizer(type="muon", momentum=0.9, weight_decay=0.1, max_grad_norm=1e9), 0.1
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
