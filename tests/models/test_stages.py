"""A UNet cut into stages, worked off with micro-batches in a pipeline's order, is the whole UNet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mindpangu.parallel.pipeline import cut, simulate
from mindpangu.spec import UNetSpec
from mindpangu.train.plan import blocks

SPEC = UNetSpec(
    in_channels=4,
    out_channels=4,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    transformer_depth=(0, 1),
    head_dim=16,
    context_dim=12,
    vector_dim=10,
    norm_groups=4,
)
TOKENS, SIDE, MICRO, MICRO_BATCHES = 5, 8, 2, 4


def make(spec):
    from mindspore import Tensor

    from mindpangu.models.unet import UNet

    rng = np.random.default_rng(1)
    unet = UNet(spec)
    for parameter in unet.trainable_params():
        parameter.set_data(Tensor((0.2 * rng.standard_normal(parameter.shape)).astype(np.float32)))
    return unet


def inputs(spec, count):
    rng = np.random.default_rng(0)
    shapes = {
        "x": (count, spec.in_channels, SIDE, SIDE),
        "context": (count, TOKENS, spec.context_dim),
        "target": (count, spec.out_channels, SIDE, SIDE),
        "vector": (count, spec.vector_dim),
    }
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**made, "t": rng.uniform(0, 999, count).astype(np.float32)}


def whole(unet, batch):
    """Loss and every gradient, by name, of the uncut net."""
    from mindspore import Tensor, value_and_grad

    given = {name: Tensor(value) for name, value in batch.items()}

    def loss(x, t, context, vector, target):
        return ((unet(x, t, context, vector) - target) ** 2).mean()

    weights = unet.trainable_params()
    told = [given[name] for name in ("x", "t", "context", "vector", "target")]
    value, gradients = value_and_grad(loss, None, weights)(*told)
    return float(value), {p.name: g.asnumpy() for p, g in zip(weights, gradients)}


class Device:
    """One stage, as a device has it: its own weights' gradients, and what it keeps of micro-batches in flight."""

    def __init__(self, stage):
        from mindspore import ParameterTuple, ops

        self.stage, self.weights = stage, ParameterTuple(stage.own)
        self.back = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)(stage, self.weights)
        self.kept, self.sums = {}, {p.name: 0.0 for p in stage.own}

    def forward(self, k, context, state):
        state = [one.copy() for one in state]
        self.kept[k] = (context, state)
        return self.stage(context, *state)

    def backward(self, k, wanted):
        """From the gradients of what it sent on to those of what it was sent."""
        context, state = self.kept.pop(k)
        (_, *sent_back), gradients = self.back(context, *state, wanted)
        for p, g in zip(self.weights, gradients):
            self.sums[p.name] = self.sums[p.name] + g.asnumpy()
        return sent_back


def pipelined(unet, batch, stages, kind):
    """The same, stage by stage in the order of the simulated schedule; also the most that each stage ever kept."""
    from mindspore import Tensor, value_and_grad

    from mindpangu.models.stages import cut_into_stages

    costs = [sum(layer.flops for layer in piece) for piece in blocks(unet.spec, MICRO, SIDE, TOKENS)]
    devices = [Device(stage) for stage in cut_into_stages(unet, cut(costs, stages))]
    timeline = simulate(kind, [1.0] * stages, [2.0] * stages, MICRO_BATCHES)
    parts = [{n: Tensor(v[k * MICRO : (k + 1) * MICRO]) for n, v in batch.items()} for k in range(MICRO_BATCHES)]
    compare = value_and_grad(lambda out, target: ((out - target) ** 2).mean() / MICRO_BATCHES)
    states = {(0, k): (part["x"], part["t"], part["vector"]) for k, part in enumerate(parts)}
    wanted, total, most = {}, 0.0, [0] * stages
    for work in timeline.work:
        s, k = work.stage, work.micro_batch
        if work.forward:
            sent = devices[s].forward(k, parts[k]["context"], states.pop((s, k)))
            most[s] = max(most[s], len(devices[s].kept))
            if s < stages - 1:
                states[s + 1, k] = sent
            else:
                value, gradient = compare(sent[0], parts[k]["target"])
                total += float(value)
                wanted[s, k] = (gradient,)
        else:
            wanted[s - 1, k] = tuple(devices[s].backward(k, wanted.pop((s, k))))
    assert not states
    assert most == list(timeline.held)
    gradients = {}
    for device in devices:
        assert not device.kept
        assert not gradients.keys() & device.sums.keys()  # every weight lies in one stage
        gradients.update(device.sums)
    return total, gradients


@pytest.mark.parametrize(("stages", "kind"), [(2, "gpipe"), (4, "1f1b"), (8, "1f1b")])
def test_stage_by_stage_with_micro_batches_is_the_whole_net(uncompiled, stages, kind):
    """Loss and every gradient, to 1e-5 of the largest."""
    unet = make(SPEC)
    batch = inputs(SPEC, MICRO * MICRO_BATCHES)
    loss, gradients = whole(unet, batch)
    cut_loss, cut_gradients = pipelined(unet, batch, stages, kind)
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    assert cut_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        allowed = 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(cut_gradients[name], gradient, rtol=0, atol=allowed, err_msg=name)


@pytest.mark.parametrize("depths", [(0, 1), (1, 2)])
def test_the_planner_and_the_nets_know_the_same_pieces(depths):
    from mindpangu.models.stages import cells_of, pieces

    spec = replace(SPEC, transformer_depth=depths)
    unet = make(spec)
    planned = blocks(spec, MICRO, SIDE, TOKENS)
    assert len(planned) == len(pieces(spec))
    for name, layers in zip(pieces(spec), planned):
        held = sum(p.size for cell in cells_of(unet, name) for p in cell.trainable_params())
        assert held == sum(layer.parameters for layer in layers), name


def test_mindspores_own_pipeline_is_told_of_every_cell():
    from mindpangu.models.stages import assign_stages

    unet = make(SPEC)
    assign_stages(unet, [0, 4, 7])
    assert [unet.time_embed[0].pipeline_stage, unet.input_blocks[2][0].pipeline_stage] == [0, 0]
    assert unet.middle_block[0].pipeline_stage == 1
    assert unet.out[2].pipeline_stage == 2


def test_what_is_computed_again_is_the_same():
    from mindspore import nn
    from mindspore import ops as mops

    from mindpangu import runtime
    from mindpangu.models.stages import recompute

    class Gradients(nn.Cell):
        def __init__(self, unet):
            super().__init__(auto_prefix=False)
            self.unet = unet
            self.gradient = mops.value_and_grad(self.loss, None, unet.trainable_params())

        def loss(self, x, t, context, vector, target):
            return ((self.unet(x, t, context, vector) - target) ** 2).mean()

        def construct(self, *told):
            return self.gradient(*told)

    runtime.start("CPU")
    from mindspore import Tensor

    batch = inputs(SPEC, 2)
    told = [Tensor(batch[name]) for name in ("x", "t", "context", "vector", "target")]
    plain, again = make(SPEC), make(SPEC)
    recompute(again)
    loss, gradients = Gradients(plain)(*told)
    loss_again, gradients_again = Gradients(again)(*told)
    assert float(loss) == float(loss_again)
    for one, other in zip(gradients, gradients_again):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-6, atol=1e-7)
