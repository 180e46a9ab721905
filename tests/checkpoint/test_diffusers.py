"""The name tables: complete, one to one, and right where diffusers is installed to say so."""

from __future__ import annotations

import numpy as np
import pytest

from mindpangu.checkpoint.diffusers import unet_places, vae_places
from mindpangu.checkpoint.store import load_tensors, read_card
from mindpangu.config import parse
from mindpangu.spec import UNetSpec, VAESpec


def test_tables_are_one_to_one(model_folder):
    tensors = load_tensors(model_folder / "structure.safetensors")
    spec = parse(read_card(model_folder / "structure.safetensors")["spec"], UNetSpec, "spec")
    names = unet_places(tensors, spec)
    assert set(names) == set(tensors)
    assert len(set(names.values())) == len(names)
    assert names["time_embed.0.weight"].names == ("time_embedding.linear_1.weight",)
    assert names["input_blocks.1.0.in_layers.0.gamma"].names == ("down_blocks.0.resnets.0.norm1.weight",)
    tensors = load_tensors(model_folder / "vae.safetensors")
    names = vae_places(tensors, parse(read_card(model_folder / "vae.safetensors")["spec"], VAESpec, "spec"))
    assert len(set(names.values())) == len(tensors)
    assert names["decoder.mid.attn_1.proj_out.bias"].names == ("decoder.mid_block.attentions.0.to_out.0.bias",)


@pytest.mark.parametrize("number", [0, 6, 7])
def test_diffusers_computes_the_same_numbers(model_folder, number, monkeypatch):
    """UNet forward, encode and decode at fp32, of the tiny model that the trainers made."""
    pytest.importorskip("diffusers")
    from mindpangu import runtime
    from mindpangu.bench import ours, peer
    from mindpangu.bench.cases import CASES

    monkeypatch.setenv(runtime.CPU_OPERATORS, "fp32")
    case = CASES["draw"][number]
    theirs = peer.prepare(model_folder, case, fast=False, compiled=False)()
    np.testing.assert_allclose(ours.prepare(model_folder, case)(), theirs, atol=1e-4 * np.abs(theirs).max())
