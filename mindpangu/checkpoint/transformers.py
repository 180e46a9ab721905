"""Our text encoders' parameters in transformers: CLIPTextModel, with projection or without; ChineseCLIPModel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mindpangu.checkpoint.name_map import Place
from mindpangu.spec import TextSpec

_LEAVES = (("gamma", "weight"), ("beta", "bias"), ("embedding_table", "weight"))
# OpenCLIP's words and transformers', for all but the packed projections.
_WORDS = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("transformer.resblocks.", "encoder.layers."),
    ("ln_final.", "final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
PREFIX = "text_model."
# Our words for Chinese-CLIP's text encoder and transformers'.
_BERT_WORDS = (
    ("token_embedding.", "embeddings.word_embeddings."),
    ("position_embedding.", "embeddings.position_embeddings."),
    ("segment_embedding.", "embeddings.token_type_embeddings."),
    ("layers.", "encoder.layer."),
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.out_proj.", ".attention.output.dense."),
    (".attention_norm.", ".attention.output.LayerNorm."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".mlp_norm.", ".output.LayerNorm."),
)


def clip_places(names: Iterable[str]) -> dict[str, Place]:
    """Parameters of an encoder with output "last" or "hidden"."""
    return {name: Place((PREFIX + torch_name(name),)) for name in names}


def openclip_places(names: Iterable[str]) -> dict[str, Place]:
    """Parameters of an encoder with output "penultimate", whose names are OpenCLIP's.

    Three of theirs (query, key, value) stand one below the other in one of ours; `text_projection` is transposed.
    """
    table: dict[str, Place] = {}
    for name in names:
        if name == "text_projection":
            table[name] = Place(("text_projection.weight",), transposed=True)
            continue
        theirs = torch_name(name)
        for ours, other in _WORDS:
            theirs = theirs.replace(ours, other)
        packed = re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", theirs)
        split = [f"{packed[1]}.self_attn.{x}_proj.{packed[2]}" for x in "qkv"] if packed else [theirs]
        table[name] = Place(tuple(PREFIX + one for one in split))
    return table


def bert_places(names: Iterable[str]) -> dict[str, Place]:
    """Parameters of an encoder with output "bert"."""
    table = {}
    for name in names:
        theirs = torch_name(name)
        if theirs.startswith("norm."):
            theirs = "embeddings.LayerNorm." + theirs.removeprefix("norm.")
        for ours, other in _BERT_WORDS:
            theirs = theirs.replace(ours, other)
        table[name] = Place((theirs if name.startswith("text_projection") else PREFIX + theirs,))
    return table


def text_places(names: Iterable[str], spec: TextSpec) -> dict[str, Place]:
    """Parameters of a text encoder."""
    return {"penultimate": openclip_places, "bert": bert_places}.get(spec.output, clip_places)(names)


def open_clip_name(theirs: str) -> str:
    """transformers' name of a parameter, other than of a query, key or value, in OpenCLIP's words."""
    for open_clip, other in _WORDS:
        theirs = theirs.replace(other, open_clip)
    return theirs


def text_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of an encoder, for a TextSpec's values."""
    if spec["output"] == "bert":
        return {
            "architectures": ["ChineseCLIPTextModel"],
            "model_type": "chinese_clip_text_model",
            "vocab_size": spec["vocab_size"],
            "hidden_size": spec["width"],
            "intermediate_size": 4 * spec["width"],
            "num_hidden_layers": spec["layers"],
            "num_attention_heads": spec["heads"],
            "max_position_embeddings": spec["context_length"],
            "hidden_act": spec["activation"],
            "pad_token_id": spec["pad_id"],
        }
    kind = "CLIPTextModelWithProjection" if spec["output"] == "penultimate" else "CLIPTextModel"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": spec["vocab_size"],
        "hidden_size": spec["width"],
        "intermediate_size": 4 * spec["width"],
        "num_hidden_layers": spec["layers"] - spec["skip_last"],
        "num_attention_heads": spec["heads"],
        "max_position_embeddings": spec["context_length"],
        "hidden_act": spec["activation"],
        "projection_dim": spec["projection_dim"] or spec["width"],
        "layer_norm_eps": 1e-5,
        "bos_token_id": spec["end_id"] - 1,
        "eos_token_id": spec["end_id"],
        "pad_token_id": spec["pad_id"],
    }


def torch_name(name: str) -> str:
    """MindSpore's word for a norm's or a table's parameter in PyTorch's."""
    owner, dot, leaf = name.rpartition(".")
    return owner + dot + dict(_LEAVES).get(leaf, leaf)
