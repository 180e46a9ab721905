"""From which noise level on does a model lose what a picture shows? Real pictures, noised to t, denoised by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mindpangu.diffusion import SAMPLERS
from mindpangu.diffusion.schedule import SIGMA_LISTS
from mindpangu.evaluation.judge import ENCODE_BATCH, Galleries, Pictures, prompt_for
from mindpangu.images import to_model, to_pictures
from mindpangu.infer.drawing import noise_of
from mindpangu.infer.pipeline import PanGuDraw


def judge_noise_levels(
    model: PanGuDraw, pictures: Pictures, galleries: Galleries, count: int, levels: int, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """R@1 and R@5 of `count` trained pictures, noised to each of `levels` t and finished by the model, lowest t first.

    The structure up to t is the picture's own, so the row in which the score falls names the expert that loses it, and
    T_struct belongs where the texture generator still keeps it. The last row begins with noise alone.

    Yields:
        {"t", "expert": the first that draws, "R@1", "R@5"}.
    """
    from mindspore import Tensor

    chosen = pictures.some("train", count, seed)
    sigmas = SIGMA_LISTS["uniform"](model.schedule, steps)
    ts = model.schedule.t(np.asarray(sigmas[:-1]))
    batches = []  # prompts, clean latents and noise, all of one shape: one graph
    for start in range(0, len(chosen), ENCODE_BATCH):
        numbers = [min(start + i, len(chosen) - 1) for i in range(ENCODE_BATCH)]
        records = [chosen[number] for number in numbers]
        clean = model.vae.encode(Tensor(to_model([pictures.render(record) for record in records])))
        noise = noise_of([seed + number for number in numbers], tuple(clean.shape[1:]), 0)
        batches.append(([prompt_for(record, "en") for record in records], clean, noise))
    for first in sorted({round(k) for k in np.linspace(0, steps, levels, endpoint=False)}, reverse=True):
        drawn: list[np.ndarray] = []
        for prompts, clean, noise in batches:
            start_at = clean + noise * float(sigmas[first])
            if first == 0:
                start_at = noise * float(np.sqrt(1 + sigmas[0] ** 2))
            request = model.asked(prompts)
            latents = SAMPLERS["euler"](model.guided(request, request.prompts), start_at, sigmas[first:])
            drawn += list(to_pictures(model.vae.decode(latents).asnumpy()))
        expert = next(name for name, lowest in model.spec.experts.items() if ts[first] >= lowest)
        yield {"t": round(float(ts[first])), "expert": expert, **galleries.recall(chosen, drawn[: len(chosen)])}
