"""What the trainings of text encoders share: vocabulary sizes, token vectors, and the files that they export."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, nn

from mindpangu.checkpoint.store import half, save_checkpoint, unprefixed
from mindpangu.data.examples import Examples
from mindpangu.data.phrases import LANGUAGES, spoken
from mindpangu.errors import UserError
from mindpangu.models.clip import encode_texts
from mindpangu.spec import TEXT_ENCODERS, TextSpec
from mindpangu.text.tokenizer import TextTokenizer
from mindpangu.text.vocabulary import FILE as VOCABULARY
from mindpangu.text.vocabulary import directions, words_and_pieces

TOKEN_VECTORS = "token_embedding.embedding_table"


def fitted(spec: TextSpec, tokenizer: TextTokenizer) -> TextSpec:
    """The spec with the vocabulary that the tokenizer really has.

    Raises:
        UserError: the tokenizer is larger than the spec allows.
    """
    if tokenizer.vocab_size > spec.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, more than vocab_size {spec.vocab_size}")
    return replace(spec, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id)


def token_table(encoder: nn.Cell) -> Parameter:
    """A text encoder's token vectors (vocab_size, width)."""
    return next(p for p in encoder.get_parameters() if p.name.endswith(TOKEN_VECTORS))


def export_text_encoders(
    weights: Mapping[str, np.ndarray], specs: Sequence[TextSpec], folder: Path, card: Mapping[str, Any]
) -> None:
    """text_encoder.safetensors and text_encoder_2.safetensors in fp16, of weights that begin with these names."""
    for name, spec in zip(TEXT_ENCODERS, specs):
        tensors = half(unprefixed(weights, f"{name}."))
        save_checkpoint(folder / f"{name}.safetensors", tensors, {"spec": asdict(spec), **card})


def export_vocabulary(
    examples: Examples, encoder: nn.Cell, tokenizer: TextTokenizer, folder: Path, unknown: Collection[str] = ()
) -> None:
    """vocabulary.safetensors: the words that captions are made of, and the encoder's features of names.

    `unknown`: what is said in captions and known to no net, as in `spoken`.
    """
    nouns = list({one.emoji: one for one in examples.captions.nouns}.values())
    names = {language: [one.name[language] for one in nouns] for language in LANGUAGES}
    _, pooled = encode_texts(encoder, tokenizer, [name for of_language in names.values() for name in of_language])
    tags = {tag for record in examples.records for tags in record.tags.values() for tag in tags}
    said = words_and_pieces(spoken(nouns, tags, unknown))
    save_checkpoint(folder / VOCABULARY, directions(pooled), {"names": names, **said})
