"""Both tokenizers: Chinese by character, English by piece, nothing unknown to the byte-level one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.errors import UserError
from mindpangu.text.tokenizer import (
    END_A,
    END_B,
    START_A,
    START_B,
    TextTokenizer,
    train_byte_bpe,
    train_wordpiece,
)

CORPUS = [
    "a red bus on a blue background",
    "一只狐狸在左边，蓝色背景",
    "a fox, 3D style",
    "一棵树, 3D风格",
] * 5
A = TextTokenizer(train_wordpiece(CORPUS, 200), 16)
B = TextTokenizer(train_byte_bpe(CORPUS, 400), 16)


def test_chinese_is_split_by_character():
    assert A.tokenizer.encode("狐狸fox").tokens == [START_A, "狐", "狸", "fox", END_A]


def test_case_and_accents_do_not_matter_to_wordpiece():
    assert A.tokenizer.encode("Réd BUS").ids == A.tokenizer.encode("red bus").ids


def test_byte_bpe_frames_its_text():
    tokens = B.tokenizer.encode("a fox").tokens
    assert (tokens[0], tokens[-1]) == (START_B, END_B)


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_any_text_fits_ends_and_is_padded_with_zero(text):
    for tokenizer in (A, B):
        row = tokenizer([text])[0]
        assert row.shape == (16,)
        assert row.dtype == np.int32
        ends = np.flatnonzero(row == tokenizer.end_id)
        assert len(ends) >= 1
        length = min(tokenizer.length(text), 16)
        assert row[length - 1] == tokenizer.end_id
        assert not row[length:].any()


@given(st.text(max_size=60))
@settings(max_examples=60)
def test_what_is_unread_is_the_prompts_end(text):
    for tokenizer in (A, B):
        unread, starts = tokenizer.unread(text), [start for start, _ in tokenizer.tokenizer.encode(text).offsets]
        assert text.endswith(unread)
        if tokenizer.length(text) <= 16:
            assert unread == ""
        else:  # the last of 16 places goes to the end token; a character of several bytes may lie on the border
            cut = len(text) - len(unread)
            assert all(start <= cut for start in starts[1:15])
            assert all(start >= cut for start in starts[15:-1])


def test_the_unread_end_starts_where_the_ids_end():
    assert A.unread("a red bus") == ""
    assert A.unread("狐" * 13 + "狸, 3D") == ", 3D"


@given(st.text(st.characters(blacklist_categories=("Cs", "Z", "C")), max_size=20))
@settings(max_examples=60)
def test_the_byte_level_tokenizer_loses_nothing(text):
    """What comes out is what its own normalizer (NFKC, lower case, no modifiers) makes of it, spaces apart."""
    expected = B.tokenizer.normalizer.normalize_str(text)
    assert B.tokenizer.decode(B.tokenizer.encode(text).ids).replace(" ", "") == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a fox ,  3D　style ", "a fox , 3d style"),
        ("Ａ　ＦＯＸ，３Ｄ", "a fox,3d"),
        ("一只狐狸，蓝色背景。", "一只狐狸,蓝色背景。"),
        ("🦊️", "🦊"),
        ("👍🏽", "👍"),
    ],
)
def test_how_a_word_is_written_does_not_matter(written, meant):
    for tokenizer in (A, B):
        assert tokenizer.tokenizer.encode(written).ids == tokenizer.tokenizer.encode(meant).ids


def test_an_emoji_is_a_word_wherever_it_stands():
    emoji = ["🦊", "🐻‍❄", "🐈", "🐈‍⬛"]
    for train in (train_wordpiece, train_byte_bpe):
        tokenizer = train(CORPUS, 400, emoji)
        ids = [tokenizer.encode(one).ids[1:-1] for one in emoji]
        assert len({i for one in ids for i in one[-1:]}) == 4
        for text in ("a🦊", "🦊", "🦊🐈", "🦊️ and 🐈"):
            assert ids[0][-1] in tokenizer.encode(text).ids
        assert ids[3][-1] in tokenizer.encode("🐈‍⬛").ids
        assert ids[2][-1] not in tokenizer.encode("🐈‍⬛").ids


def test_a_tokenizer_file_that_is_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        TextTokenizer.load(tmp_path / "t.json", 8)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        TextTokenizer.load(tmp_path / "t.json", 8)
