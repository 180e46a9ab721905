"""Names of our Cells' parameters in the released PanGu-Draw 3.0 files: each holds one UNet, and all other parts."""

from __future__ import annotations

from collections.abc import Iterable

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_a": "conditioner.embedders.0.transformer.text_model.",
    "text_b": "conditioner.embedders.1.model.",
}

# In the files, and in no Cell: positions, the causal mask, the temperature of CLIP's training.
BUFFERS = (
    f"{PREFIXES['text_a']}embeddings.position_ids",
    f"{PREFIXES['text_b']}attn_mask",
    f"{PREFIXES['text_b']}logit_scale",
)


def release_names(part: str, names: Iterable[str]) -> dict[str, str]:
    """{ours: theirs} for the parameters of one part: unet, vae, text_a or text_b."""
    return {name: PREFIXES[part] + name for name in names}
