"""A UNet cut into a pipeline's stages: what one device holds of it, and what it hands to the next.

A cut lies between two pieces (`pieces`). Over it go the picture so far, the embedding and every skip connection that is
still open, so each stage needs nothing but what the one before sends, and the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from mindspore import Tensor, nn
from mindspore import ops as mops

from mindpangu.layout import DOWN, MIDDLE, UP, unet_layout
from mindpangu.models.unet import UNet
from mindpangu.spec import UNetSpec

EMBEDDINGS, OUT = "embeddings", "out"


def pieces(spec: UNetSpec) -> list[str]:
    """The names of a UNet's pieces, in the order in which they work."""
    layout = unet_layout(spec)
    return [EMBEDDINGS, *(block.name for block in (*layout.down, layout.middle, *layout.up)), OUT]


def cells_of(unet: UNet, piece: str) -> list[nn.Cell]:
    """The Cells of a piece."""
    if piece == EMBEDDINGS:
        return [unet.timestep, *unet.time_embed, *(unet.label_emb[0] if unet.has_vector else ())]
    name, _, number = piece.partition(".")
    cells = getattr(unet, name)
    return list(cells[int(number)] if number else cells)


class UNetStage(nn.Cell):
    """Pieces `begin` to `end` - 1 of a UNet, whose Cells it shares.

    construct(context (N, T, K) or None, *state) -> the next stage's state. The first stage's state is x (N, C, h, w),
    t (N,) and, where the UNet has one, vector (N, V); later ones' x, embedding (N, E) and the open skip connections,
    oldest first; the last stage gives (out (N, out_channels, h, w),).
    """

    def __init__(self, unet: UNet, begin: int, end: int) -> None:
        super().__init__(auto_prefix=False)
        names = pieces(unet.spec)[begin:end]
        self.unet = unet
        self.embeds, self.middle, self.ends = EMBEDDINGS in names, MIDDLE in names, OUT in names
        self.down = [int(name.rpartition(".")[2]) for name in names if name.startswith(DOWN)]
        self.up = [int(name.rpartition(".")[2]) for name in names if name.startswith(UP)]
        self.own = [p for name in names for cell in cells_of(unet, name) for p in cell.trainable_params()]

    def construct(self, context: Optional[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        if self.embeds:
            vector = state[2] if self.unet.has_vector else None
            x, embedding, context = self.unet.enter(state[0], state[1], context, vector)
            skips: tuple[Tensor, ...] = ()
        else:  # what comes over a cut is float32, and was the compute dtype's
            narrow = [self.unet.cast(one) for one in state]
            x, embedding, skips = narrow[0], narrow[1], tuple(narrow[2:])
            context = None if context is None else self.unet.cast(context)
        for i in self.down:
            x = self.unet.through(self.unet.input_blocks[i], x, embedding, context)
            skips = (*skips, x)
        if self.middle:
            x = self.unet.through(self.unet.middle_block, x, embedding, context)
        for i in self.up:
            x = self.unet.through(self.unet.output_blocks[i], mops.concat((x, skips[-1]), 1), embedding, context)
            skips = skips[:-1]
        if self.ends:
            return (self.unet.out[2](self.unet.out[0](x)).astype("float32"),)
        return tuple(one.astype("float32") for one in (x, embedding, *skips))


def cut_into_stages(unet: UNet, begins: Sequence[int]) -> list[UNetStage]:
    """The stages that begin with these pieces."""
    return [UNetStage(unet, begin, end) for begin, end in _runs(begins, len(pieces(unet.spec)))]


def assign_stages(unet: UNet, begins: Sequence[int]) -> None:
    """Tell MindSpore's own pipeline, which Ascend alone has, which stage each Cell belongs to."""
    names = pieces(unet.spec)
    for stage, (begin, end) in enumerate(_runs(begins, len(names))):
        for name in names[begin:end]:
            for cell in cells_of(unet, name):
                cell.pipeline_stage = stage


def recompute(unet: UNet) -> None:
    """Have every block forget what is inside it, and compute it again on the way back."""
    for name in pieces(unet.spec)[1:-1]:
        for cell in cells_of(unet, name):
            cell.recompute()


def _runs(begins: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    return zip(begins, [*begins[1:], count])
