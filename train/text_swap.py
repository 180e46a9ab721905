"""Swap the text encoders under a trained UNet: what the new ones say is mapped to what the net knows of the old ones.

A UNet meets words in two places: in the keys and values W·c of its cross-attention, c the features of a token, and in
`label_emb`, which takes the pooled features p as V·p + b. Linear maps bring the new encoders' features nearest to the
old ones' of the same captions (ridge regression, c ≈ A·c' + a, p ≈ M·p' + m). Then W·A, V·M and b + V·m take the place
of W, V and b; of W·a, what keys have in common changes no attention, and that of the values goes through the output
projection into its bias. What is lost is what the maps cannot say; training goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, mutable

from mindpangu.data.examples import Examples
from mindpangu.data.phrases import LANGUAGES, style_words
from mindpangu.models.conditioner import Conditioner
from mindpangu.text.tokenizer import TextTokenizer

BATCH = 64
RIDGE = 1e-4  # of the variance of each feature
KEYS, VALUES, OUT = "attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_out.0."
VECTOR_WEIGHT, VECTOR_BIAS = "label_emb.0.0.weight", "label_emb.0.0.bias"


@dataclass(frozen=True)
class Words:
    """Two text encoders and their tokenizers."""

    conditioner: Conditioner
    tokenizers: Sequence[TextTokenizer]

    def features(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of tokens (N, L, C), pooled ones (N, P), and each tokenizer's number of tokens (N, 2)."""
        context, pooled, lengths = [], [], []
        for start in range(0, len(prompts), BATCH):
            part = [*prompts[start : start + BATCH]]
            rows = [tokenizer([*part, *[""] * (BATCH - len(part))]) for tokenizer in self.tokenizers]
            c, vector = self.conditioner(mutable(tuple(map(Tensor, rows))), Tensor(np.zeros((BATCH, 1), np.float32)))
            context.append(c.asnumpy()[: len(part)])
            pooled.append(vector.asnumpy()[: len(part), : -self.conditioner.size_dim])
            lengths.append([[tokenizer.length(prompt) for tokenizer in self.tokenizers] for prompt in part])
        return np.concatenate(context), np.concatenate(pooled), np.concatenate(lengths)


def ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A (C, D), b (D,)) for which x·A + b is nearest to y, x (N, C), y (N, D)."""
    x_mean, y_mean = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    centred = x - x_mean
    gram = centred.T @ centred
    gram += RIDGE * np.diag(np.maximum(np.diag(gram), 1e-9))
    a = np.linalg.solve(gram, centred.T @ (y - y_mean))
    return a, y_mean - x_mean @ a


def paired(lengths: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """(N, count): for each token the other encoders' at the same share of the caption; padding to padding.

    `lengths`, `other`: tokens of each caption, (N,).
    """
    place = np.arange(count)[None]
    scaled = np.rint(place * (other[:, None] - 1) / np.maximum(lengths[:, None] - 1, 1)).astype(np.int64)
    padding = np.minimum(other[:, None] + place - lengths[:, None], count - 1)
    return np.where(place < lengths[:, None], scaled, padding).clip(0, count - 1)


@dataclass(frozen=True)
class TextMap:
    """Linear maps from new features to old ones: tokens' (C', C) and (C,), pooled ones' (P', P) and (P,).

    `explained`: the share of the old features' variance that they say of captions they were not fitted to, of tokens
    and of pooled features.
    """

    tokens: np.ndarray
    tokens_bias: np.ndarray
    pooled: np.ndarray
    pooled_bias: np.ndarray
    explained: tuple[float, float]

    @classmethod
    def fit(cls, old: Words, new: Words, prompts: Sequence[str]) -> TextMap:
        """Fitted to all prompts but the last eighth, which measures."""
        was, was_pooled, was_lengths = old.features(prompts)
        now, now_pooled, now_lengths = new.features(prompts)
        pairs = paired(now_lengths.max(1), was_lengths.max(1), now.shape[1])
        was = np.take_along_axis(was, pairs[..., None], 1)
        cut = len(prompts) - len(prompts) // 8
        tokens, tokens_bias = ridge(_rows(now[:cut]), _rows(was[:cut]))
        pooled, pooled_bias = ridge(now_pooled[:cut], was_pooled[:cut])
        measured = (
            _explained(_rows(was[cut:]), _rows(now[cut:]) @ tokens + tokens_bias),
            _explained(was_pooled[cut:], now_pooled[cut:] @ pooled + pooled_bias),
        )
        return cls(tokens, tokens_bias, pooled, pooled_bias, measured)

    def folded(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A UNet's weights for the new features."""
        changed = dict(weights)
        for name, value in weights.items():
            if name.endswith((KEYS, VALUES)):
                changed[name] = (value @ self.tokens.T).astype(value.dtype)
            if name.endswith(VALUES):
                out = name[: -len(VALUES)] + OUT
                in_common = weights[out + "weight"] @ (value @ self.tokens_bias)
                changed[out + "bias"] = (weights[out + "bias"] + in_common).astype(value.dtype)
        vector, known = weights[VECTOR_WEIGHT], len(self.pooled_bias)
        words, numbers = vector[:, :known], vector[:, known:]
        changed[VECTOR_WEIGHT] = np.concatenate([words @ self.pooled.T, numbers], 1).astype(vector.dtype)
        changed[VECTOR_BIAS] = (weights[VECTOR_BIAS] + words @ self.pooled_bias).astype(vector.dtype)
        return changed


def plain_captions(examples: Examples, count: int) -> list[str]:
    """`count` captions in the plainest words, two in three with their style, half of them in each language."""
    found = []
    for i in range(count):
        scene, language = examples.scene(i), LANGUAGES[i % 2]
        words = [examples.captions.plain(scene, language)]
        if i % 3:
            words.append(style_words(examples.captions.records[scene.things[0].picture].style, language)[0])
        found.append((", " if language == "en" else "，").join(words))
    return found


def _rows(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])


def _explained(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
