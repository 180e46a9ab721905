"""AdamW and Muon with clipping by the global norm, for all parameters of a net at once."""

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
    return _adam(weight, moment1, moment2, lr, beta1, beta2, eps, decay, gradient * scale)


@_muon.register(*["Tensor"] * 7)
def _muon_of_tensor(lr, momentum, decay, scale, weight, moment, gradient):
    gradient = (1.0 - momentum) * scale * gradient
    moment = ops.assign(moment, momentum * moment + gradient)
    update = orthogonalize(ops.reshape(momentum * moment + gradient, (weight.shape[0], -1)))
    size = 0.2 * max(update.shape) ** 0.5
    return ops.assign(weight, weight - lr * (size * ops.reshape(update, weight.shape) + decay * weight))


def _norm_and_scale(gradients: tuple[Tensor, ...], maximum: Tensor) -> tuple[Tensor, Tensor]:
    norm = ops.sqrt(2.0 * ops.addn(_map(_half_square, gradients)))
    return norm, maximum / ops.maximum(norm, maximum)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Five Newton–Schulz steps (Muon, Jordan et al. 2024): the singular vectors of (m, n), singular values near 1."""
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / (ops.sqrt(ops.reduce_sum(x * x)) + 1e-12)
    for _ in range(5):
        gram = ops.matmul(x, x.T)
        x = 3.4445 * x + ops.matmul(-4.7750 * gram + 2.0315 * ops.matmul(gram, gram), x)
    return x.T if transposed else x


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
    if cpu.in_use("adamw"):
        return cpu.adamw()(coefficients, *weights, *moment1, *moment2, *gradients)[0]
    lr, beta1, beta2, eps, decay, maximum = coefficients.unbind()
    norm, scale = _norm_and_scale(gradients, maximum)
    update = ops.partial(_adamw, lr, beta1, beta2, eps, decay, scale)
    done = _map(update, weights, moment1, moment2, gradients)
    return ops.depend(norm, done)


def muon(
    coefficients: Tensor, weights: tuple[Tensor, ...], moment: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
) -> Tensor:
    """Scale the gradients down to the maximal norm together, then take one step of Muon in place.

    m ← μm + (1-μ)g, then w ← w - lr·(0.2·√max(rows, columns)·O + decay·w) with O the orthogonalised μm + (1-μ)g, a
    kernel (O, I, h, w) taken for a matrix (O, I·h·w). The factor gives the update AdamW's size (arXiv 2502.16982), so
    that both use one learning rate.

    Args:
        coefficients: (4,) float32: lr, μ, weight decay, maximal norm.
        weights, moment: parameters of two or more axes, updated.
        gradients: one for each.

    Returns:
        () float32, the norm of all gradients before clipping.
    """
    if cpu.in_use("muon"):
        return cpu.muon()(ops.concat((coefficients, cpu.settings(float(cpu.bf16())))), *weights, *moment, *gradients)[0]
    lr, momentum, decay, maximum = coefficients.unbind()
    norm, scale = _norm_and_scale(gradients, maximum)
    done = _map(ops.partial(_muon, lr, momentum, decay, scale), weights, moment, gradients)
    return ops.depend(norm, done)
