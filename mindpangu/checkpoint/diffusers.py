"""Names of our Cells' parameters (ldm's) in diffusers' modules. Each function returns {ours: theirs}, parameter names.

Ours are listed by who owns them, so a table covers a whole net: nothing is left over, nothing is invented.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
}
_VAE_MIDDLE = {"block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def unet_names(
    names: Collection[str],
    levels: int,
    num_res_blocks: int,
    transformer_depth: Sequence[int],
    vector: Literal["class_embedding", "add_embedding"] = "class_embedding",
) -> dict[str, str]:
    """The UNet's parameters in diffusers' UNet2DConditionModel, where `vector` takes the vector in.

    "class_embedding": as a projected class embedding; "add_embedding": after its "text_time" addition (SDXL).
    """
    blocks = {**_ENDS, "label_emb.0.0": f"{vector}.linear_1", "label_emb.0.2": f"{vector}.linear_2"}
    attends = any(name.startswith("middle_block.2.") for name in names)
    blocks["middle_block.1"] = "mid_block.attentions.0" if attends else "mid_block.resnets.1"
    blocks["middle_block.2"] = "mid_block.resnets.1"
    number = 1
    for level in range(levels):
        for i in range(num_res_blocks):
            blocks[f"input_blocks.{number}.0"] = f"down_blocks.{level}.resnets.{i}"
            blocks[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{i}"
            number += 1
        blocks[f"input_blocks.{number}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        number += 1
    number = 0
    for up in range(levels):
        depth = transformer_depth[levels - 1 - up]
        for i in range(num_res_blocks + 1):
            blocks[f"output_blocks.{number}.0"] = f"up_blocks.{up}.resnets.{i}"
            if depth:
                blocks[f"output_blocks.{number}.1"] = f"up_blocks.{up}.attentions.{i}"
            blocks[f"output_blocks.{number}.{2 if depth else 1}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
            number += 1
    return {name: _translated(name, blocks) for name in names}


def vae_names(names: Iterable[str], levels: int) -> dict[str, str]:
    """The autoencoder's parameters in diffusers' AutoencoderKL."""
    table = {}
    for name in names:
        theirs = re.sub(r"down\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
        theirs = re.sub(r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", theirs)
        theirs = re.sub(
            r"up\.(\d+)\.(block|upsample)\.",
            lambda m: f"up_blocks.{levels - 1 - int(m[1])}.{'resnets' if m[2] == 'block' else 'upsamplers.0'}.",
            theirs,
        )
        middle = re.match(r"(encoder|decoder)\.mid\.(\w+)\.(.*)", theirs)
        if middle:
            part, block, rest = middle.groups()
            if block == "attn_1":
                layer, leaf = rest.rsplit(".", 1)
                rest = f"{_VAE_ATTENTION[layer]}.{leaf}"
            theirs = f"{part}.mid_block.{_VAE_MIDDLE[block]}.{rest}"
        theirs = theirs.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        table[name] = _leaf(theirs)
    return table


def _translated(name: str, blocks: dict[str, str]) -> str:
    """`name` with its longest known owner replaced, then the layers within a residual block."""
    owner = max((b for b in blocks if name.startswith(f"{b}.")), key=len)
    rest = name[len(owner) + 1 :]
    if "resnets" in blocks[owner]:
        layer, leaf = rest.rsplit(".", 1)
        rest = f"{_RES_BLOCK[layer]}.{leaf}"
    return _leaf(f"{blocks[owner]}.{rest}")


def _leaf(name: str) -> str:
    """MindSpore's names of a norm's parameters in PyTorch's words."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
