"""One training step as one graph: loss, gradients, clipping by the global norm, AdamW."""

from __future__ import annotations

from mindspore import ParameterTuple, Tensor, nn, ops

from mindpangu.train.config import Optimizer


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
        self.beta1 = Tensor(optimizer.betas[0])
        self.beta2 = Tensor(optimizer.betas[1])
        self.max_grad_norm = optimizer.max_grad_norm
        self.adam = ops.AdamWeightDecay()
        self.zero = Tensor(0.0)
        self.l2_loss = ops.L2Loss()

    def construct(self, lr: Tensor, eps: Tensor, weight_decay: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradient(*batch)
        norm = ops.sqrt(2.0 * ops.addn([self.l2_loss(g) for g in gradients]))
        scale = self.max_grad_norm / ops.maximum(norm, self.max_grad_norm)
        for i in range(len(self.weights)):
            decay = weight_decay if self.decays[i] else self.zero
            g = gradients[i] * scale
            lr = ops.depend(
                lr,
                self.adam(
                    self.weights[i],
                    self.moment1[i],
                    self.moment2[i],
                    lr,
                    self.beta1,
                    self.beta2,
                    eps,
                    decay,
                    g,
                ),
            )
        return ops.depend(loss, lr), norm
