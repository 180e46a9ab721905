"""The cost on paper agrees with the Cells, and with the released model."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.cost import flops
from mindpangu.cost.flops import decoder_layers, text_layers, unet_layers
from mindpangu.spec import TextSpec, UNetSpec, VAESpec

RELEASE = UNetSpec(4, 4, 320, (1, 2, 4), 2, (0, 2, 10), 64, 2048, 1536)


@pytest.mark.parametrize(
    "spec",
    [
        UNetSpec(4, 4, 16, (1, 2), 1, (0, 1), 16, 32, 24, 4),
        UNetSpec(3, 5, 8, (1, 1, 3), 2, (1, 0, 2), 8, 16, 0, 4),
        UNetSpec(4, 4, 16, (1, 2), 1, (0, 1), 16, 0, 0, 4),
    ],
)
def test_parameters_are_those_of_the_cell(spec):
    from mindpangu import runtime

    runtime.start("CPU")
    from mindpangu.models.unet import UNet

    counted: dict[str, int] = {}
    for parameter in UNet(spec).trainable_params():
        owner = parameter.name.rsplit(".", 1)[0]
        counted[owner] = counted.get(owner, 0) + int(np.prod(parameter.shape))
    assert {x.name: x.parameters for x in unet_layers(spec, 1, 8, 8, 5) if x.parameters} == counted


def test_the_release_has_the_published_number_of_parameters():
    assert sum(layer.parameters for layer in unet_layers(RELEASE, 1, 128, 128, 77)) == 2_565_825_284


def test_cost_grows_as_it_must():
    """FLOPs are proportional to the batch; those of a convolution to the area; attention's to the area squared."""

    def flops(kind, batch, side):
        return sum(
            x.flops for x in unet_layers(RELEASE, batch, side, side, 77) if x.kind == kind and "attn2" not in x.name
        )

    assert flops("conv", 3, 32) == 3 * flops("conv", 1, 32)
    assert flops("conv", 1, 64) == 4 * flops("conv", 1, 32)
    assert flops("attention", 1, 64) == 16 * flops("attention", 1, 32)


@pytest.mark.parametrize(
    "spec",
    [
        VAESpec(z_channels=4, channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4),
        VAESpec(z_channels=3, channels=4, channel_mult=(2, 2, 1), num_res_blocks=2, norm_groups=4, patch=2),
    ],
)
def test_parameters_are_those_of_the_decoder(spec):
    from mindpangu.models.vae import AutoencoderKL

    counted: dict[str, int] = {}
    for parameter in AutoencoderKL(spec).trainable_params():
        owner = parameter.name.rsplit(".", 1)[0]
        if owner.startswith(("decoder.", "post_quant")):
            counted[owner] = counted.get(owner, 0) + int(np.prod(parameter.shape))
    assert {x.name: x.parameters for x in decoder_layers(spec, 1, 8, 8) if x.parameters} == counted


def test_parameters_are_those_of_the_text_encoder():
    from mindpangu.models.clip import text_encoder

    spec = TextSpec(50, 2, 16, 2, 2, "gelu", "penultimate", 12, 8)
    everything = sum(int(np.prod(p.shape)) for p in text_encoder(spec).trainable_params())
    tables = (spec.vocab_size + spec.context_length) * spec.width
    assert sum(layer.parameters for layer in text_layers(spec, 1)) == everything - tables


def test_a_layer_is_made_again_from_its_kind_and_shape():
    for layer in unet_layers(RELEASE, 2, 32, 32, 77):
        *shape, last = layer.shape
        if layer.kind == "conv":
            batch, inner, outer, kernel, height, width = shape
            assert flops.conv(layer.name, batch, inner, outer, kernel, (height, width), last) == layer
        else:
            assert getattr(flops, layer.kind)(layer.name, *layer.shape) == layer
