"""AdamW with clipping by the global norm, for all parameters of a net at once."""

from __future__ import annotations

from mindspore import Tensor, ops

from mindpangu.ops import cpu

# Mapped over all parameters by HyperMap: a Python loop in `construct` takes MindSpore minutes to compile.
_half_square = ops.MultitypeFuncGraph("half_square")
_adamw = ops.MultitypeFuncGraph("adamw")
_map = ops.HyperMap()
_adam = ops.AdamWeightDecay()


@_half_square.register("Tensor")
def _half_square_of_tensor(gradient: Tensor) -> Tensor:
    return ops.L2Loss()(gradient)


@_adamw.register(*["Tensor"] * 10)
def _adamw_of_tensor(lr, beta1, beta2, eps, decay, scale, weight, moment1, moment2, gradient):
    decay = decay if len(weight.shape) > 1 else 0.0 * decay
    return _adam(weight, moment1, moment2, lr, beta1, beta2, eps, decay, gradient * scale)


def adamw(
    coefficients: Tensor,
    weights: tuple[Tensor, ...],
    moment1: tuple[Tensor, ...],
    moment2: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
) -> Tensor:
    """Scale the gradients down to the maximal norm together, then take one step in place.

    m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², w ← w - lr·(m/(√v + eps) + decay·w); tensors of one axis do not decay.
    Without bias correction: `train.schedule.adamw_coefficients` puts it into the coefficients.

    Args:
        coefficients: (6,) float32: lr, β₁, β₂, eps, weight decay, maximal norm.
        weights, moment1, moment2: parameters, updated.
        gradients: one for each.

    Returns:
        () float32, the norm of all gradients before clipping.
    """
    if cpu.in_use():
        return cpu.adamw()(coefficients, *weights, *moment1, *moment2, *gradients)[0]
    lr, beta1, beta2, eps, decay, maximum = coefficients.unbind()
    norm = ops.sqrt(2.0 * ops.addn(_map(_half_square, gradients)))
    scale = maximum / ops.maximum(norm, maximum)
    update = ops.partial(_adamw, lr, beta1, beta2, eps, decay, scale)
    done = _map(update, weights, moment1, moment2, gradients)
    return ops.depend(norm, done)
