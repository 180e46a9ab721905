"""The functions that Cells call where a plain operator is too slow or the back end depends on the device."""

from mindpangu.ops.attention import attention
from mindpangu.ops.functional import (
    add_to_channels,
    from_sequence,
    geglu,
    gelu,
    group_norm,
    group_norm_silu,
    layer_norm,
    pixel_shuffle,
    pixel_unshuffle,
    quick_gelu,
    repeat_pixels,
    silu,
    to_sequence,
)
from mindpangu.ops.layer import conv2d, dense
from mindpangu.ops.optimizer import adamw, muon, norm, orthogonalize

__all__ = [
    "adamw",
    "add_to_channels",
    "attention",
    "conv2d",
    "dense",
    "from_sequence",
    "geglu",
    "gelu",
    "group_norm",
    "group_norm_silu",
    "layer_norm",
    "muon",
    "norm",
    "orthogonalize",
    "pixel_shuffle",
    "pixel_unshuffle",
    "quick_gelu",
    "repeat_pixels",
    "silu",
    "to_sequence",
]
