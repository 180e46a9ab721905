"""One training step as one graph: loss, gradients, clipping by the global norm, AdamW."""

from __future__ import annotations

from mindspore import ParameterTuple, Tensor, nn
from mindspore import ops as mops

from mindpangu import ops


class TrainStep(nn.Cell):
    """construct(coefficients (6,), *batch) -> (loss, gradient norm before clipping); updates the parameters.

    The coefficients come from `schedule.adamw_coefficients`. `loss_net(*batch)` returns a scalar.
    """

    def __init__(self, loss_net: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.loss_net = loss_net
        self.weights = ParameterTuple(loss_net.trainable_params())
        self.moment1 = self.weights.clone(prefix="moment1", init="zeros")
        self.moment2 = self.weights.clone(prefix="moment2", init="zeros")
        self.gradient = mops.value_and_grad(loss_net, None, self.weights)

    def construct(self, coefficients: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradient(*batch)
        return loss, ops.adamw(coefficients, self.weights, self.moment1, self.moment2, gradients)
