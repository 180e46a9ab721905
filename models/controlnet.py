"""ControlNet (arXiv 2302.05543): a picture of edges, poses, depth … steers a UNet; its release's parameter names."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from mindspore import Tensor, nn

from mindpangu import ops
from mindpangu.models.layers import Conv2d, conv3x3
from mindpangu.models.unet import UNetEncoder
from mindpangu.spec import ControlNetSpec, ModelSpec


def zero_conv(channels: int) -> nn.CellList:
    """A 1×1 convolution that starts as nothing."""
    return nn.CellList([Conv2d(channels, channels, 1, 1, 0, 0, "zeros")])


class ControlNet(UNetEncoder):
    """construct(x (N, C, h, w), t (N,), hint (1 or N, 3, h·f, w·f) in [0, 1], context, vector, as
    a UNet's) -> the UNet's `control`.

    One tensor for each skip connection of the UNet, then one for its middle. A single hint is for all rows; the stem
    sees it once.
    """

    def __init__(self, spec: ControlNetSpec) -> None:
        super().__init__(spec.unet)
        self.factor = spec.factor
        first, *others = spec.hint_widths
        layers = [conv3x3(spec.hint_channels, first)]
        for before, width in zip(spec.hint_widths, others):
            layers += [nn.Identity(), conv3x3(before, before), nn.Identity(), conv3x3(before, width, stride=2)]
        last = conv3x3(spec.hint_widths[-1], spec.unet.model_channels, init="zeros")
        self.input_hint_block = nn.CellList([*layers, nn.Identity(), last])
        self.zero_convs = nn.CellList([zero_conv(channels) for channels in self.skip_channels])
        self.middle_block_out = zero_conv(self.skip_channels[-1])

    def fits(self, model: ModelSpec) -> bool:
        """Whether the net was made for UNets of the model's shape and an autoencoder of its factor."""
        shapes = (replace(self.spec, out_channels=unet.out_channels) == unet for unet in model.unets.values())
        return self.factor == model.vae.factor and all(shapes)

    def look(self, hint: Tensor) -> Tensor:
        """The stem: (N, 3, h·f, w·f) -> (N, model_channels, h, w)."""
        y = self.input_hint_block[0](hint)
        for i in range(2, len(self.input_hint_block), 2):
            y = self.input_hint_block[i](ops.silu(y))
        return y

    def construct(
        self, x: Tensor, t: Tensor, hint: Tensor, context: Optional[Tensor] = None, vector: Optional[Tensor] = None
    ) -> tuple[Tensor, ...]:
        x, embedding, context = self.enter(x, t, context, vector)
        control = []
        for i in range(len(self.input_blocks)):
            x = self.through(self.input_blocks[i], x, embedding, context)
            if i == 0:
                x = x + self.look(self.cast(hint))
            control.append(self.zero_convs[i][0](x).astype("float32"))
        x = self.through(self.middle_block, x, embedding, context)
        control.append(self.middle_block_out[0](x).astype("float32"))
        return tuple(control)
