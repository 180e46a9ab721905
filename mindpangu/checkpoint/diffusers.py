"""Names of our Cells' parameters (ldm's) in diffusers' modules.

Ours are listed by who owns them, so a table covers a whole net: nothing is left over, nothing is invented.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from mindpangu.checkpoint.name_map import Place, Places, Shapes, whole
from mindpangu.checkpoint.transformers import text_places, torch_name
from mindpangu.layout import unet_layout
from mindpangu.spec import TEXT_ENCODERS, ControlNetSpec, ModelSpec, UNetSpec, VAESpec

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
_OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

Vector = Literal["class_embedding", "add_embedding"]


def unet_places(
    names: Collection[str], spec: UNetSpec, vector: Vector = "class_embedding", control: bool = False
) -> dict[str, Place]:
    """The UNet's parameters in diffusers' UNet2DConditionModel, or (`control`) a ControlNet's in its ControlNetModel.

    `vector`: "class_embedding": taken in as a projected class embedding; "add_embedding": after its "text_time"
    addition (SDXL).
    """
    layout, levels = unet_layout(spec), len(spec.channel_mult)
    blocks = {**_ENDS, "label_emb.0.0": f"{vector}.linear_1", "label_emb.0.2": f"{vector}.linear_2"}
    blocks["middle_block.1"] = "mid_block.attentions.0" if layout.middle.depth else "mid_block.resnets.1"
    blocks["middle_block.2"] = "mid_block.resnets.1"
    for block in layout.down:
        if block.kind == "res":
            blocks[f"{block.name}.0"] = f"down_blocks.{block.level}.resnets.{block.place}"
            blocks[f"{block.name}.1"] = f"down_blocks.{block.level}.attentions.{block.place}"
        elif block.kind == "down":
            blocks[f"{block.name}.0.op"] = f"down_blocks.{block.level}.downsamplers.0.conv"
    if control:
        blocks.update(_control_blocks(names))
    for block in () if control else layout.up:
        theirs = f"up_blocks.{levels - 1 - block.level}"
        blocks[f"{block.name}.0"] = f"{theirs}.resnets.{block.place}"
        if block.depth:
            blocks[f"{block.name}.1"] = f"{theirs}.attentions.{block.place}"
        if block.upsamples:
            blocks[f"{block.upsampler}.conv"] = f"{theirs}.upsamplers.0.conv"
    return whole({name: _translated(name, blocks) for name in names})


def _control_blocks(names: Collection[str]) -> dict[str, str]:
    """A ControlNet's own layers."""
    stem = sorted({int(name.split(".")[1]) for name in names if name.startswith("input_hint_block.")})
    inside = {f"input_hint_block.{n}": f"controlnet_cond_embedding.blocks.{i}" for i, n in enumerate(stem[1:-1])}
    ends = {stem[0]: "conv_in", stem[-1]: "conv_out"}
    blocks = {f"input_hint_block.{n}": f"controlnet_cond_embedding.{theirs}" for n, theirs in ends.items()}
    zero = {name.split(".")[1] for name in names if name.startswith("zero_convs.")}
    blocks.update({f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in zero})
    return {**inside, **blocks, "middle_block_out.0": "controlnet_mid_block"}


def vae_places(names: Iterable[str], spec: VAESpec) -> dict[str, Place]:
    """The autoencoder's parameters in diffusers' AutoencoderKL."""
    table, levels = {}, len(spec.channel_mult)
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
        table[name] = torch_name(theirs)
    return whole(table)


def stem_of(part: str) -> str:
    """What a part's files are called there."""
    return "model" if part in TEXT_ENCODERS else "diffusion_pytorch_model"


def vector_of(spec: ModelSpec) -> Vector:
    """Where diffusers' UNets take the vector in."""
    return "class_embedding" if spec.pipeline.added_cond == "index" else "add_embedding"


def diffusers_places(spec: ModelSpec, shapes: Mapping[str, Shapes]) -> Places:
    """Every part's parameters in diffusers' and transformers' names."""
    vector = vector_of(spec)
    places: Places = {"vae": vae_places(shapes["vae"], spec.vae)}
    for name, unet in spec.unets.items():
        places[name] = unet_places(shapes[name], unet, vector)
    for name, text in spec.texts.items():
        places[name] = text_places(shapes[name], text)
    return places


def controlnet_places(model: ModelSpec, spec: ControlNetSpec, shapes: Shapes) -> dict[str, Place]:
    """A ControlNet's parameters in diffusers' names."""
    return unet_places(shapes, spec.unet, vector_of(model), control=True)


def unet_config(spec: Mapping[str, Any], added_cond: str, size_dim: int) -> dict[str, Any]:
    """config.json of diffusers' UNet2DConditionModel for a UNetSpec's values, and `added_cond` and `size_dim`.

    Raises:
        ValueError: the net works on patches; or the middle's depth is neither the last level's nor beside a last level
            without transformers.
    """
    widths = [spec["model_channels"] * mult for mult in spec["channel_mult"]]
    depths = list(spec["transformer_depth"])
    middle = depths[-1] if spec["middle_depth"] is None else spec["middle_depth"]
    layers = [max(1, depth) for depth in depths]
    if spec.get("patch", 1) > 1:
        raise ValueError(f"patches of {spec['patch']} latents: diffusers has no such UNet")
    if depths[-1] not in (0, middle):
        raise ValueError(f"a middle of depth {middle} after a last level of {depths[-1]}: diffusers has no such UNet")
    if depths[-1] != middle:  # theirs gives the middle the last entry, which a level without transformers ignores
        layers[-1] = middle
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": spec["in_channels"],
        "out_channels": spec["out_channels"],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "block_out_channels": widths,
        "layers_per_block": spec["num_res_blocks"],
        "transformer_layers_per_block": layers,
        "attention_head_dim": [spec["heads"] or max(1, w // spec["head_dim"]) for w in widths],  # theirs: the count
        "cross_attention_dim": spec["context_dim"],
        "norm_num_groups": spec["norm_groups"],
        "use_linear_projection": True,
    }
    if spec["vector_dim"]:
        config["projection_class_embeddings_input_dim"] = spec["vector_dim"]
        if added_cond == "index":
            config["class_embed_type"] = "projection"
        else:
            config.update(addition_embed_type="text_time", addition_time_embed_dim=size_dim)
    return config


def vae_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of diffusers' AutoencoderKL for a VAESpec's values; a pixel-unshuffle stem is not in it."""
    widths = [spec["channels"] * mult for mult in spec["channel_mult"]]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3 * spec["patch"] ** 2,
        "out_channels": 3 * spec["patch"] ** 2,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": spec["num_res_blocks"],
        "latent_channels": spec["z_channels"],
        "norm_num_groups": spec["norm_groups"],
        "scaling_factor": spec["scale"][0],
    }


def as_stored(places: Mapping[str, Place], found: Collection[str]) -> dict[str, Place]:
    """The places with names that other versions gave some of them, where those are what a file has."""
    return {ours: replace(place, names=tuple(_found(n, found) for n in place.names)) for ours, place in places.items()}


def _found(name: str, found: Collection[str]) -> str:
    if name in found:
        return name
    others = [name.removeprefix("text_model.")] + [
        name.replace(f".{now}.", f".{before}.") for now, before in _OLD_VAE_ATTENTION.items()
    ]
    return next((other for other in others if other in found), name)


def _translated(name: str, blocks: dict[str, str]) -> str:
    """`name` with its longest known owner replaced, then the layers within a residual block."""
    owner = max((b for b in blocks if name.startswith(f"{b}.")), key=len)
    rest = name[len(owner) + 1 :]
    if "resnets" in blocks[owner]:
        layer, leaf = rest.rsplit(".", 1)
        rest = f"{_RES_BLOCK[layer]}.{leaf}"
    return torch_name(f"{blocks[owner]}.{rest}")
