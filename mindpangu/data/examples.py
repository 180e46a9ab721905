"""Training examples: example i is a function of (seed, i) alone, so any run on any machine sees the same sequence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from mindpangu.data import manifest
from mindpangu.data.captions import ASIDES, TYPOS, Captions
from mindpangu.data.palette import Palette, palette
from mindpangu.data.phrases import LANGUAGES
from mindpangu.data.scenes import COLOURS, Mix, Scene, draw_things, render
from mindpangu.errors import UserError
from mindpangu.images import parse_size, read_picture

PLACED_ALONE = 0.25  # compositions of a single picture off the middle


class Stream(IntEnum):
    """The random streams of a training: default_rng([seed, a number, stream]). An example's own have words for names.

    Runs resume exactly, so no number changes its meaning.
    """

    ORDER = 1  # of pictures, a round
    AUTOENCODER = 2  # the posterior's noise, a picture
    DIFFUSION = 3  # the size of a batch, and whether it is cut to windows
    SCENES = 4  # the choice of a text encoder's scenes, a batch
    ENCODED = 5  # the order of encoded batches, an epoch
    NOISE_LEVELS = 6  # t and noise of a measured bin
    FREE_TEXTS = 7  # the teacher's sentences, once
    PICTURE = 8  # a picture's scene, noise level, noise, window and caption


@dataclass(frozen=True)
class DataConfig:
    """What to train on: a folder made by `mindpangu data`, and how to mix it.

    `styles`, `groups` None: all there is. `min_side`: smallest stored picture used, in pixels (the texture generator
    leaves out the small ones). `sizes`: "WxH", drawn in proportion to `size_weights`. `compositions`: share of scenes
    with stated places; `white_backgrounds`: of scenes on white. `counts`: share of things of which there are several;
    `stated_sizes`: of things that are small or big, and said to be. `asides`, `typos`: shares of captions with
    words on which the picture says nothing, and with a typing error.
    """

    folder: Path
    styles: Optional[tuple[str, ...]] = None
    groups: Optional[tuple[str, ...]] = None
    min_side: int = 0
    sizes: tuple[str, ...] = ("128x128",)
    size_weights: tuple[float, ...] = (1.0,)
    compositions: float = 0.0
    white_backgrounds: float = 0.55
    counts: float = 0.0
    stated_sizes: float = 0.0
    asides: float = ASIDES
    typos: float = TYPOS

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.size_weights):
            raise ValueError(f"{len(self.sizes)} sizes but {len(self.size_weights)} size_weights")
        for size in self.sizes:
            parse_size(size)


class Examples:
    """The scenes of a split ("train" or "heldout"), drawn at random but for ever the same."""

    def __init__(self, config: DataConfig, split: str = "train", seed: int = 0) -> None:
        """Raises: UserError where the manifest is missing or nothing is left after the filters."""
        self.config, self.seed = config, seed
        everything = manifest.read(config.folder, config.styles, config.groups)
        self.records = [r for r in everything if r.split == split and r.size >= config.min_side]
        if not self.records:
            raise UserError(f"{config.folder}: no {split} picture of at least {config.min_side} pixels")
        self._pictures: dict[int, Image.Image] = {}
        self._palettes: dict[int, Palette] = {}
        self.captions = Captions(self.records, self.palette, config.asides, config.typos)
        self._by_style: dict[str, list[int]] = {}
        for i, record in enumerate(self.records):
            self._by_style.setdefault(record.style, []).append(i)
        self._sizes = [parse_size(size) for size in config.sizes]
        weights = np.asarray(config.size_weights, np.float64)
        self._weights = weights / weights.sum()

    def picture(self, index: int) -> Image.Image:
        """Picture `index` of the split, square RGBA, kept in memory.

        Raises:
            UserError: the file is gone or unreadable.
        """
        if index not in self._pictures:
            self._pictures[index] = read_picture(self.config.folder / self.records[index].file)
        return self._pictures[index]

    def palette(self, index: int) -> Palette:
        """The colours of picture `index`. Raises: UserError as `picture`."""
        if index not in self._palettes:
            self._palettes[index] = palette(self.picture(index))
        return self._palettes[index]

    def rng(self, index: int, purpose: str) -> np.random.Generator:
        """The generator of example `index` for one purpose ("scene", "caption", …)."""
        return np.random.default_rng([self.seed, index, *purpose.encode()])

    def size_index(self, index: int) -> int:
        """Which of the configured sizes example `index` has."""
        return int(self.rng(index, "size").choice(len(self._sizes), p=self._weights))

    def scene(self, index: int, size: Optional[tuple[int, int]] = None) -> Scene:
        """Scene `index`. Single pictures go through the whole split in a new order each round."""
        rng = self.rng(index, "scene")
        if size is None:
            size = self._sizes[self.size_index(index)]
        first = self.first(index)
        pictures, at_places = [first], False
        long = max(size) >= 2 * min(size)
        if rng.random() < (max(self.config.compositions, 0.75) if long else self.config.compositions):
            at_places = True
            count = 1 if rng.random() < PLACED_ALONE else int(rng.integers(2, 4))
            same_style = self._by_style[self.records[first].style]
            pictures += [same_style[int(rng.integers(len(same_style)))] for _ in range(count - 1)]
        white = rng.random() < self.config.white_backgrounds
        background = "white" if white else list(COLOURS)[int(rng.integers(1, len(COLOURS)))]
        mix = Mix(self.config.counts, self.config.stated_sizes)
        things = draw_things(rng, size, pictures, at_places, mix, lambda i: self.captions.nouns[i].countable)
        return Scene(*size, background, things)

    def first(self, index: int) -> int:
        """Which picture scene `index` shows, or shows first."""
        turn, place = divmod(index, len(self.records))
        return int(np.random.default_rng([self.seed, turn, Stream.ORDER]).permutation(len(self.records))[place])

    def image(self, scene: Scene, scale: float = 1.0) -> np.ndarray:
        """The rendered scene, (height, width, 3) uint8."""
        return render(scene, self.picture, scale)

    def caption(self, scene: Scene, index: int, language: Optional[str] = None) -> str:
        """A wording of the scene, a function of (seed, index) alone; the language is drawn too unless given."""
        rng = self.rng(index, "caption")
        drawn = LANGUAGES[int(rng.integers(len(LANGUAGES)))]
        return self.captions(scene, language or drawn, rng)
