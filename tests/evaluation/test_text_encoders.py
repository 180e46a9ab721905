"""What text encoders know, by a figure that a perfect and a blind one bound."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from mindpangu import runtime
from mindpangu.data.lexicon import natural_prompts, nouns
from mindpangu.evaluation import text_encoders


def test_a_perfect_and_a_blind_encoder(monkeypatch, tmp_path):
    runtime.start("CPU")
    codes = list(nouns())
    names = {noun.name[language]: codes.index(code) for code, noun in nouns().items() for language in noun.name}
    right = {prompt.prompt: codes.index(prompt.concepts[0]) for prompt in natural_prompts()}
    monkeypatch.setattr(text_encoders, "load_tokenizers", lambda folder, encoders: [None] * len(encoders))
    monkeypatch.setattr(
        text_encoders, "load_conditioner", lambda folder, encoders, size_dim: SimpleNamespace(text_encoders=encoders)
    )

    def encode(net, tokenizer, texts):
        if net == "perfect":
            return None, np.eye(len(codes))[[{**names, **right}[text] for text in texts]]
        return None, np.random.default_rng(len(texts)).standard_normal((len(texts), 16))

    monkeypatch.setattr(text_encoders, "encode_texts", encode)
    found = text_encoders.name_recall(tmp_path, ("perfect", "blind"))
    for language in ("en", "zh"):
        assert found["perfect"][language]["R@1"] > 0.97  # a name that two concepts have counts against it
        assert found["blind"][language]["R@5"] < 0.05
