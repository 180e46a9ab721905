"""What text encoders know of natural wording, before any generator is trained on them: names found by prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.data.lexicon import natural_prompts, nouns
from mindpangu.data.phrases import LANGUAGES
from mindpangu.metrics.scores import recall_at, unit
from mindpangu.models.loading import load_conditioner, load_tokenizers

BATCH = 64
SIZE_DIM = 2  # of the conditioner's embedding of a size, which is cut off again


def name_recall(folder: Path, encoders: Sequence[str]) -> dict[str, Any]:
    """{encoder: {language: {"R@1", "R@5"}}} of the right concept's name among all concepts', for the natural prompts.

    By cosine of pooled features, each side's mean taken off; where several concepts are right the best one counts.

    Raises:
        UserError: an encoder or a tokenizer is absent or damaged.
    """
    found: dict[str, Any] = {}
    for encoder, tokenizer in zip(encoders, load_tokenizers(folder, encoders)):
        net = load_conditioner(folder, (encoder,), SIZE_DIM)
        concepts = nouns()
        codes = list(concepts)
        found[encoder] = {}
        for language in LANGUAGES:
            asked = [prompt for prompt in natural_prompts() if prompt.language == language]
            names = _pooled(net, tokenizer, [concepts[code].name[language] for code in codes])
            prompts = _pooled(net, tokenizer, [prompt.prompt for prompt in asked])
            similarity = unit(prompts - prompts.mean(0)) @ unit(names - names.mean(0)).T
            ranks = np.array(
                [
                    min(int((row >= row[codes.index(code)]).sum()) for code in prompt.concepts)
                    for row, prompt in zip(similarity, asked)
                ]
            )
            found[encoder][language] = {f"R@{k}": round(recall_at(ranks, k), 3) for k in (1, 5)}
    return found


def _pooled(net: Any, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    from mindspore import Tensor, mutable

    parts, numbers = [], Tensor(np.zeros((BATCH, 1), np.float32))
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        ids = mutable((Tensor(tokenizer([*part, *[""] * (BATCH - len(part))])),))
        parts.append(net(ids, numbers)[1].asnumpy()[: len(part), :-SIZE_DIM])
    return np.concatenate(parts)
