"""What a prompt says beyond what a model has met is named, with the nearest that it knows."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.text.vocabulary import Vocabulary, directions, words_and_pieces

NAMES = {"en": ["fox", "teddy bear", "strawberry"], "zh": ["狐狸", "泰迪熊", "草莓"]}
SAID = words_and_pieces(
    [*NAMES["en"], *NAMES["zh"], "foxes", "🦊", "red", "红色", " draw {0} please.", " 请画{0}的图.", "一只", "只"]
)
STORED = directions(np.concatenate([np.eye(3), np.eye(3)]).astype(np.float32) + 5)
KNOWN = Vocabulary(NAMES, frozenset(SAID["words"]), frozenset(SAID["pieces"]), STORED["mean"], STORED["directions"])


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("draw me a red FOX, please!", ()),
        ("ＦＯＸ and two strawberries", ("two", "strawberries")),
        ("the fox's teddy", ()),
        ("a spaceship with a fox", ("spaceship",)),
        ("请画一只红色的狐狸", ()),
        ("请画一只飞船和狐狸", ("飞船",)),
        ("一只fox和一个窗台", ("窗台",)),
        ("🦊️", ()),
        ("🦊 🚀", ("🚀",)),
        ("3 foxes", ()),
        ("", ()),
    ],
)
def test_what_was_never_met(prompt, unknown):
    assert KNOWN.unknown(prompt) == unknown


def test_a_slip_is_taken_for_the_word_it_is_like():
    assert KNOWN.spelled_like("strawbery") == "strawberry"
    assert KNOWN.spelled_like("spaceship") is None
    assert KNOWN.spelled_like("飞船") is None


def test_another_word_for_the_name_nearest_in_meaning_in_its_own_language():
    direction = np.array([0.1, 0.9, 0.0], np.float32) + 5
    assert KNOWN.nearest("toy", direction) == "teddy bear"
    assert KNOWN.nearest("玩具", direction) == "泰迪熊"


def test_a_folder_without_one_has_none(tmp_path):
    assert Vocabulary.load(tmp_path) is None
