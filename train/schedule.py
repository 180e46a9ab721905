"""Learning rate and the optimizer's coefficients, as functions of the images seen."""

from __future__ import annotations

import math

import numpy as np

from mindpangu.train.config import LRScheduleConfig, OptimizerConfig


def learning_rate(schedule: LRScheduleConfig, nimg: int, total: int) -> float:
    """The rate for the step that starts after `nimg` of `total` images."""
    if nimg < schedule.warmup_images:
        return schedule.learning_rate * (nimg + 1) / schedule.warmup_images
    if schedule.type == "constant":
        share = min(1.0, max(0, total - nimg) / max(1, schedule.cooldown_images))
    else:
        done = (nimg - schedule.warmup_images) / max(1, total - schedule.warmup_images)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return schedule.learning_rate * (schedule.final_ratio + (1 - schedule.final_ratio) * share)


# Their places among a step's coefficients: maximal norm, loss scale, what `ops.adamw` takes, what `ops.muon` takes.
MAX_NORM, LOSS_SCALE = 0, 1
ADAMW, MUON = slice(2, 7), slice(7, 10)


def adamw_coefficients(optimizer: OptimizerConfig, lr: float, step: int) -> list[float]:
    """The coefficients of `ops.adamw` that make its step number `step` (from 1) one of the true AdamW.

    p ← p − lr·(m̂/(√v̂ + eps) + wd·p) with m̂ = m/c₁, v̂ = v/c₂ equals p ← p − lr'·(m/(√v + eps') + wd'·p) for
    lr' = lr·√c₂/c₁, eps' = eps·√c₂, wd' = wd·c₁/√c₂.
    """
    beta1, beta2 = optimizer.betas
    c1, root_c2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    return [lr * root_c2 / c1, beta1, beta2, optimizer.eps * root_c2, optimizer.weight_decay * c1 / root_c2]


def coefficients(optimizer: OptimizerConfig, lr: float, step: int, loss_scale: float = 1.0) -> np.ndarray:
    """What `TrainStep` takes at its step number `step`, from 1, (10,) float32, at the places above."""
    values = np.zeros(MUON.stop, np.float32)
    values[MAX_NORM], values[LOSS_SCALE] = optimizer.max_grad_norm, loss_scale
    values[ADAMW] = adamw_coefficients(optimizer, lr, step)
    values[MUON] = [lr, optimizer.momentum, optimizer.weight_decay]
    return values
