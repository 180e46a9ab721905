"""The functions that Cells call where a plain operator is too slow or the back end depends on the device."""

from mindpangu.ops.attention import attention
from mindpangu.ops.functional import geglu, gelu, group_norm, group_norm_silu, layer_norm, quick_gelu, silu
from mindpangu.ops.layer import conv2d, dense
from mindpangu.ops.optimizer import adamw, muon, norm, orthogonalize

__all__ = [
    "adamw",
    "attention",
    "conv2d",
    "dense",
    "geglu",
    "gelu",
    "group_norm",
    "group_norm_silu",
    "layer_norm",
    "muon",
    "norm",
    "orthogonalize",
    "quick_gelu",
    "silu",
]
