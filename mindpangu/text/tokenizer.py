"""The tokenizers of PanGu-Draw's two text encoders, on the `tokenizers` library.

The first takes BERT WordPiece as in Chinese-CLIP: CJK characters split, lower case, accents stripped, [CLS] … [SEP],
zero padded. The second takes byte-level BPE as in CLIP: <|startoftext|> … <|endoftext|>, zero padded as in OpenCLIP.
Prompt weights: "a (red:1.4) fox" is the prompt "a red fox" in which "red" counts 1.4 times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mindpangu.errors import UserError

PAD, UNKNOWN, START_A, END_A = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
START_B, END_B = "<|startoftext|>", "<|endoftext|>"


class TextTokenizer:
    """Turns prompts into ids of a fixed length for one encoder."""

    def __init__(self, tokenizer: Tokenizer, context_length: int, pad_id: int = 0) -> None:
        self.tokenizer, self.context_length, self.pad_id = tokenizer, context_length, pad_id
        self.end_id = next(i for i in (tokenizer.token_to_id(END_A), tokenizer.token_to_id(END_B)) if i is not None)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Ids, (N, context_length) int32. A long prompt is cut and still ends with the end token."""
        rows = np.full((len(prompts), self.context_length), self.pad_id, np.int32)
        for row, encoding in zip(rows, self.tokenizer.encode_batch(list(prompts))):
            ids = encoding.ids[: self.context_length]
            row[: len(ids)] = ids
            if len(encoding.ids) > self.context_length:
                row[-1] = self.end_id
        return rows

    def weights(self, prompt: Weighted) -> np.ndarray:
        """(context_length,) float32: each token's weight, 1 for those that no span touches and for padding."""
        weights = np.ones(self.context_length, np.float32)
        for i, (start, stop) in enumerate(self.tokenizer.encode(prompt.text).offsets[: self.context_length]):
            for first, last, weight in prompt.spans:
                if start < last and stop > first:
                    weights[i] = weight
        return weights

    def length(self, prompt: str) -> int:
        """How many ids `prompt` takes, start and end included, uncut."""
        return len(self.tokenizer.encode(prompt).ids)

    def unread(self, prompt: str) -> str:
        """The end of `prompt` that does not fit, "" where all of it does."""
        encoding = self.tokenizer.encode(prompt)
        if len(encoding.ids) <= self.context_length:
            return ""
        return prompt[encoding.offsets[self.context_length - 1][0] :]

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self.tokenizer.get_vocab_size())

    @classmethod
    def load(cls, path: Path, context_length: int, pad_id: int = 0) -> TextTokenizer:
        """Read a tokenizer.json.

        Raises:
            UserError: absent or damaged.
        """
        if not path.exists():
            raise UserError(f"{path}: no such file; the model folder is not whole")
        try:
            return cls(Tokenizer.from_file(str(path)), context_length, pad_id)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer file ({error})") from None


# Joiners, variation selectors and skin tones: what a picture of an emoji does not show.
EMOJI_MODIFIERS = "[\u200d\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]"
CJK = Regex("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def robust() -> list[normalizers.Normalizer]:
    """What both of our own tokenizers do first: full-width forms to plain ones, white space to single spaces."""
    return [
        normalizers.NFKC(),
        normalizers.Replace(Regex(EMOJI_MODIFIERS), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]


def train_wordpiece(corpus: Iterable[str], vocab_size: int, whole: Sequence[str] = ()) -> Tokenizer:
    """The first text encoder's kind of tokenizer, trained on `corpus`; at most `vocab_size` ids, id 0 pads.

    `whole`: characters that are tokens of their own wherever they stand (emoji).
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [*robust(), normalizers.BertNormalizer(lowercase=True, strip_accents=True, handle_chinese_chars=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [PAD, UNKNOWN, START_A, END_A]
    tokenizer.train_from_iterator(
        corpus,
        trainers.WordPieceTrainer(vocab_size=vocab_size - len(whole), special_tokens=special, show_progress=False),
    )
    return finished(tokenizer, START_A, END_A, whole)


def train_byte_bpe(corpus: Iterable[str], vocab_size: int, whole: Sequence[str] = ()) -> Tokenizer:
    """The second text encoder's kind of tokenizer, trained on `corpus`; at most `vocab_size` ids, id 0 pads.

    No text is unknown to it. CJK characters are pieces of their own. `whole` as for `train_wordpiece`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([*robust(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(CJK, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        special_tokens=[PAD, START_B, END_B],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return finished(tokenizer, START_B, END_B, whole)


def finished(tokenizer: Tokenizer, start: str, end: str, whole: Sequence[str]) -> Tokenizer:
    """The tokenizer with `whole` as tokens, and `start` and `end` around every text."""
    tokenizer.add_tokens([AddedToken(one, normalized=True) for one in whole])
    frame(tokenizer, start, end)
    return tokenizer


def frame(tokenizer: Tokenizer, start: str, end: str) -> None:
    """Put the tokens `start` and `end` around every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )


NUMBER_MARK = re.compile(r"\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$")
NO_MARK = re.compile(r"\([^()]*:[^()]*\)|<\w+:[^<>]*>|\[[^\[\]]*:[^\[\]]*\]")  # as other programs have them


@dataclass(frozen=True)
class Weighted:
    """A prompt without its marks, and (start, stop, weight) of the characters that were marked."""

    text: str
    spans: tuple[tuple[int, int, float], ...]


def parse_weights(prompt: str) -> Weighted:
    """Take "(words:number)" marks out of a prompt; the numbers of marks within marks multiply.

    White space around the number does not matter; "\\(" and "\\)" are brackets and no marks, as are brackets without
    a number.
    """
    open_marks: list[list[tuple[str, float]]] = [[]]  # characters and their weights, since each "(" that is open
    characters = iter(prompt)
    for one in characters:
        if one == "\\":
            following = next(characters, "")
            open_marks[-1] += [(c, 1.0) for c in (following if following in ("(", ")") else one + following)]
        elif one == "(":
            open_marks.append([])
        elif one == ")" and len(open_marks) > 1:
            inside = open_marks.pop()
            text = "".join(c for c, _ in inside)
            number = NUMBER_MARK.search(text)
            if number and text[: number.start()].strip():
                open_marks[-1] += [(c, weight * float(number[1])) for c, weight in inside[: number.start()]]
            else:
                open_marks[-1] += [("(", 1.0), *inside, (")", 1.0)]
        else:
            open_marks[-1].append((one, 1.0))
    written = open_marks[0]
    for inside in open_marks[1:]:  # brackets that are never closed
        written = [*written, ("(", 1.0), *inside]
    spans: list[tuple[int, int, float]] = []
    for i, (_, weight) in enumerate(written):
        if spans and spans[-1][1:] == (i, weight):
            spans[-1] = (spans[-1][0], i + 1, weight)
        elif weight != 1.0:
            spans.append((i, i + 1, weight))
    return Weighted("".join(c for c, _ in written), tuple(spans))


def unread_marks(text: str) -> list[str]:
    """What looks like a mark of another program and is read as words."""
    return NO_MARK.findall(text)
