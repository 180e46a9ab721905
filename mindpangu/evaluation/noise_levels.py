"""Real pictures, noised to t and denoised by a model: how well, and from which t on it loses what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mindpangu.data.manifest import Record
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
    chosen = pictures.some("train", count, seed)
    sigmas = SIGMA_LISTS["uniform"](model.schedule, steps)
    ts = model.schedule.t(np.asarray(sigmas[:-1]))
    batches = list(_batches(model, pictures, chosen, seed))
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


def losses_by_noise_level(
    model: PanGuDraw, pictures: Pictures, records: Sequence[Record], bins: int, seed: int
) -> np.ndarray:
    """The loss of the velocity, mean square, (bins, records), on real pictures with the same noise each time.

    t is in the middle of each bin, lowest first; whichever expert draws there is asked, without guidance.
    """
    steps = model.schedule.spec.steps
    sigmas = model.schedule.sigma((np.arange(bins) + 0.5) * steps / bins)
    errors: list[np.ndarray] = []  # (bins, pictures) of each batch
    for prompts, clean, noise in _batches(model, pictures, records, seed):
        request = model.asked(prompts, guidance=1.0)
        denoiser = model.guided(request, request.prompts)
        of_bins = []
        for sigma in map(float, sigmas):
            error = (denoiser(clean + noise * sigma, np.full(len(prompts), sigma)) - clean).asnumpy()
            # x0 = α·z − σ_vp·v with σ_vp² = σ²/(1 + σ²)
            of_bins.append(np.square(error).mean((1, 2, 3)) * (1 + sigma**2) / sigma**2)
        errors.append(np.stack(of_bins))
    return np.concatenate(errors, 1)[:, : len(records)]


def _batches(
    model: PanGuDraw, pictures: Pictures, records: Sequence[Record], seed: int
) -> Iterator[tuple[list[str], Any, Any]]:
    """Prompts, clean latents and noise, all of one shape, so one graph; the last record fills the last batch."""
    from mindspore import Tensor

    for start in range(0, len(records), ENCODE_BATCH):
        numbers = [min(start + i, len(records) - 1) for i in range(ENCODE_BATCH)]
        batch = [records[number] for number in numbers]
        clean = model.vae.encode(Tensor(to_model([pictures.render(record) for record in batch])))
        noise = noise_of([seed + number for number in numbers], tuple(clean.shape[1:]), 0)
        yield [prompt_for(record, "en") for record in batch], clean, noise
