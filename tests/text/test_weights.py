"""Prompt weights: what is a mark, and which tokens it reaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.text.tokenizer import TextTokenizer, Weighted, parse_weights, unread_marks
from mindpangu.text.vocabularies import clip_bpe


@pytest.mark.parametrize(
    ("prompt", "text", "spans"),
    [
        ("a fox", "a fox", ()),
        ("a (red:1.4) fox", "a red fox", ((2, 5, 1.4),)),
        ("(一只狐狸:0.5)在左边, (blue:2)", "一只狐狸在左边, blue", ((0, 4, 0.5), (9, 13, 2.0))),
        ("(no weight) and (a: b) (x:1.2.3)", "(no weight) and (a: b) (x:1.2.3)", ()),
        ("((deep:1.5):2)", "deep", ((0, 4, 3.0),)),
        ("a ((red:2) and round:1.5) fox", "a red and round fox", ((2, 5, 3.0), (5, 15, 1.5))),
        ("(red: 1.4) (blue :.5) ( green : +2. )", "red blue  green", ((0, 3, 1.4), (4, 8, 0.5), (9, 15, 2.0))),
        (r"fox \(animal:2\)", "fox (animal:2)", ()),
        ("(red:1) (open: 2", "red (open: 2", ()),
        ("(:2) ()", "(:2) ()", ()),
    ],
)
def test_marks(prompt, text, spans):
    assert parse_weights(prompt) == Weighted(text, spans)


@given(st.text())
def test_every_prompt_can_be_read_and_spans_lie_within(prompt):
    weighted = parse_weights(prompt)
    assert all(0 <= start < stop <= len(weighted.text) for start, stop, _ in weighted.spans)
    if ":" not in prompt and "\\" not in prompt:
        assert weighted == Weighted(prompt, ())


def test_marks_of_other_programs_are_known_to_be_none():
    assert unread_marks("a (red:much) fox <lora:ink:0.8> [cat:dog:0.5] (animal) [x]") == [
        "(red:much)", "<lora:ink:0.8>", "[cat:dog:0.5]",
    ]  # fmt: skip
    assert unread_marks(parse_weights("a (red:1.4) fox").text) == []


def test_weights_reach_the_tokens_of_their_words():
    tokenizer = TextTokenizer(clip_bpe(), 10)
    weights = tokenizer.weights(parse_weights("a (red:1.5) fox"))
    assert weights.tolist() == [1, 1, 1.5, 1, 1, 1, 1, 1, 1, 1]  # start, a, red, fox, end, padding
    assert tokenizer.weights(parse_weights("a red fox")).tolist() == [1] * 10
