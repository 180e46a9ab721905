"""A UNet's layout: every block follows from the one before, and Cells, costs, stages and names agree on it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.cost.flops import unet_layers
from mindpangu.layout import unet_layout
from mindpangu.spec import UNetSpec


@st.composite
def specs(draw):
    levels = draw(st.integers(1, 3))
    return UNetSpec(
        in_channels=4,
        out_channels=4,
        model_channels=16,
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        num_res_blocks=draw(st.integers(1, 2)),
        transformer_depth=tuple(draw(st.lists(st.integers(0, 2), min_size=levels, max_size=levels))),
        head_dim=16,
        context_dim=draw(st.sampled_from((0, 24))),
        vector_dim=draw(st.sampled_from((0, 12))),
        norm_groups=4,
        middle_depth=draw(st.sampled_from((None, 0, 1))),
        patch=draw(st.sampled_from((1, 2))),
    )


@given(specs())
@settings(max_examples=60, deadline=None)
def test_channels_add_up(spec):
    layout = unet_layout(spec)
    for before, block in zip(layout.down, layout.down[1:]):
        assert block.inner == before.outer
    assert layout.middle.inner == layout.down[-1].outer == spec.widths[-1]
    skips, channels = list(layout.skips), layout.middle.outer
    for block in layout.up:
        assert block.inner == channels + skips.pop()
        channels = block.outer
    assert not skips
    assert channels == spec.widths[0]
    halved = sum(block.kind == "down" for block in layout.down)
    assert halved == sum(block.upsamples for block in layout.up) == len(spec.channel_mult) - 1


@given(specs())
@settings(max_examples=8, deadline=None)
def test_the_cell_has_the_parameters_that_are_counted(spec):
    from mindpangu.models.inventory import parameters, shapes_of
    from mindpangu.models.stages import pieces

    shapes = shapes_of(spec)
    assert parameters(shapes) == sum(
        layer.parameters for layer in unet_layers(spec, 1, 8 * spec.patch, 8 * spec.patch, 7)
    )
    numbered = {".".join(name.split(".")[:2]) for name in shapes if name.startswith(("input_blocks", "output_blocks"))}
    assert numbered <= set(pieces(spec))
