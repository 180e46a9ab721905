"""Text distillation: in any wording, either language, students say what a teacher says of the plainest English caption.

The teacher is the pair of text encoders that trained UNets know. The students' features come to its features through
linear maps, which join the UNets' weights (`text_map`): the nets then draw from sentences that they never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as mops
from mindspore.common.initializer import Normal, initializer
from PIL import Image

from mindpangu import zoo
from mindpangu.checkpoint.store import load_into, load_tensors, prefixed, write_atomically
from mindpangu.data.examples import Examples
from mindpangu.data.lexicon import Noun
from mindpangu.data.phrases import LANGUAGES, style_words
from mindpangu.data.scenes import Scene
from mindpangu.errors import UserError
from mindpangu.metrics.scores import unit
from mindpangu.models.clip import BATCH, encode_texts, text_encoder
from mindpangu.models.conditioner import Conditioner
from mindpangu.models.loading import load_conditioner, load_tokenizers, read_spec
from mindpangu.spec import TEXT_ENCODERS, TextSpec
from mindpangu.train.config import TextDistillationConfig, TrainConfig
from mindpangu.train.diffusion import frozen
from mindpangu.train.loop import Task
from mindpangu.train.rows import ALL, Rows
from mindpangu.train.teacher import frequent_words, sentence
from mindpangu.train.text_encoders import TOKEN_VECTORS, export_text_encoders, export_vocabulary, fitted, token_table
from mindpangu.train.text_map import TextMap

FILE = "text_map.safetensors"
MAPS = ("tokens", "pooled")  # what is mapped, each with a bias
CANVAS = 128  # scenes are laid out at this size
EMPTY_SHARE = 0.03  # of captions: guidance starts from what is said of none
STATISTICS = 512  # captions whose features of the teacher's give its mean and spread
SHOWN = 128  # captions in the similarity matrix of `samples`
MEASURED = 1024  # captions over which an export says how much it explains
LATER = 1 << 30  # numbers of captions that no training comes to


class TextDistillationLoss(nn.Cell):
    """construct(ids_a, ids_b, plain_a, plain_b), each (N, L) -> the mean squared error of tokens' and pooled features.

    Errors are in units of the teacher's spread, so a student that says the teacher's mean of everything scores
    1 + pooled_weight. `plain_a`, `plain_b`: what the teacher reads, in the ids of its own tokenizers.
    """

    def __init__(
        self,
        task: TextDistillationConfig,
        teacher: Conditioner,
        mean: tuple[np.ndarray, ...],
        spread: tuple[float, ...],
    ) -> None:
        """`mean` ((C,), (P,)) and `spread` of the teacher's features, of tokens and pooled."""
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder(task.text_encoder), text_encoder(task.text_encoder_2)
        width, projection = task.text_encoder.width + task.text_encoder_2.width, task.text_encoder_2.projection_dim
        assert projection is not None
        # Maps to the teacher's features, of which `mean` and `spread` are taken off.
        self.tokens = Parameter(initializer(Normal(width**-0.5), (width, len(mean[0]))), name="tokens")
        self.tokens_bias = Parameter(initializer("zeros", mean[0].shape), name="tokens_bias")
        self.pooled = Parameter(initializer(Normal(projection**-0.5), (projection, len(mean[1]))), name="pooled")
        self.pooled_bias = Parameter(initializer("zeros", mean[1].shape), name="pooled_bias")
        self.teacher, self.pooled_weight = teacher, task.pooled_weight
        self.mean, self.spread = tuple(map(Tensor, mean)), spread

    def student(self, ids_a: Tensor, ids_b: Tensor) -> tuple[Tensor, Tensor]:
        """Features of tokens (N, L, C) and pooled ones (N, P), in the teacher's units."""
        a, _ = self.text_encoder(ids_a)
        b, pooled = self.text_encoder_2(ids_b)
        both = mops.concat((a, b), -1)
        n, length, width = both.shape
        tokens = mops.matmul(both.reshape((n * length, width)), self.tokens).reshape((n, length, -1))
        return tokens + self.tokens_bias, mops.matmul(pooled, self.pooled) + self.pooled_bias

    def taught(self, plain_a: Tensor, plain_b: Tensor) -> tuple[Tensor, Tensor]:
        """What the student is to say."""
        tokens, pooled = features(self.teacher, plain_a, plain_b)
        tokens, pooled = (tokens - self.mean[0]) / self.spread[0], (pooled - self.mean[1]) / self.spread[1]
        return mops.stop_gradient(tokens), mops.stop_gradient(pooled)

    def construct(self, ids_a: Tensor, ids_b: Tensor, plain_a: Tensor, plain_b: Tensor) -> Tensor:
        tokens, pooled = self.student(ids_a, ids_b)
        taught_tokens, taught_pooled = self.taught(plain_a, plain_b)
        far = mops.square(tokens - taught_tokens).mean()
        return far + self.pooled_weight * mops.square(pooled - taught_pooled).mean()


def features(encoders: Conditioner, ids_a: Tensor, ids_b: Tensor) -> tuple[Tensor, Tensor]:
    """What UNets are given of two text encoders: features of tokens (N, L, C) and pooled ones (N, P)."""
    a, _ = encoders.text_encoders[0](ids_a)
    b, pooled = encoders.text_encoders[1](ids_b)
    return mops.concat((a, b), -1), pooled


class TrainTextDistillation(Task):
    """The `loop.Task` for students of a model's text encoders."""

    def __init__(self, config: TrainConfig) -> None:
        """Tokenizers are those beside `load_checkpoint`. Raises: UserError."""
        assert config.text_distillation is not None
        assert config.data is not None
        assert config.load_checkpoint is not None
        self.seed, self.examples = config.context.seed, Examples(config.data, seed=config.context.seed)
        task, source = config.text_distillation, config.load_checkpoint
        self.frequent = frequent_words(task.words) if task.sentences else {}
        self.teacher_tokenizers = load_tokenizers(task.teacher, TEXT_ENCODERS)
        self.tokenizers = load_tokenizers(source, TEXT_ENCODERS)
        for encoder in TEXT_ENCODERS:
            content = zoo.tokenizer_path(source, encoder).read_bytes()
            write_atomically(config.output_dir / zoo.tokenizer_path(source, encoder).name, content)
        specs = task.text_encoder, task.text_encoder_2
        for spec, encoder in zip(specs, TEXT_ENCODERS):
            wanted = read_spec(zoo.part_path(task.teacher, encoder), TextSpec).context_length
            if spec.context_length != wanted:
                raise UserError(
                    f"text_distillation.{encoder}.context_length is {spec.context_length}; the teacher's is {wanted}"
                )
        a, b = (fitted(spec, tokenizer) for spec, tokenizer in zip(specs, self.tokenizers))
        self.task = replace(task, text_encoder=a, text_encoder_2=b)
        teacher, shown = (frozen(load_conditioner(task.teacher, TEXT_ENCODERS, 0)) for _ in range(2))
        self.mean, self.spread = self._statistics(shown)
        self.loss_net = TextDistillationLoss(self.task, teacher, self.mean, self.spread)
        self._shown = TextDistillationLoss(self.task, shown, self.mean, self.spread)

    def _statistics(self, teacher: Conditioner) -> tuple[tuple[np.ndarray, ...], tuple[float, ...]]:
        """Means over captions (and tokens), and spreads, of what the teacher says: of tokens, and pooled."""
        plain = [text for _, text in self._captions(range(LATER, LATER + STATISTICS))]
        said = [encode_texts(e, t, plain) for e, t in zip(teacher.text_encoders, self.teacher_tokenizers)]
        both = np.concatenate([tokens for tokens, _ in said], -1), said[1][1]
        flat = [array.reshape(-1, array.shape[-1]) for array in both]
        return tuple(x.mean(0) for x in flat), tuple(float(np.sqrt(x.var(0).mean())) for x in flat)

    def _captions(self, numbers: range) -> list[tuple[str, str]]:
        """Wordings, and plain English, of captions by number: each scene has one in each language; some are empty."""
        return [self._caption(*divmod(number, len(LANGUAGES))) for number in numbers]

    def _caption(self, index: int, language: int) -> tuple[str, str]:
        captions, rng = self.examples.captions, self.examples.rng(index, f"caption-{LANGUAGES[language]}")
        if rng.random() < EMPTY_SHARE:
            return "", ""
        scene = self.examples.scene(index, (CANVAS, CANVAS))
        if rng.random() < self.task.sentences:
            noun = captions.nouns[scene.things[0].picture]
            return self._sentence(noun, LANGUAGES[language], rng), noun.name["en"]
        wording, style = captions.with_style(scene, LANGUAGES[language], rng)
        plain = [captions.plain(self._as_known(scene), "en")]
        if style:
            plain.append(style_words(captions.records[scene.things[0].picture].style, "en")[0])
        return wording, ", ".join(plain)

    def _sentence(self, noun: Noun, language: str, rng: np.random.Generator) -> str:
        """A name of the thing among words that say nothing of it."""
        names = [noun.name[language], *noun.other[language]]
        if language == "en":
            names += map(noun.plural_of, list(names))
        return sentence(language, names, self.frequent[language], rng)

    def _as_known(self, scene: Scene) -> Scene:
        """The scene without what the teacher knows no words for."""
        unknown: dict[str, Any] = {name: {"count": 1, "size": ""}[name] for name in self.task.unknown}
        return replace(scene, things=tuple(replace(thing, **unknown) for thing in scene.things))

    def start_from(self, path: Path) -> None:
        """Take the token vectors of a folder of text encoders; of another text distillation all that was learned."""
        if (path / FILE).exists():
            self._go_on_from(path)
            return
        for encoder, net in zip(TEXT_ENCODERS, (self.loss_net.text_encoder, self.loss_net.text_encoder_2)):
            file, table = zoo.part_path(path, encoder), token_table(net)
            vectors = next((v for name, v in load_tensors(file).items() if name.endswith(TOKEN_VECTORS)), None)
            if vectors is None or vectors.shape != table.shape:
                found = "none" if vectors is None else f"{vectors.shape}"
                raise UserError(f"{file}: token vectors {table.shape} are needed; found {found}")
            table.set_data(Tensor(vectors.astype(np.float32)))

    def _go_on_from(self, path: Path) -> None:
        """Students and maps, these in units of this teacher's spread."""
        weights: dict[str, np.ndarray] = {}
        for encoder in TEXT_ENCODERS:
            weights.update(prefixed(load_tensors(zoo.part_path(path, encoder)), f"{encoder}."))
        maps = vars(TextMap.load(path / FILE))
        for name, mean, spread in zip(MAPS, self.mean, self.spread):
            weights[name] = maps[name] / np.float32(spread)
            weights[f"{name}_bias"] = (maps[f"{name}_bias"] - mean) / np.float32(spread)
        load_into(self.loss_net.trainable_params(), weights, str(path))

    def batch(self, nimg: int, count: int, part: slice = ALL) -> tuple[np.ndarray, ...]:
        """Ids of wordings in each student's tokens, and of plain English in each teacher's."""
        return self._ids(self._captions(Rows(self.seed, nimg, count, part).numbers))

    def _ids(self, captions: Sequence[tuple[str, str]]) -> tuple[np.ndarray, ...]:
        wordings, plain = ([pair[i] for pair in captions] for i in range(2))
        return (*(t(wordings) for t in self.tokenizers), *(t(plain) for t in self.teacher_tokenizers))

    def _answers(self, weights: Mapping[str, np.ndarray], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """What students say of `count` new captions and what they should say: of tokens, and pooled."""
        load_into(self._shown.trainable_params(), weights, "the average")
        parts = []
        for start in range(0, count, BATCH):
            ids = [Tensor(x) for x in self.batch(LATER + start, BATCH)]
            parts.append([x.asnumpy() for x in (*self._shown.student(*ids[:2]), *self._shown.taught(*ids[2:]))])
        tokens, pooled, taught_tokens, taught_pooled = (np.concatenate(x)[:count] for x in zip(*parts))
        return [(tokens, taught_tokens), (pooled, taught_pooled)]

    def samples(self, weights: Mapping[str, np.ndarray], path: Path) -> None:
        """Cosines of students' pooled features of SHOWN captions (rows) and the teacher's (columns), a grey square.

        A good model shows a diagonal of squares, two captions each.
        """
        said, taught = (unit(x) for x in self._answers(weights, SHOWN)[1])
        grey = np.clip(said @ taught.T * 127 + 127, 0, 255).astype(np.uint8)
        Image.fromarray(np.kron(grey, np.ones((4, 4), np.uint8))).save(path)

    def export(self, weights: Mapping[str, np.ndarray], folder: Path, card: Mapping[str, Any]) -> None:
        """Both text encoders in fp16, the vocabulary, and text_map.safetensors for the teacher's UNets.

        The map's card says how much of the teacher's features' variance over new captions it `explained`.
        """
        explained = [
            round(1 - float(((y - x) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()), 4)
            for x, y in self._answers(weights, MEASURED)
        ]
        export_text_encoders(weights, (self.task.text_encoder, self.task.text_encoder_2), folder, card)
        export_vocabulary(self.examples, self._shown.text_encoder_2, self.tokenizers[1], folder, self.task.unknown)
        maps = {}
        for name, mean, spread in zip(MAPS, self.mean, self.spread):
            maps[name] = weights[name] * np.float32(spread)
            maps[f"{name}_bias"] = weights[f"{name}_bias"] * np.float32(spread) + mean
        TextMap(**maps).save(folder / FILE, {"explained": dict(zip(MAPS, explained)), **card})
