"""The token vectors that text encoders start from: a regression that finds what it should, and keeps its geometry."""

from __future__ import annotations

import numpy as np

from mindpangu.text.tokenizer import TextTokenizer, train_byte_bpe, train_wordpiece
from mindpangu.train.teacher import TABLE_RMS, WIDTH, token_vectors


def made_of_words(rng, count):
    """Texts whose features are the sums of their words' vectors, over the root of their number."""
    words = [f"{a}{b}" for a in ("fo", "ca", "du", "be") for b in ("x", "t", "ck", "e")]
    directions = np.linalg.qr(rng.standard_normal((WIDTH, len(words))))[0].T  # orthonormal: 16 dimensions of 512
    chosen = [rng.integers(len(words), size=rng.integers(1, 6)) for _ in range(count)]
    features = np.stack([directions[rows].sum(0) / np.sqrt(len(rows)) for rows in chosen])
    return words, [" ".join(words[i] for i in rows) for rows in chosen], features


def test_token_vectors_are_found_and_keep_their_angles(tmp_path):
    rng = np.random.default_rng(0)
    words, texts, features = made_of_words(rng, 2000)
    for train in (train_wordpiece, train_byte_bpe):
        path = tmp_path / "tokenizer.json"
        path.write_text(train([*texts, *words * 50], 400).to_str(), encoding="utf-8")
        tokenizer = TextTokenizer.load(path, 12)
        pieces = [tokenizer.tokenizer.encode(word, add_special_tokens=False).ids for word in words]
        assert {len(ids) for ids in pieces} == {1}  # else words have no vectors of their own
        table = token_vectors(tokenizer, texts, features, len(words))
        assert table.shape == (tokenizer.vocab_size, len(words)) and table.dtype == np.float32
        np.testing.assert_allclose(np.sqrt((table**2).mean()), TABLE_RMS, rtol=1e-5)
        found = table[[ids[0] for ids in pieces]]
        gram = found @ found.T / (found**2).sum(1).mean()
        np.testing.assert_allclose(gram, np.eye(len(words)), atol=0.01)
        unseen = np.setdiff1d(np.arange(tokenizer.vocab_size), [ids[0] for ids in pieces])
        assert np.abs(table[unseen]).max() < 1e-6 * np.abs(found).max()
