"""Names of our text towers' parameters in transformers' CLIPTextModel and CLIPTextModelWithProjection."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LEAVES = (("gamma", "weight"), ("beta", "bias"), ("embedding_table", "weight"))
_TOWER_B = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
PREFIX = "text_model."


def tower_a_names(names: Iterable[str]) -> dict[str, str]:
    """{ours: theirs} for a tower with output "last"."""
    return {name: PREFIX + _leaf(name) for name in names}


def tower_b_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{ours: theirs} for a tower with output "penultimate", whose names are OpenCLIP's.

    Three of theirs (query, key, value) stand one below the other in one of ours; `text_projection` is transposed.
    """
    table: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name == "text_projection":
            table[name] = ("text_projection.weight",)
            continue
        theirs = _leaf(name)
        for ours, other in _TOWER_B:
            theirs = re.sub(ours, other, theirs)
        packed = re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", theirs)
        split = [f"{packed[1]}.self_attn.{x}_proj.{packed[2]}" for x in "qkv"] if packed else [theirs]
        table[name] = tuple(PREFIX + one for one in split)
    return table


def _leaf(name: str) -> str:
    """MindSpore's word for a norm's or a table's parameter in PyTorch's."""
    owner, dot, leaf = name.rpartition(".")
    return owner + dot + dict(_LEAVES).get(leaf, leaf)
