"""CLIP's task: both text towers against one image tower, both languages, pictures and compositions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as mops
from mindspore.common.initializer import Normal, initializer
from PIL import Image

from mindpangu.checkpoint.store import load_into, save_checkpoint, write_atomically
from mindpangu.checkpoint.weights import half, unprefixed
from mindpangu.data.captions import LANGUAGES
from mindpangu.data.examples import Examples, to_model
from mindpangu.errors import UserError
from mindpangu.models.clip import ImageTower, text_tower
from mindpangu.models.spec import TextSpec
from mindpangu.text.tokenizer import TextTokenizer, train_byte_bpe, train_wordpiece
from mindpangu.train.config import ClipTask, TrainConfig

CORPUS = 20000  # captions of each language that the tokenizers are trained on
MAX_LOGIT_SCALE = 4.6052  # ln 100, as in CLIP
CANVAS = 128  # scenes are laid out at this size, then drawn at the image tower's
SHOWN = 64  # scenes in the similarity matrix of `samples`


class ClipLoss(nn.Cell):
    """construct(images (N, 3, S, S), ids of tower A (2N, L), ids of tower B (2N, L)) -> the towers' mean loss.

    Rows 0 … N of the ids are the English captions, the rest the Chinese ones. A tower's loss is the mean symmetric
    InfoNCE of picture–English, picture–Chinese and English–Chinese: the last pair makes the languages meet soon, where
    an image tower that also starts from nothing takes long to tell the pictures apart.
    """

    def __init__(self, task: ClipTask) -> None:
        super().__init__()
        self.image = ImageTower(task.image)
        self.text_a, self.text_b = text_tower(task.text_a), text_tower(task.text_b)
        # Tower A has no projection in PanGu-Draw; this one serves the training alone and is not exported.
        width = task.text_a.width
        self.projection_a = Parameter(
            initializer(Normal(width**-0.5), (width, task.image.projection_dim)), name="projection_a"
        )
        self.logit_scale = Parameter(Tensor(np.log(np.float32(1 / 0.07))), name="logit_scale")

    def embed(self, images: Tensor, ids_a: Tensor, ids_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of the pictures and of the texts by either tower."""
        a = mops.matmul(self.text_a(ids_a)[1], self.projection_a)
        return unit(self.image(images)), unit(a), unit(self.text_b(ids_b)[1])

    def construct(self, images: Tensor, ids_a: Tensor, ids_b: Tensor) -> Tensor:
        image, a, b = self.embed(images, ids_a, ids_b)
        scale = mops.exp(mops.minimum(self.logit_scale, MAX_LOGIT_SCALE))
        return 0.5 * (three_ways(image, a, scale) + three_ways(image, b, scale))


def unit(x: Tensor) -> Tensor:
    """Rows of length one."""
    return x * mops.rsqrt((x * x).sum(-1, keepdims=True) + 1e-8)


def three_ways(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """The mean InfoNCE among pictures (N, C) and the two languages of text (2N, C)."""
    n = image.shape[0]
    en, zh = text[:n], text[n:]
    return (contrast(image, en, scale) + contrast(image, zh, scale) + contrast(en, zh, scale)) / 3


def contrast(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of matching rows (arXiv 2103.00020, figure 3)."""
    logits = scale * mops.matmul(x, y.transpose((1, 0)))
    eye = mops.eye(x.shape[0], x.shape[0], logits.dtype)
    hits = (logits * eye).sum(-1)
    rows, columns = mops.logsumexp(logits, 1), mops.logsumexp(logits, 0)
    return (0.5 * (rows + columns) - hits).mean()


class TrainClip:
    """The `loop.Task` for the text towers."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.clip is not None
        self.seed = config.context.seed
        assert config.data is not None
        self.examples = Examples(config.data, seed=self.seed)
        self.tokenizers = self._tokenizers(config.clip, config.output_dir)
        self.task = replace(
            config.clip,
            text_a=fitted(config.clip.text_a, self.tokenizers[0]),
            text_b=fitted(config.clip.text_b, self.tokenizers[1]),
        )
        self.loss_net = ClipLoss(self.task)
        self._shown = ClipLoss(self.task)

    def _tokenizers(self, task: ClipTask, folder: Path) -> tuple[TextTokenizer, TextTokenizer]:
        """Those in the run's folder, or new ones trained on captions of the training scenes."""
        paths = folder / "tokenizer_a.json", folder / "tokenizer_b.json"
        if not all(path.exists() for path in paths):
            scenes = [self.examples.scene(i) for i in range(CORPUS)]
            corpus = [self.examples.caption(s, i, language) for i, s in enumerate(scenes) for language in LANGUAGES]
            trained = (
                train_wordpiece(corpus, task.text_a.vocab_size),
                train_byte_bpe(corpus, task.text_b.vocab_size),
            )
            for path, tokenizer in zip(paths, trained):
                write_atomically(path, tokenizer.to_str().encode())
        a = TextTokenizer.load(paths[0], task.text_a.context_length)
        return a, TextTokenizer.load(paths[1], task.text_b.context_length)

    def start_from(self, path: Path) -> None:
        """Not offered. Raises: UserError."""
        raise UserError(f"load_checkpoint {path}: text towers are trained from nothing; leave the key out")

    def batch(self, nimg: int, count: int) -> tuple[np.ndarray, ...]:
        """Pictures at the image tower's size and ids of their captions, first in English, then in Chinese."""
        numbers = range(nimg, nimg + count)
        scenes = [self.examples.scene(i, (CANVAS, CANVAS)) for i in numbers]
        prompts = [self.examples.caption(s, i, lang) for lang in LANGUAGES for s, i in zip(scenes, numbers)]
        scale = self.task.image.image_size / CANVAS
        images = to_model([self.examples.image(s, scale) for s in scenes])
        return images, self.tokenizers[0](prompts), self.tokenizers[1](prompts)

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Similarities of SHOWN unseen scenes to their captions, a grey square a tower (columns) and language (rows).

        A good model shows diagonals.
        """
        load_into(self._shown.trainable_params(), weights, "the average")
        heldout = 1 << 30  # far beyond any training image, so captions and layouts are new
        image, a, b = self._shown.embed(*(Tensor(array) for array in self.batch(heldout, SHOWN)))
        columns = [
            np.concatenate([image.asnumpy() @ half.T for half in np.split(text.asnumpy(), 2)]) for text in (a, b)
        ]
        grey = np.clip(np.concatenate(columns, 1) * 127 + 127, 0, 255).astype(np.uint8)
        Image.fromarray(np.kron(grey, np.ones((6, 6), np.uint8))).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """text_a.safetensors and text_b.safetensors in fp16; the tokenizers are there already."""
        for name, spec in (("text_a", self.task.text_a), ("text_b", self.task.text_b)):
            tensors = half(unprefixed(weights, f"{name}."))
            save_checkpoint(folder / f"{name}.safetensors", tensors, {"spec": asdict(spec), **card})


def fitted(spec: TextSpec, tokenizer: TextTokenizer) -> TextSpec:
    """The spec with the vocabulary that the tokenizer really has.

    Raises:
        UserError: the tokenizer is larger than the spec allows.
    """
    if tokenizer.vocab_size > spec.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, more than vocab_size {spec.vocab_size}")
    return replace(spec, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id)
