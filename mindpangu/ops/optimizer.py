"""The gradients' norm, AdamW and Muon, for all parameters of a net at once."""

from __future__ import annotations

from mindspore import Tensor, ops

from mindpangu.ops import cpu

# Mapped over all parameters by HyperMap: a Python loop in `construct` takes MindSpore minutes to compile.
_half_square = ops.MultitypeFuncGraph("half_square")
_adamw = ops.MultitypeFuncGraph("adamw")
_muon = ops.MultitypeFuncGraph("muon")
_map = ops.HyperMap()
_adam = ops.AdamWeightDecay()


@_half_square.register("Tensor")
def _half_square_of_tensor(gradient: Tensor) -> Tensor:
    return ops.L2Loss()(gradient)


@_adamw.register(*["Tensor"] * 10)
def _adamw_of_tensor(lr, beta1, beta2, eps, decay, scale, weight, moment1, moment2, gradient):
    decay = decay if len(weight.shape) > 1 else 0.0 * decay
    return _adam(weight, moment1, moment2, lr, beta1, beta2, eps, decay, _scaled(gradient, scale))


@_muon.register(*["Tensor"] * 7)
def _muon_of_tensor(lr, momentum, decay, scale, weight, moment, gradient):
    gradient = (1.0 - momentum) * _scaled(gradient, scale)
    moment = ops.assign(moment, momentum * moment + gradient)
    update = orthogonalize(ops.reshape(momentum * moment + gradient, (weight.shape[0], -1)))
    size = 0.2 * max(update.shape) ** 0.5
    return ops.assign(weight, weight - lr * (size * ops.reshape(update, weight.shape) + decay * weight))


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """The gradient times the scale, and 0 where that is 0, whatever the gradient."""
    return ops.select(scale > 0.0, gradient * scale, ops.zeros_like(gradient))


def _still(scale: Tensor, value: Tensor, otherwise: float) -> Tensor:
    """A coefficient, or where the scale is 0 the one with which nothing moves."""
    return ops.select(scale > 0.0, value, ops.full_like(value, otherwise))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Five Newton–Schulz steps (Muon, Jordan et al. 2024): the singular vectors of (m, n), singular values near 1."""
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / (ops.sqrt(ops.reduce_sum(x * x)) + 1e-12)
    for _ in range(5):
        gram = ops.matmul(x, x.T)
        x = 3.4445 * x + ops.matmul(-4.7750 * gram + 2.0315 * ops.matmul(gram, gram), x)
    return x.T if transposed else x


def norm(gradients: tuple[Tensor, ...]) -> Tensor:
    """The Euclidean norm of all gradients together, () float32."""
    if cpu.in_use("adamw"):
        return cpu.norm()(*gradients)[0]
    return ops.sqrt(2.0 * ops.addn(_map(_half_square, gradients)))


def adamw(
    coefficients: Tensor,
    scale: Tensor,
    weights: tuple[Tensor, ...],
    moment1: tuple[Tensor, ...],
    moment2: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
) -> Tensor:
    """One step in place by the gradients times `scale`; where that is 0 nothing changes.

    m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², w ← w - lr·(m/(√v + eps) + decay·w); tensors of one axis do not decay.
    Without bias correction: `train.schedule.adamw_coefficients` puts it into the coefficients.

    Args:
        coefficients: (5,) float32: lr, β₁, β₂, eps, weight decay.
        scale: () float32.
        weights, moment1, moment2: parameters, updated.
        gradients: one for each.

    Returns:
        The scale, when all is done.
    """
    if cpu.in_use("adamw"):
        together = ops.concat((coefficients, ops.reshape(scale, (1,))))
        return cpu.adamw()(together, *weights, *moment1, *moment2, *gradients)[0]
    lr, beta1, beta2, eps, decay = coefficients.unbind()
    lr, beta1, beta2 = _still(scale, lr, 0.0), _still(scale, beta1, 1.0), _still(scale, beta2, 1.0)
    done = _map(ops.partial(_adamw, lr, beta1, beta2, eps, decay, scale), weights, moment1, moment2, gradients)
    return ops.depend(scale, done)


def muon(
    coefficients: Tensor,
    scale: Tensor,
    weights: tuple[Tensor, ...],
    moment: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
) -> Tensor:
    """One step of Muon in place by the gradients times `scale`; where that is 0 nothing changes.

    m ← μm + (1-μ)g, then w ← w - lr·(0.2·√max(rows, columns)·O + decay·w) with O the orthogonalised μm + (1-μ)g, a
    kernel (O, I, h, w) taken for a matrix (O, I·h·w). The factor gives the update AdamW's size (arXiv 2502.16982), so
    that both use one learning rate.

    Args:
        coefficients: (3,) float32: lr, μ, weight decay.
        scale: () float32.
        weights, moment: parameters of two or more axes, updated.
        gradients: one for each.

    Returns:
        The scale, when all is done.
    """
    if cpu.in_use("muon"):
        together = ops.concat((coefficients, ops.reshape(scale, (1,)), cpu.settings(float(cpu.bf16()))))
        return cpu.muon()(together, *weights, *moment, *gradients)[0]
    lr, momentum, decay = coefficients.unbind()
    lr, momentum = _still(scale, lr, 0.0), _still(scale, momentum, 1.0)
    done = _map(ops.partial(_muon, lr, momentum, decay, scale), weights, moment, gradients)
    return ops.depend(scale, done)
