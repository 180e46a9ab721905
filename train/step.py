"""One training step as one graph: loss, gradients, clipping by the global norm, AdamW or Muon."""

from __future__ import annotations

from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as mops

from mindpangu import ops

MAX_NORM, LOSS_SCALE = 0, 1  # places among the coefficients
ADAMW, MUON = slice(2, 7), slice(7, 10)

_add_to = mops.MultitypeFuncGraph("add_to")
_take = mops.MultitypeFuncGraph("take")
_mean = mops.MultitypeFuncGraph("mean_over_ranks")
_map = mops.HyperMap()


@_add_to.register("Tensor", "Tensor")
def _add_to_tensor(total, gradient):
    return mops.assign_add(total, gradient)


@_take.register("Number", "Tensor", "Tensor")
def _take_of_tensor(parts, total, gradient):
    """The mean over all parts, of which the last comes now; the sum begins anew."""
    mean = (total + gradient) / parts
    return mops.depend(mean, mops.assign(total, mops.zeros_like(mops.depend(total, mean))))


@_mean.register("Function", "Number", "Tensor")
def _mean_of_tensor(sum_over_ranks, ranks, gradient):
    return sum_over_ranks(gradient) / ranks


class TrainStep(nn.Cell):
    """construct(coefficients, *batch) -> (loss, gradient norm before clipping); updates the parameters.

    The coefficients come from `schedule.coefficients`. `loss_net(*batch)` returns a scalar. With `muon`, parameters of
    two or more axes take Muon's step and the others AdamW's, each group clipped by its own norm. Gradients are those of
    the loss times the loss scale, which is taken out again; where their norm is no number, nothing is updated.

    With several `ranks` each works on its part of the batch, and loss and gradients are averaged over all. With several
    `parts`, `add` is called for all parts of a batch but the last, which completes the step.
    """

    add: Addition  # with several parts alone

    def __init__(self, loss_net: nn.Cell, muon: bool = False, ranks: int = 1, parts: int = 1) -> None:
        super().__init__(auto_prefix=False)
        self.loss_net, self.ranks, self.parts = loss_net, ranks, parts
        if ranks > 1:
            self.sum_over_ranks = mops.AllReduce()
        weights = loss_net.trainable_params()
        matrices = [p for p in weights if muon and p.ndim > 1]
        self.vectors = len(weights) - len(matrices)
        self.weights = ParameterTuple([p for p in weights if not muon or p.ndim <= 1] + matrices)
        self.moment1 = self.weights.clone(prefix="moment1", init="zeros")
        self.moment2 = ParameterTuple(self.weights[: self.vectors]).clone(prefix="moment2", init="zeros")
        self.gradient = mops.value_and_grad(self.scaled, None, self.weights)
        if parts > 1:
            self.sums = self.weights.clone(prefix="sum", init="zeros")
            self.add = Addition(self)

    @property
    def state(self) -> list[Parameter]:
        """What a checkpoint has to hold: weights and moments."""
        return [*self.weights, *self.moment1, *self.moment2]

    def scaled(self, scale: Tensor, *batch: Tensor) -> Tensor:
        """The loss times the loss scale."""
        return self.loss_net(*batch) * scale

    def construct(self, coefficients: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradient(coefficients[LOSS_SCALE], *batch)
        if self.parts > 1:
            gradients = _map(mops.partial(_take, self.parts), self.sums, gradients)
        if self.ranks > 1:
            loss = self.sum_over_ranks(loss) / self.ranks
            gradients = _map(mops.partial(_mean, self.sum_over_ranks, self.ranks), gradients)
        # Each group is clipped by its own norm; one that is no number leaves all as it is.
        maximum, loss_scale, n = coefficients[MAX_NORM], coefficients[LOSS_SCALE], self.vectors
        vectors, matrices = mops.zeros_like(loss), mops.zeros_like(loss)
        if n > 0:
            vectors = ops.norm(gradients[:n]) / loss_scale
        if n < len(self.weights):
            matrices = ops.norm(gradients[n:]) / loss_scale
        finite, none = mops.isfinite(vectors + matrices), mops.zeros_like(loss)
        moment1, weights = self.moment1, self.weights
        done = [loss]
        if n > 0:
            scale = mops.select(finite, maximum / mops.maximum(vectors, maximum) / loss_scale, none)
            done.append(ops.adamw(coefficients[ADAMW], scale, weights[:n], moment1[:n], self.moment2, gradients[:n]))
        if n < len(weights):
            scale = mops.select(finite, maximum / mops.maximum(matrices, maximum) / loss_scale, none)
            done.append(ops.muon(coefficients[MUON], scale, weights[n:], moment1[n:], gradients[n:]))
        return loss / loss_scale, mops.depend(mops.sqrt(vectors * vectors + matrices * matrices), tuple(done))


class Addition(nn.Cell):
    """construct(loss scale (), *batch) -> loss; adds the gradients of a part of a batch to the step's sums."""

    def __init__(self, step: TrainStep) -> None:
        super().__init__(auto_prefix=False)
        self.scaled, self.sums = step.scaled, step.sums
        self.gradient = mops.value_and_grad(step.scaled, None, step.weights)

    def construct(self, scale: Tensor, *batch: Tensor) -> Tensor:
        loss, gradients = self.gradient(scale, *batch)
        done = _map(_add_to, self.sums, gradients)
        return mops.depend(loss / scale, done)
