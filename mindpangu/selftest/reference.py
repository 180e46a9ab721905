"""The operators in float64 with NumPy, with their gradients: what the device's are held against.

Each takes the gradient of its output last, and returns the output, then the gradients of its other arguments.
"""

from __future__ import annotations

import math

import numpy as np

Arrays = tuple[np.ndarray, ...]


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, causal: bool, grad: np.ndarray) -> Arrays:
    """softmax(q kᵀ/√D) v for each head. q, grad: (N, S, heads·D); k, v: (N, T, heads·D)."""
    n, s, channels = q.shape
    width = channels // heads
    found = [np.zeros(x.shape) for x in (q, q, k, v)]
    for row in range(n):
        for head in range(heads):
            part = (row, slice(None), slice(head * width, (head + 1) * width))
            scores = q[part] @ k[part].T / math.sqrt(width)
            if causal:
                scores = np.where(np.tri(s, k.shape[1], dtype=bool), scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            out = p @ v[part]
            dp = grad[part] @ v[part].T
            ds = p * (dp - (grad[part] * out).sum(-1, keepdims=True)) / math.sqrt(width)
            for into, value in zip(found, (out, ds @ k[part], ds.T @ q[part], p.T @ grad[part])):
                into[part] = value
    return tuple(found)


def dense(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, grad: np.ndarray) -> Arrays:
    """x (M, C) · weight (O, C)ᵀ + bias (O,)."""
    return x @ weight.T + bias, grad @ weight, grad.T @ x, grad.sum(0)


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, grad: np.ndarray) -> Arrays:
    """Convolution of (N, C, H, W) by an odd kernel (O, C, k, k), zeros around."""
    kernel = weight.shape[-1]
    edge, (height, width) = kernel // 2, grad.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    out, d_padded, d_weight = np.zeros(grad.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for i in range(kernel):
        for j in range(kernel):
            seen = (..., slice(i, i + height * stride, stride), slice(j, j + width * stride, stride))
            seen_of = padded[seen][:, :, :height, :width]
            out += np.einsum("ncyx,oc->noyx", seen_of, weight[:, :, i, j], optimize=True)
            d_weight[:, :, i, j] = np.einsum("ncyx,noyx->oc", seen_of, grad, optimize=True)
            d_padded[seen][:, :, :height, :width] += np.einsum("noyx,oc->ncyx", grad, weight[:, :, i, j], optimize=True)
    inner = slice(edge, edge + x.shape[2]), slice(edge, edge + x.shape[3])
    return out + bias[:, None, None], d_padded[:, :, inner[0], inner[1]], d_weight, grad.sum((0, 2, 3))


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, grad: np.ndarray) -> Arrays:
    """Over the last axis of (M, C)."""
    sigma = np.sqrt(x.var(-1, keepdims=True) + eps)
    hat = (x - x.mean(-1, keepdims=True)) / sigma
    scaled = grad * gamma
    dx = (scaled - scaled.mean(-1, keepdims=True) - hat * (scaled * hat).mean(-1, keepdims=True)) / sigma
    return hat * gamma + beta, dx, (grad * hat).sum(0), grad.sum(0)


def group_norm_silu(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int, eps: float, grad: np.ndarray
) -> Arrays:
    """SiLU of the group normalisation of (N, C, H, W)."""
    flat = x.reshape(x.shape[0], groups, -1)
    sigma = np.sqrt(flat.var(-1, keepdims=True) + eps)
    hat = (flat - flat.mean(-1, keepdims=True)) / sigma
    wide, over = (slice(None), None, None), (0, 2, 3)
    y = hat.reshape(x.shape) * gamma[wide] + beta[wide]
    sigmoid = 1 / (1 + np.exp(-y))
    dy = grad * sigmoid * (1 + y * (1 - sigmoid))
    d_hat = (dy * gamma[wide]).reshape(flat.shape)
    dx = (d_hat - d_hat.mean(-1, keepdims=True) - hat * (d_hat * hat).mean(-1, keepdims=True)) / sigma
    return y * sigmoid, dx.reshape(x.shape), (dy * hat.reshape(x.shape)).sum(over), dy.sum(over)


def geglu(x: np.ndarray, grad: np.ndarray) -> Arrays:
    """(M, 2C) -> (M, C): the first half times the GELU of the second."""
    value, gate = np.split(x, 2, axis=-1)
    phi = 0.5 * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
    slope = phi + gate * np.exp(-(gate**2) / 2) / math.sqrt(2 * math.pi)
    return value * gate * phi, np.concatenate([grad * gate * phi, grad * value * slope], -1)


def muon(
    weight: np.ndarray, moment: np.ndarray, gradient: np.ndarray, lr: float, momentum: float, decay: float
) -> Arrays:
    """A step of Muon (see `ops.muon`) of a matrix: the new weight and moment."""
    moment = momentum * moment + (1 - momentum) * gradient
    x = momentum * moment + (1 - momentum) * gradient
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return weight - lr * (0.2 * math.sqrt(max(x.shape)) * x + decay * weight), moment
