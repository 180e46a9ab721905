"""Prompt weights: what is a mark, and which tokens it reaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.text.tokenizer import TextTokenizer, Weighted, parse_weights
from mindpangu.text.vocabularies import clip_bpe


@pytest.mark.parametrize(
    ("prompt", "text", "spans"),
    [
        ("a fox", "a fox", ()),
        ("a (red:1.4) fox", "a red fox", ((2, 5, 1.4),)),
        ("(一只狐狸:0.5)在左边, (blue:2)", "一只狐狸在左边, blue", ((0, 4, 0.5), (9, 13, 2.0))),
        ("(no weight) and (a: b) (x:1.2.3)", "(no weight) and (a: b) (x:1.2.3)", ()),
        ("((deep:1.1):2)", "(deep:2)", ((1, 5, 1.1),)),
    ],
)
def test_marks(prompt, text, spans):
    assert parse_weights(prompt) == Weighted(text, spans)


@given(st.text())
def test_every_prompt_can_be_read_and_spans_lie_within(prompt):
    weighted = parse_weights(prompt)
    assert all(0 <= start < stop <= len(weighted.text) for start, stop, _ in weighted.spans)
    if ":" not in prompt:
        assert weighted == Weighted(prompt, ())


def test_weights_reach_the_tokens_of_their_words():
    tokenizer = TextTokenizer(clip_bpe(), 10)
    weights = tokenizer.weights(parse_weights("a (red:1.5) fox"))
    assert weights.tolist() == [1, 1, 1.5, 1, 1, 1, 1, 1, 1, 1]  # start, a, red, fox, end, padding
    assert tokenizer.weights(parse_weights("a red fox")).tolist() == [1] * 10
