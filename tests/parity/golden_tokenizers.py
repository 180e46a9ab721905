"""Write golden/tokenizers.npz: what transformers' tokenizers make of strings that anyone can generate.

Run where transformers is installed: python -m tests.parity.golden_tokenizers. The tests need the file alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindpangu.text.vocabularies import clip_bpe, clip_merges

GOLDEN = Path(__file__).parent / "golden" / "tokenizers.npz"
COUNT = 5000
SHOWN = 50  # strings whose ids are kept in full, to see what differs
CHINESE = "一只狐狸在左边右边蓝色背景的红苹果老虎汽车風格義饅霙龍龘㐀"
WIDE = "ＡＢＣａｂｃ１２３，。！？：；（）「」『』"
EMOJI = ("🦊", "🍎", "👩‍🚀", "🏳️‍🌈", "🇨🇳", "👍🏽", "☕", "❤️", "🧑‍🤝‍🧑")
CONTROL = ("\x00", "\x07", "\x1b", "\x7f", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2028")
SPACES = ("\t", "\n", "\r", "\u3000", "\u00a0")
ACCENTED = ("é", "ñ", "Ü", "ß", "İ", "ı", "e\u0301", "Å", "ﬁ", "Æ", "ё", "Й", "日本", "한국", "ไทย", "हिंदी", "א")
SENTENCE = (
    "a photo of the cat's, it's we're I'd they'll don't red BUS on Blue background 3D style 128x128 unbelievable "
    "antidisestablishmentarianism ... !!! -- #tag @you http://x.y/z?q=1 <|endoftext|> [SEP] [CLS] \\ / _ snake_case "
    "1/2 10,000"
)
PIECES = "photo cat red bus on blue background style the un ##believ ##able ##ment 128 ##x ##128"


def strings() -> list[str]:
    """Words, Chinese, wide forms, emoji, accents and control characters, mixed; the last few are very long."""
    rng = np.random.default_rng(2312)
    pools: Sequence[Sequence[str]] = (SENTENCE.split(), CHINESE, WIDE, EMOJI, ACCENTED, CONTROL + SPACES)
    weights = np.array([0.4, 0.25, 0.1, 0.08, 0.1, 0.07])
    out = [""]
    while len(out) < COUNT:
        length = 10_000 if len(out) > COUNT - 5 else int(rng.integers(1, 25))
        text = ""
        while length > 0:
            pool = pools[int(rng.choice(len(pools), p=weights))]
            piece = pool[int(rng.integers(len(pool)))] + ("" if rng.random() < 0.4 else " ")
            text, length = text + piece, length - (len(piece) if len(out) > COUNT - 5 else 1)
        out.append(text)
    return out


def vocabulary() -> list[str]:
    """A vocab.txt of BERT's form: special pieces, every letter whole and continuing, some words, Chinese characters."""
    letters = [chr(c) for c in [*range(33, 127), *range(0x430, 0x450)]]
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = [f"##{letter}" for letter in letters]
    return list(dict.fromkeys(["[PAD]", *letters, *special, *inner, *PIECES.split(), *CHINESE[:30]]))


def digest(ids: Sequence[int]) -> np.uint64:
    """64 bits of the ids' SHA-256."""
    return np.frombuffer(hashlib.sha256(np.array(ids, np.int32).tobytes()).digest()[:8], np.uint64)[0]


def main() -> None:
    """Write the file."""
    from transformers import BertTokenizer, CLIPTokenizer

    texts, arrays = strings(), {}
    peers = {
        "clip": CLIPTokenizer(vocab=clip_bpe().get_vocab(), merges=clip_merges()),
        "bert": BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary())}),
    }
    for name, peer in peers.items():
        rows = [peer(text, add_special_tokens=True)["input_ids"] for text in texts]
        arrays[f"{name}.digests"] = np.array([digest(row) for row in rows])
        arrays[f"{name}.shown"] = np.concatenate([np.array([*row, -1], np.int32) for row in rows[:SHOWN]])
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
