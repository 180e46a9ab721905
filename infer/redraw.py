"""A picture again, bit for bit, from the settings that it carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mindpangu.errors import UserError
from mindpangu.infer.pipeline import Drawing, PanGuDraw

ELSEWHERE = {  # what settings name, but a file does not carry
    "source": "the picture that it began from",
    "controls": "what its ControlNets looked at",
    "latents": "the latents that it began from",
    "loras": "its LoRAs",
    "refiner": "its refiner",
    "coop": "a recipe of several models",
}
OPTIONS = (
    "size", "steps", "guidance", "styles", "negative", "sampler", "sigmas", "cache_interval", "lag", "rescale"
)  # fmt: skip


def redraw(model: PanGuDraw, settings: Mapping[str, Any]) -> Drawing:
    """Draw it again, beside as many others as then: the number drawn together changes the last bits of sums.

    Raises:
        UserError: another model, or something that the settings only name.
    """
    missing = [words for key, words in ELSEWHERE.items() if key in settings]
    if missing:
        raise UserError(f"the picture was drawn with {missing[0]}, which is not in it; draw it with the options again")
    if settings.get("digest") != model.digest:
        raise UserError(
            f"the picture was drawn by {settings.get('model')} {settings.get('digest', 'of an unknown version')}, and "
            f"this is {model.spec.name} {model.digest}"
        )
    together = int(settings.get("batch", 1))
    options = {key: settings[key] for key in OPTIONS if key in settings}
    end = settings.get("stopped_after", math.inf)
    seeds, indices = (int(settings["seed"]),) * together, (int(settings["index"]),) * together
    return model(
        [settings["prompt"]] * together,
        seed=seeds,
        indices=indices,
        batch=together,
        on_step=lambda state: state["step"] + 1 < end,
        **options,
    )[0]
