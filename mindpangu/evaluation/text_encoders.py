"""What text encoders know of natural wording, before any generator is trained on them: names found by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.data.lexicon import natural_prompts, nouns
from mindpangu.data.phrases import LANGUAGES
from mindpangu.metrics.scores import recall_at, unit
from mindpangu.models.clip import encode_texts
from mindpangu.models.loading import load_conditioner, load_tokenizers


def name_recall(folder: Path, encoders: Sequence[str]) -> dict[str, Any]:
    """{encoder: {language: {"R@1", "R@5"}}} of the right concept's name among all concepts', for the natural prompts.

    By cosine of pooled features, each side's mean taken off; where several concepts are right the best one counts.

    Raises:
        UserError: an encoder or a tokenizer is absent or damaged.
    """
    found: dict[str, Any] = {}
    for encoder, tokenizer in zip(encoders, load_tokenizers(folder, encoders)):
        net = load_conditioner(folder, (encoder,), 0).text_encoders[0]
        concepts = nouns()
        codes = list(concepts)
        found[encoder] = {}
        for language in LANGUAGES:
            asked = [prompt for prompt in natural_prompts() if prompt.language == language]
            names = encode_texts(net, tokenizer, [concepts[code].name[language] for code in codes])[1]
            prompts = encode_texts(net, tokenizer, [prompt.prompt for prompt in asked])[1]
            similarity = unit(prompts - prompts.mean(0)) @ unit(names - names.mean(0)).T
            ranks = np.array(
                [
                    min(int((row >= row[codes.index(code)]).sum()) for code in prompt.concepts)
                    for row, prompt in zip(similarity, asked)
                ]
            )
            found[encoder][language] = {f"R@{k}": round(recall_at(ranks, k), 3) for k in (1, 5)}
    return found
