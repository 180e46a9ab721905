"""Tokenizers of other people's text encoders: CLIP's byte pairs, which we ship, and BERT's, from the user's own file.

`clip_merges.txt.gz`: the 48,894 merges of OpenAI's CLIP (MIT License, see NOTICE), one a line, best first.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from mindpangu.errors import UserError
from mindpangu.text.tokenizer import END_A, END_B, PAD, START_A, START_B, UNKNOWN, frame

MERGES = Path(__file__).parent / "clip_merges.txt.gz"
WORD_END = "</w>"
SPECIAL_A = (PAD, UNKNOWN, START_A, END_A)
# CLIP's pieces: English endings, runs of letters, single digits, runs of anything else.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_letters() -> list[str]:
    """GPT-2's stand-ins for the 256 bytes, in the order of CLIP's vocabulary: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def clip_merges() -> list[tuple[str, str]]:
    """Pairs of pieces that become one, best first."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        return [(first, second) for first, second in (line.split() for line in file)]


def clip_bpe() -> Tokenizer:
    """CLIP's tokenizer: 49,408 ids, <|startoftext|> 49406, <|endoftext|> 49407."""
    letters, merges = byte_letters(), clip_merges()
    words = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges)]
    ids = {word: i for i, word in enumerate([*words, START_B, END_B])}
    tokenizer = Tokenizer(
        models.BPE(ids, merges, end_of_word_suffix=WORD_END, continuing_subword_prefix="", unk_token=END_B)
    )
    _add_special(tokenizer, (START_B, END_B))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    frame(tokenizer, START_B, END_B)
    return tokenizer


def bert_wordpiece(vocabulary: Path) -> Tokenizer:
    """BERT's tokenizer over the user's vocab.txt (one piece a line; Chinese-CLIP's has 21,128): CJK characters apart,
    lower case, accents stripped.

    Raises:
        UserError: absent, not text, or without the special pieces.
    """
    try:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{vocabulary}: no such file; a vocab.txt of BERT's form is needed") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{vocabulary}: not a vocabulary ({error})") from None
    ids = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    missing = [piece for piece in SPECIAL_A if piece not in ids]
    if missing:
        raise UserError(f"{vocabulary}: not BERT's vocabulary: {', '.join(missing)} not among its {len(lines)} lines")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in (PAD, UNKNOWN, START_A, END_A)]
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True, handle_chinese_chars=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame(tokenizer, START_A, END_A)
    return tokenizer


def _add_special(tokenizer: Tokenizer, words: Iterable[str]) -> None:
    """Make words that are in the vocabulary single tokens wherever a text has them, as transformers does."""
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in words])
