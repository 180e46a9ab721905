"""Specs: frozen dataclasses that say a net's shape. One Cell class serves every size, zoo to 5B release."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Optional, Union

from mindpangu.config import read_yaml
from mindpangu.diffusion.schedule import ScheduleSpec
from mindpangu.images import parse_size

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
TEXT_ENCODERS = tuple(TOKENIZERS)  # in the order in which their features are joined


@lru_cache(maxsize=1)
def _presets() -> dict[str, dict[str, dict[str, Any]]]:
    return read_yaml(Path(str(files("mindpangu.configs"))) / "nets.yaml")


@dataclass(frozen=True)
class UNetSpec:
    """An SDXL-shaped UNet (arXiv 2307.01952).

    `channel_mult[i]` × `model_channels` channels at downsampling 2^i, with `transformer_depth[i]` transformer blocks
    behind each residual block there (0: none); the middle has `middle_depth`, or where that is None the last level's.
    Attention has `head_dim` channels a head, or where that is 0 the same number of `heads` everywhere (SD 1.x).
    `context_dim` 0: no cross-attention, `vector_dim` 0: no vector input. `patch` > 1: the net works on patches of so
    many latents a side (arXiv 2212.09748), whose channels its first convolution takes and its last one gives.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    transformer_depth: tuple[int, ...]
    head_dim: int
    context_dim: int
    vector_dim: int
    norm_groups: int = 32
    heads: int = 0
    middle_depth: Optional[int] = None
    patch: int = 1

    @staticmethod
    def presets() -> dict[str, dict[str, Any]]:
        """Those of configs/nets.yaml."""
        return _presets()["unet"]

    def __post_init__(self) -> None:
        if (self.head_dim > 0) == (self.heads > 0):
            raise ValueError(f"head_dim {self.head_dim} and heads {self.heads}: exactly one of them is above 0")
        if len(self.channel_mult) != len(self.transformer_depth):
            raise ValueError(
                f"channel_mult has {len(self.channel_mult)} levels and transformer_depth {len(self.transformer_depth)};"
                " they must match"
            )
        for mult, depth in zip(self.channel_mult, self.transformer_depth):
            channels, divisor = mult * self.model_channels, self.head_dim or self.heads
            if channels % self.norm_groups or (depth and channels % divisor):
                raise ValueError(
                    f"a level of {channels} channels is not divisible by norm_groups {self.norm_groups}"
                    + (f" and {'head_dim' if self.head_dim else 'heads'} {divisor}" if depth else "")
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    def heads_of(self, channels: int) -> int:
        """The number of attention heads where there are so many channels."""
        return self.heads or channels // self.head_dim

    @property
    def depth_in_middle(self) -> int:
        """The number of transformer blocks in the middle block."""
        return self.transformer_depth[-1] if self.middle_depth is None else self.middle_depth

    @property
    def downsampling(self) -> int:
        """Latent sides must be multiples of this."""
        return int(self.patch * 2 ** (len(self.channel_mult) - 1))


@dataclass(frozen=True)
class ControlNetSpec:
    """A ControlNet (arXiv 2302.05543) for UNets of the shape `unet`: its way down and middle once more, and a stem.

    The stem takes a picture of `hint_channels` through convolutions of `hint_widths`, each but the first halving it.
    """

    unet: UNetSpec
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)

    @property
    def factor(self) -> int:
        """Pixels of the hint per latent, along a side."""
        return int(2 ** (len(self.hint_widths) - 1))


@dataclass(frozen=True)
class BridgeSpec:
    """A learned latent bridge: from latents of `in_channels` and `in_size` to latents of `out_channels` and `out_size`.

    Sizes are (width, height) in latents; the net, `blocks` residual blocks of `channels`, works at the second.
    """

    in_channels: int
    in_size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]
    channels: int
    blocks: int
    norm_groups: int = 16


@dataclass(frozen=True)
class VAESpec:
    """A KL autoencoder (arXiv 2112.10752). `patch` > 1 puts a pixel-unshuffle stem in front: cheap on large pictures.

    The encoder has `num_res_blocks` per level and the decoder one more, as in SDXL. Latents that the diffusion nets
    see are (z − `shift`) · `scale`, per channel where tuples of z_channels are given.
    """

    z_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    patch: int = 1
    norm_groups: int = 32
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    @staticmethod
    def presets() -> dict[str, dict[str, Any]]:
        """Those of configs/nets.yaml."""
        return _presets()["vae"]

    def __post_init__(self) -> None:
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            if len(values) not in (1, self.z_channels):
                raise ValueError(f"{name} has {len(values)} values; 1 or z_channels ({self.z_channels}) are allowed")

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return int(self.patch * 2 ** (len(self.channel_mult) - 1))


@dataclass(frozen=True)
class TextSpec:
    """A CLIP text encoder. `output` "last": final-normed features of the last layer used (Chinese-CLIP in PanGu, CLIP-L
    in SD 1.x, OpenCLIP-H in SD 2.x); "hidden": features before the last layer, not normed (CLIP-L in SDXL);
    "penultimate": the same of an OpenCLIP text encoder, plus the pooled output through the text projection (bigG in
    SDXL); "bert": the last features of Chinese-CLIP's own encoder, which is no CLIP but a BERT, plus the projected
    first token. `skip_last` leaves out that many layers at the end ("last" only). `end_id` is the id of the end token,
    where a whole prompt is summed up; `pad_id` fills what follows it.
    """

    vocab_size: int
    end_id: int
    width: int
    layers: int
    heads: int
    activation: Literal["quick_gelu", "gelu"]
    output: Literal["last", "hidden", "penultimate", "bert"]
    context_length: int = 77
    projection_dim: Optional[int] = None
    skip_last: int = 0
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if (self.output in ("penultimate", "bert")) != (self.projection_dim is not None):
            raise ValueError("outputs 'penultimate' and 'bert' need a projection_dim, 'last' and 'hidden' have none")
        if self.skip_last and self.output != "last":
            raise ValueError(f"skip_last {self.skip_last} is for output 'last', not '{self.output}'")

    @property
    def layers_used(self) -> int:
        """Layers that are built."""
        return self.layers - self.skip_last


@dataclass(frozen=True)
class ImageEncoderSpec:
    """A CLIP vision transformer for contrastive training: `image_size` pixels cut into `patch_size` patches."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    projection_dim: int


@dataclass(frozen=True)
class PipelineSpec:
    """What ties the parts of a model together (model.json of a model folder).

    `experts`: the UNets by name, from the noisiest part of the schedule down, each with the lowest t that it draws, the
    last one with 0: PanGu-Draw has {structure: 500, texture: 0}, others one. `text_encoders`: text_encoder (CLIP),
    text_encoder_2 (OpenCLIP), both, or none where the nets know no words.
    `sizes`: "WxH" the model can draw, and the index by which the nets may know it; where `size_multiple` is above 0,
    any other of its multiples too. `added_cond`: the added conditioning beside the prompt, `size_dim` channels each:
    the index of the nearest size (PanGu-Draw); SDXL's original size, crop and target size; its refiner's original size,
    crop and aesthetic score; or none. `styles`: what makes a style row of a prompt, {} standing for the prompt, by
    style and language. `default_styles`: those that are on, with their weights, where nothing is said.
    """

    name: str
    sizes: dict[str, int]
    experts: dict[str, int]
    prediction: Literal["epsilon", "v", "x0"]
    default_size: str
    default_guidance: float
    text_encoders: tuple[str, ...] = TEXT_ENCODERS
    added_cond: Literal["index", "sdxl", "refiner", "none"] = "index"
    size_dim: int = 0
    size_multiple: int = 0
    styles: dict[str, dict[str, str]] = field(default_factory=dict)
    default_styles: dict[str, float] = field(default_factory=dict)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)

    def __post_init__(self) -> None:
        lowest = list(self.experts.values())
        if not lowest or lowest[-1] != 0 or any(a <= b for a, b in zip(lowest, lowest[1:])):
            raise ValueError(f"experts {self.experts}: lowest t in falling order, 0 at the end, are needed")
        if set(self.text_encoders) - set(TEXT_ENCODERS):
            raise ValueError(f"text_encoders {list(self.text_encoders)}: {' and '.join(TEXT_ENCODERS)} are allowed")
        if not self.text_encoders and (self.added_cond != "none" or self.styles):
            raise ValueError(
                "a model without text_encoders has no added conditioning: added_cond is none, and there are no styles"
            )
        if (self.added_cond == "none") == (self.size_dim > 0):
            raise ValueError(
                f"added_cond '{self.added_cond}' and size_dim {self.size_dim}: size_dim is 0 where added_cond is none"
            )

    def can_draw(self, size: str) -> bool:
        """Whether "WxH" is one of the sizes or a multiple that is allowed. Raises: ValueError where it is no size."""
        sides = parse_size(size)
        return size in self.sizes or (self.size_multiple > 0 and not any(side % self.size_multiple for side in sides))

    @property
    def sizes_in_words(self) -> str:
        """For people."""
        more = f", and any multiple of {self.size_multiple}" if self.size_multiple else ""
        return ", ".join(self.sizes) + more

    def nearest_size(self, size: str) -> str:
        """`size` itself where it is listed, else the listed one whose sides differ by the smallest factors."""
        if size in self.sizes:
            return size
        sides = parse_size(size)

        def distance(listed: str) -> float:
            return sum(math.log(a / b) ** 2 for a, b in zip(sides, parse_size(listed)))

        return min(self.sizes, key=distance)


@dataclass(frozen=True)
class ModelSpec:
    """A whole model (configs/model/*.yaml): what ties the parts together, and each part's shape.

    `unets` has the pipeline's experts, `texts` its text encoders.
    """

    pipeline: PipelineSpec
    unets: dict[str, UNetSpec]
    vae: VAESpec
    texts: dict[str, TextSpec]

    def __post_init__(self) -> None:
        for what, given, needed in (
            ("unets", self.unets, self.pipeline.experts),
            ("texts", self.texts, self.pipeline.text_encoders),
        ):
            if set(given) != set(needed):
                raise ValueError(f"{what} has {list(given)}; {list(needed)} are needed")

    @property
    def tokens(self) -> int:
        """The length of a prompt; 0 where there are no words."""
        return max((text.context_length for text in self.texts.values()), default=0)

    @property
    def parts(self) -> dict[str, Union[UNetSpec, VAESpec, TextSpec]]:
        """Every part's spec, by the name of its file."""
        return {"vae": self.vae, **self.texts, **self.unets}
