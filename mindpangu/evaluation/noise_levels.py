"""From which noise level on does a model lose what a picture shows? Real pictures, noised to t, denoised by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mindpangu.data import manifest
from mindpangu.diffusion import SAMPLERS
from mindpangu.diffusion.schedule import SIGMA_LISTS
from mindpangu.evaluation.judge import ENCODE_BATCH, SIDE, Galleries, Pictures, prompt_for
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
    chosen = pictures.some("train", count, seed)
    sigmas = SIGMA_LISTS["uniform"](model.schedule, steps)
    ts = model.schedule.t(np.asarray(sigmas[:-1]))
    for first in sorted({round(k) for k in np.linspace(0, steps, levels, endpoint=False)}, reverse=True):
        drawn: list[np.ndarray] = []
        for start in range(0, len(chosen), ENCODE_BATCH):
            part = chosen[start : start + ENCODE_BATCH]
            drawn += _finished(model, pictures, part, sigmas, first, range(seed + start, seed + start + len(part)))
        expert = next(name for name, lowest in model.spec.experts.items() if ts[first] >= lowest)
        yield {"t": round(float(ts[first])), "expert": expert, **galleries.recall(chosen, drawn)}


def _finished(
    model: PanGuDraw,
    pictures: Pictures,
    records: Sequence[manifest.Record],
    sigmas: np.ndarray,
    first: int,
    seeds: Sequence[int],
) -> list[np.ndarray]:
    """Pictures of the records, denoised from sigmas[first]; from noise alone where `first` is 0."""
    from mindspore import Tensor

    side = SIDE // model.vae.spec.factor
    shape = (model.vae.spec.z_channels, side, side)
    padded = [*records, *[records[-1]] * (ENCODE_BATCH - len(records))]  # one shape: one graph
    noise = noise_of([*seeds, *[seeds[-1]] * (ENCODE_BATCH - len(seeds))], shape, 0)
    if first == 0:
        start = noise * float(np.sqrt(1 + sigmas[0] ** 2))
    else:
        clean = model.vae.encode(Tensor(to_model([pictures.render(record) for record in padded])))
        start = clean + noise * float(sigmas[first])
    request = model.asked([prompt_for(record, "en") for record in padded])
    latents = SAMPLERS["euler"](model.guided(request, request.prompts), start, sigmas[first:])
    return list(to_pictures(model.vae.decode(latents).asnumpy()))[: len(records)]
