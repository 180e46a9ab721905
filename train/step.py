"""One training step as one graph: loss, gradients, clipping by the global norm, AdamW."""

from __future__ import annotations

from mindspore import ParameterTuple, Tensor, nn, ops

from mindpangu.train.config import Optimizer

# Mapped over all parameters by HyperMap: a Python loop in `construct` takes MindSpore minutes to compile.
_half_square = ops.MultitypeFuncGraph("half_square")
_adamw = ops.MultitypeFuncGraph("adamw")


@_half_square.register("Tensor")
def _half_square_of_tensor(gradient: Tensor) -> Tensor:
    return ops.L2Loss()(gradient)


@_adamw.register(*["Function"] + ["Tensor"] * 11, "Bool")
def _adamw_of_tensor(adam, lr, beta1, beta2, eps, decay, zero, scale, weight, moment1, moment2, gradient, decays):
    decay = decay if decays else zero
    return adam(weight, moment1, moment2, lr, beta1, beta2, eps, decay, gradient * scale)


class TrainStep(nn.Cell):
    """construct(lr, eps, weight_decay, *batch) -> (loss, gradient norm before clipping); updates the parameters.

    The three scalars come from `schedule.adamw_coefficients`. `loss_net(*batch)` returns a scalar.
    """

    def __init__(self, loss_net: nn.Cell, optimizer: Optimizer) -> None:
        super().__init__(auto_prefix=False)
        self.loss_net = loss_net
        self.weights = ParameterTuple(loss_net.trainable_params())
        self.moment1 = self.weights.clone(prefix="moment1", init="zeros")
        self.moment2 = self.weights.clone(prefix="moment2", init="zeros")
        self.decays = tuple(len(p.shape) > 1 for p in self.weights)
        self.gradient = ops.value_and_grad(loss_net, None, self.weights)
        self.beta1, self.beta2 = Tensor(optimizer.betas[0]), Tensor(optimizer.betas[1])
        self.max_grad_norm = optimizer.max_grad_norm
        self.zero = Tensor(0.0)
        self.adam = ops.AdamWeightDecay()
        self.map = ops.HyperMap()

    def construct(self, lr: Tensor, eps: Tensor, weight_decay: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradient(*batch)
        norm = ops.sqrt(2.0 * ops.addn(self.map(_half_square, gradients)))
        scale = self.max_grad_norm / ops.maximum(norm, self.max_grad_norm)
        update = ops.partial(_adamw, self.adam, lr, self.beta1, self.beta2, eps, weight_decay, self.zero, scale)
        done = self.map(update, self.weights, self.moment1, self.moment2, gradients, self.decays)
        return ops.depend(loss, done), norm
