"""One training step as one graph: loss, gradients, clipping by the global norm, AdamW or Muon."""

from __future__ import annotations

from mindspore import ParameterTuple, Tensor, nn
from mindspore import ops as mops

from mindpangu import ops


class TrainStep(nn.Cell):
    """construct(coefficients, *batch) -> (loss, gradient norm before clipping); updates the parameters.

    The coefficients come from `schedule.coefficients`. `loss_net(*batch)` returns a scalar. With `muon`, parameters of
    two or more axes take Muon's step and the others AdamW's, each group clipped by its own norm. With several `ranks`
    each works on its part of the batch, and loss and gradients are averaged over all.
    """

    def __init__(self, loss_net: nn.Cell, muon: bool = False, ranks: int = 1) -> None:
        super().__init__(auto_prefix=False)
        self.loss_net, self.ranks = loss_net, ranks
        if ranks > 1:
            self.sum_over_ranks = mops.AllReduce()
        weights = loss_net.trainable_params()
        matrices = [p for p in weights if muon and p.ndim > 1]
        self.vectors = len(weights) - len(matrices)
        self.weights = ParameterTuple([p for p in weights if not muon or p.ndim <= 1] + matrices)
        self.moment1 = self.weights.clone(prefix="moment1", init="zeros")
        self.moment2 = ParameterTuple(self.weights[: self.vectors]).clone(prefix="moment2", init="zeros")
        self.gradient = mops.value_and_grad(loss_net, None, self.weights)

    def construct(self, coefficients: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradient(*batch)
        if self.ranks > 1:
            loss = self.sum_over_ranks(loss) / self.ranks
            averaged = []
            for one in gradients:
                averaged.append(self.sum_over_ranks(one) / self.ranks)
            gradients = tuple(averaged)
        n, moment1 = self.vectors, self.moment1
        norm = mops.zeros_like(loss)
        if n > 0:
            norm = ops.adamw(coefficients[:6], self.weights[:n], moment1[:n], self.moment2, gradients[:n])
        if n < len(self.weights):
            rest = ops.muon(coefficients[6:], self.weights[n:], moment1[n:], gradients[n:])
            norm = mops.sqrt(norm * norm + rest * rest)
        return loss, norm
