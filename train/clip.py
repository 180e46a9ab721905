"""CLIP's task: both text encoders against one image encoder, both languages, pictures and compositions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as mops
from mindspore.common.initializer import Normal, initializer
from PIL import Image

from mindpangu.checkpoint.store import load_into, write_atomically
from mindpangu.data import manifest
from mindpangu.data.examples import Examples, Stream
from mindpangu.data.phrases import LANGUAGES
from mindpangu.data.scenes import Scene
from mindpangu.errors import UserError
from mindpangu.images import to_model
from mindpangu.models.clip import ImageEncoder, text_encoder
from mindpangu.text.tokenizer import TextTokenizer, train_byte_bpe, train_wordpiece
from mindpangu.train.config import ClipConfig, TrainConfig
from mindpangu.train.loop import Task
from mindpangu.train.rows import ALL
from mindpangu.train.state import states
from mindpangu.train.teacher import WIDTH, features, free_texts, token_vectors
from mindpangu.train.text_encoders import export_text_encoders, export_vocabulary, fitted, token_table

CORPUS = 20000  # scenes whose captions, in each language, the tokenizers are trained on
MAX_LOGIT_SCALE = 4.6052  # ln 100, as in CLIP
CANVAS = 128  # scenes are laid out at this size, then drawn at the image encoder's
SHOWN = 64  # scenes in the similarity matrix of `samples`
NEIGHBOURS = 16  # scenes of one subgroup in the hard part of a batch


class ClipLoss(nn.Cell):
    """construct(images (N, 3, S, S), ids of each text encoder (2N + M, L), teacher (N + M, W)) -> the mean loss.

    Rows 0 … N of the ids are the English captions, then come the Chinese ones, then M free texts. An encoder's loss is
    the mean symmetric InfoNCE of picture–English, picture–Chinese and English–Chinese (the last pair makes the
    languages meet soon, where an image encoder that also starts from nothing takes long to tell the pictures apart),
    and, with `distill`, 1 − cosine of a projection with the teacher's features, over captions and free texts.
    """

    def __init__(self, task: ClipConfig) -> None:
        super().__init__()
        self.image = ImageEncoder(task.image)
        self.text_encoder, self.text_encoder_2 = text_encoder(task.text_encoder), text_encoder(task.text_encoder_2)
        # The first encoder has no projection in PanGu-Draw; this one serves the training alone and is not exported.
        width, shared = task.text_encoder.width, task.image.projection_dim
        self.projection_a = Parameter(initializer(Normal(width**-0.5), (width, shared)), name="projection_a")
        self.logit_scale = Parameter(Tensor(np.log(np.float32(1 / 0.07))), name="logit_scale")
        self.weight = 0.0 if task.distill is None else task.distill.weight
        if self.weight:
            self.to_teacher_a = Parameter(initializer(Normal(shared**-0.5), (shared, WIDTH)), name="to_teacher_a")
            self.to_teacher_b = Parameter(initializer(Normal(shared**-0.5), (shared, WIDTH)), name="to_teacher_b")

    def embed(self, images: Tensor, ids_a: Tensor, ids_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of the pictures and of the texts by either encoder."""
        a = mops.matmul(self.text_encoder(ids_a)[1], self.projection_a)
        return unit(self.image(images)), unit(a), unit(self.text_encoder_2(ids_b)[1])

    def construct(self, images: Tensor, ids_a: Tensor, ids_b: Tensor, teacher: Tensor) -> Tensor:
        image, a, b = self.embed(images, ids_a, ids_b)
        scale, n = mops.exp(mops.minimum(self.logit_scale, MAX_LOGIT_SCALE)), image.shape[0]
        loss = 0.5 * (three_ways(image, a[: 2 * n], scale) + three_ways(image, b[: 2 * n], scale))
        if self.weight:
            of_rows = mops.concat((teacher[:n], teacher), 0)
            far = distance(mops.matmul(a, self.to_teacher_a), of_rows)
            far = far + distance(mops.matmul(b, self.to_teacher_b), of_rows)
            loss = loss + self.weight * 0.5 * far
        return loss


def distance(x: Tensor, y: Tensor) -> Tensor:
    """1 − cosine of the rows of x and the unit rows of y, in the mean."""
    return 1.0 - (unit(x) * y).sum(-1).mean()


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


class TrainClip(Task):
    """The `loop.Task` for the text encoders."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises: UserError where the teacher is asked for and not installed."""
        assert config.clip is not None
        self.seed = config.context.seed
        assert config.data is not None
        self.examples = Examples(config.data, seed=self.seed)
        self.free = [] if config.clip.distill is None else self._free_texts(config)
        self.tokenizers = self._tokenizers(config.clip, config.output_dir)
        self.task = replace(
            config.clip,
            text_encoder=fitted(config.clip.text_encoder, self.tokenizers[0]),
            text_encoder_2=fitted(config.clip.text_encoder_2, self.tokenizers[1]),
        )
        subgroups = [self.examples.records[self.examples.first(i)].subgroup for i in range(self.task.scenes)]
        self.subgroups = [np.flatnonzero(np.array(subgroups) == name) for name in sorted(set(subgroups))]
        self.teacher = np.zeros((self.task.scenes, 1), np.float32)
        if self.task.distill is not None:
            plain = [self.examples.captions.plain(self._scene(i), "en") for i in range(self.task.scenes)]
            self.teacher = features([*plain, *self.free], config.output_dir / "teacher.safetensors")
        self.loss_net = ClipLoss(self.task)
        if self.task.distill is not None and not (config.resume_training and states(config.output_dir)):
            self._start_from_teacher()
        self._shown = ClipLoss(self.task)

    def _scene(self, index: int) -> Scene:
        return self.examples.scene(index, (CANVAS, CANVAS))

    @staticmethod
    def _free_texts(config: TrainConfig) -> list[str]:
        """Of every concept of the data set, trained on or not, and of the language at large."""
        assert config.data is not None
        assert config.clip is not None
        assert config.clip.distill is not None
        distill, rng = config.clip.distill, np.random.default_rng([config.context.seed, Stream.FREE_TEXTS])
        return free_texts(manifest.read(config.data.folder), distill.words, distill.sentences, rng)

    def _start_from_teacher(self) -> None:
        """Give both encoders token vectors that are fitted to the teacher: words mean something from the first step."""
        count = min(CORPUS, self.task.scenes)
        scenes = [self._scene(i) for i in range(count)]
        captions = [self.examples.caption(s, i, language) for language in LANGUAGES for i, s in enumerate(scenes)]
        known = np.concatenate([self.teacher[:count], self.teacher[:count], self.teacher[self.task.scenes :]])
        for encoder, tokenizer in zip((self.loss_net.text_encoder, self.loss_net.text_encoder_2), self.tokenizers):
            table = token_table(encoder)
            vectors = token_vectors(tokenizer, [*captions, *self.free], known, table.shape[1])
            table.set_data(Tensor(vectors))

    def _tokenizers(self, task: ClipConfig, folder: Path) -> tuple[TextTokenizer, TextTokenizer]:
        """Those in the run's folder, or new ones trained on captions of the training scenes and the free texts."""
        paths = folder / "tokenizer.json", folder / "tokenizer_2.json"
        if not all(path.exists() for path in paths):
            scenes = [self.examples.scene(i) for i in range(CORPUS)]
            corpus = [self.examples.caption(s, i, language) for i, s in enumerate(scenes) for language in LANGUAGES]
            emoji = list(dict.fromkeys(noun.emoji for noun in self.examples.captions.nouns))
            corpus += self.free
            trained = (
                train_wordpiece(corpus, task.text_encoder.vocab_size, emoji),
                train_byte_bpe(corpus, task.text_encoder_2.vocab_size, emoji),
            )
            for path, tokenizer in zip(paths, trained):
                write_atomically(path, tokenizer.to_str().encode())
        a = TextTokenizer.load(paths[0], task.text_encoder.context_length)
        return a, TextTokenizer.load(paths[1], task.text_encoder_2.context_length)

    def start_from(self, path: Path) -> None:
        """Not offered. Raises: UserError."""
        raise UserError(f"load_checkpoint {path}: text encoders are trained from nothing; leave the key out")

    def batch(self, nimg: int, count: int, part: slice = ALL) -> tuple[np.ndarray, ...]:
        """Pictures, ids of their captions, English ones first, and of free texts, and the teacher's features.

        All of them, since each is compared with all others.
        """
        assert part in (ALL, slice(0, count)), "one process trains text encoders (see run)"
        rng = np.random.default_rng([self.seed, nimg, Stream.SCENES])
        numbers = self._chosen(rng, count)
        scenes = [self._scene(i) for i in numbers]
        prompts = [self.examples.caption(s, nimg + j, language) for language in LANGUAGES for j, s in enumerate(scenes)]
        scale = self.task.image.image_size / CANVAS
        images, teacher = to_model([self.examples.image(s, scale) for s in scenes]), self.teacher[numbers]
        if self.task.distill is not None:
            free = rng.integers(len(self.free), size=self.task.distill.free_texts)
            prompts += [self.free[i] for i in free]
            teacher = np.concatenate([teacher, self.teacher[self.task.scenes + free]])
        return images, self.tokenizers[0](prompts), self.tokenizers[1](prompts), teacher

    def _chosen(self, rng: np.random.Generator, count: int) -> list[int]:
        """Numbers of scenes, a share of them from few subgroups; no concept comes twice unless there are too few."""
        numbers: dict[str, int] = {}
        hard = [
            scene
            for _ in range(round(count * self.task.hard_share) // NEIGHBOURS)
            for scene in rng.permutation(self.subgroups[int(rng.integers(len(self.subgroups)))])[: 4 * NEIGHBOURS]
        ]
        for scene in (*hard, *rng.integers(self.task.scenes, size=4 * count)):
            numbers.setdefault(self.examples.records[self.examples.first(int(scene))].concept, int(scene))
        return (list(numbers.values()) * count)[:count]

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Similarities of SHOWN scenes to new captions of them, a grey square an encoder (columns) and language (rows).

        A good model shows diagonals.
        """
        load_into(self._shown.trainable_params(), weights, "the average")
        heldout = 1 << 30  # far beyond any training image, so the captions are new
        image, a, b = self._shown.embed(*(Tensor(array) for array in self.batch(heldout, SHOWN)[:3]))
        columns = [
            np.concatenate([image.asnumpy() @ half.T for half in np.split(text.asnumpy()[: 2 * SHOWN], 2)])
            for text in (a, b)
        ]
        grey = np.clip(np.concatenate(columns, 1) * 127 + 127, 0, 255).astype(np.uint8)
        Image.fromarray(np.kron(grey, np.ones((6, 6), np.uint8))).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """text_encoder.safetensors and text_encoder_2.safetensors in fp16; the tokenizers are there already."""
        export_text_encoders(weights, (self.task.text_encoder, self.task.text_encoder_2), folder, card)
        load_into(self._shown.trainable_params(), weights, "the average")
        export_vocabulary(self.examples, self._shown.text_encoder_2, self.tokenizers[1], folder)
