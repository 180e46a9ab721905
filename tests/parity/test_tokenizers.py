"""CLIP's and BERT's tokenizers give transformers' ids for 5,000 strings of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.text.vocabularies import bert_wordpiece, clip_bpe
from tests.parity.golden_tokenizers import COUNT, GOLDEN, SHOWN, digest, strings, vocabulary

with np.load(GOLDEN) as file:
    GOLD = dict(file)


def built(name, folder):
    if name == "clip":
        return clip_bpe()
    path = folder / "vocab.txt"
    path.write_text("\n".join(vocabulary()), encoding="utf-8")
    return bert_wordpiece(path)


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_ids_are_transformers(name, tmp_path):
    texts = strings()
    rows = [encoding.ids for encoding in built(name, tmp_path).encode_batch(texts)]
    shown = np.concatenate([np.array([*row, -1], np.int32) for row in rows[:SHOWN]])
    np.testing.assert_array_equal(shown, GOLD[f"{name}.shown"])
    different = [texts[i] for i in range(COUNT) if digest(rows[i]) != GOLD[f"{name}.digests"][i]]
    assert not different, f"{len(different)} differ, for example {different[0]!r}"


def test_clips_ids_as_published():
    """The ids that CLIP's own documentation and countless scripts rely on."""
    tokenizer = clip_bpe()
    assert tokenizer.get_vocab_size() == 49408
    assert tokenizer.encode("a photo of a cat").ids == [49406, 320, 1125, 539, 320, 2368, 49407]
