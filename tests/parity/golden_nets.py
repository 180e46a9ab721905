"""Write golden/nets.npz: what diffusers' nets make of weights and inputs that anyone can draw (see `weights`).

Run where the extra `bench` is installed: python -m tests.parity.golden_nets. The tests need the file alone.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from mindpangu.checkpoint.diffusers import unet_config, vae_config
from mindpangu.checkpoint.transformers import PREFIX, text_config
from mindpangu.spec import TextSpec, UNetSpec, VAESpec
from tests.parity.weights import inputs, of_peer

GOLDEN = Path(__file__).parent / "golden" / "nets.npz"
TOKENS = 7
SIDE = 16
SIZE_DIM = 8
WIDE, WIDE_CONTEXT, VAE_WIDTH = 1280, 2048, 512
VAE_MIDDLE = "decoder.mid_block."

# The layouts of the families, narrow: (spec, where the vector goes in, are the projections convolutions?).
UNETS = {
    "pangu_draw": (UNetSpec(4, 4, 32, (1, 2, 4), 2, (0, 2, 3), 8, 48, 24), "class_embedding", False),
    "sdxl": (UNetSpec(4, 4, 32, (1, 2, 4), 2, (0, 2, 3), 8, 48, 64), "add_embedding", False),
    "sdxl_refiner": (
        UNetSpec(4, 4, 32, (1, 2, 4, 4), 2, (0, 2, 2, 0), 8, 48, 64, middle_depth=2),
        "add_embedding",
        False,
    ),
    "sd15": (
        UNetSpec(4, 4, 32, (1, 2, 4, 4), 2, (1, 1, 1, 0), 0, 48, 0, heads=8, middle_depth=1),
        None,
        True,
    ),
    "sd21": (UNetSpec(4, 4, 32, (1, 2, 4, 4), 2, (1, 1, 1, 0), 8, 48, 0, middle_depth=1), None, False),
}
VAES = {"sd": VAESpec(4, 32, (1, 2, 4, 4), 2)}
# CLIP-L as in SD 1.x and SDXL, OpenCLIP's bigG as in SDXL, Chinese-CLIP's own; the end token has the largest id, where
# CLIP looks for it.
TEXTS = {
    "clip_l": TextSpec(99, 98, 32, 4, 4, "quick_gelu", "last", 11),
    "clip_l_skip_1": TextSpec(99, 98, 32, 4, 4, "quick_gelu", "last", 11, skip_last=1),
    "clip_l_hidden": TextSpec(99, 98, 32, 4, 4, "quick_gelu", "hidden", 11),
    "open_clip": TextSpec(99, 98, 32, 4, 4, "gelu", "penultimate", 11, 24),
    "chinese_clip": TextSpec(99, 98, 32, 4, 4, "gelu", "bert", 11, 24),
}


def unet_inputs(spec: UNetSpec) -> dict[str, np.ndarray]:
    """x, t, context, and for nets with a vector its two halves: pooled text, and six sizes (SDXL) or none."""
    sizes = np.array([[1024, 768, 0, 16, 1024, 1024], [512, 512, 8, 0, 512, 640]], np.float32)
    return {
        "x": inputs(2, spec.in_channels, SIDE, SIDE),
        "t": np.array([981.0, 17.0], np.float32),
        "context": inputs(2, TOKENS, spec.context_dim, seed=1),
        "pooled": inputs(2, 16, seed=2),
        "vector": inputs(2, spec.vector_dim, seed=2),
        "sizes": sizes,
    }


def peer_unet(spec: UNetSpec, vector: str, convolutions: bool):
    """diffusers' UNet of a spec."""
    from diffusers import UNet2DConditionModel

    config = unet_config(asdict(spec), "index" if vector == "class_embedding" else "sdxl", SIZE_DIM)
    return UNet2DConditionModel.from_config({**config, "use_linear_projection": not convolutions})


def run_unet(name: str) -> np.ndarray:
    """The peer's output."""
    import torch

    spec, vector, convolutions = UNETS[name]
    net = peer_unet(spec, vector, convolutions).eval()
    of_peer(net)
    given = {key: torch.from_numpy(value) for key, value in unet_inputs(spec).items()}
    options = {}
    if vector == "class_embedding":
        options = {"class_labels": given["vector"]}
    elif vector == "add_embedding":
        options = {"added_cond_kwargs": {"text_embeds": given["pooled"], "time_ids": given["sizes"]}}
    with torch.no_grad():
        return net(given["x"], given["t"], given["context"], return_dict=False, **options)[0].numpy()


def run_vae(name: str) -> dict[str, np.ndarray]:
    """Mean and log-variance of a picture, and the decoded picture of a latent."""
    import torch
    from diffusers import AutoencoderKL

    spec = VAES[name]
    net = AutoencoderKL.from_config(vae_config(asdict(spec))).eval()
    of_peer(net)
    with torch.no_grad():
        posterior = net.encode(torch.from_numpy(inputs(1, 3, 32, 40, seed=3))).latent_dist
        decoded = net.decode(torch.from_numpy(inputs(1, spec.z_channels, 4, 5, seed=4))).sample
    return {"mean": posterior.mean.numpy(), "logvar": posterior.logvar.numpy(), "decoded": decoded.numpy()}


def text_ids(spec: TextSpec) -> np.ndarray:
    """Three prompts with their end token early, late and last; zeros behind it."""
    ids = np.random.default_rng(12).integers(1, spec.end_id, (3, spec.context_length)).astype(np.int32)
    for row, end in zip(ids, (2, 7, spec.context_length - 1)):
        row[end], row[end + 1 :] = spec.end_id, 0
    return ids


def run_text(name: str) -> dict[str, np.ndarray]:
    """The features that go to cross-attention, and the pooled ones."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    spec = TEXTS[name]
    if spec.output == "bert":
        return run_chinese_clip(spec)
    config = CLIPTextConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.width,
        intermediate_size=4 * spec.width,
        num_hidden_layers=spec.layers_used,
        num_attention_heads=spec.heads,
        max_position_embeddings=spec.context_length,
        hidden_act=spec.activation,
        projection_dim=spec.projection_dim or spec.width,
        bos_token_id=1,
        eos_token_id=spec.end_id,
        pad_token_id=0,
    )
    projected, hidden = spec.output == "penultimate", spec.output == "hidden"
    net = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    # Files made before transformers 5 have the prefix, and a model with a projection has it still.
    of_peer(net, "" if projected else PREFIX)
    with torch.no_grad():
        out = net(torch.from_numpy(text_ids(spec)).long(), output_hidden_states=True)
    if projected:
        return {"features": out.hidden_states[-2].numpy(), "pooled": out.text_embeds.numpy()}
    features = out.hidden_states[-2] if hidden else out.last_hidden_state
    return {"features": features.numpy(), "pooled": out.pooler_output.numpy()}


def run_chinese_clip(spec: TextSpec) -> dict[str, np.ndarray]:
    """The last features, and the first token's through the projection, as `ChineseCLIPModel` takes them."""
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    text = {**text_config(asdict(spec)), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    net = ChineseCLIPModel(
        ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=spec.projection_dim)
    ).eval()
    of_peer(net)
    ids = torch.from_numpy(text_ids(spec)).long()
    with torch.no_grad():
        features = net.text_model(ids, attention_mask=(ids != spec.pad_id).long())[0]
        return {"features": features.numpy(), "pooled": net.text_projection(features[:, 0]).numpy()}


def run_transformer_block() -> np.ndarray:
    """SDXL's widest transformer block: 1280 channels, 20 heads, text of 2048."""
    import torch
    from diffusers.models.attention import BasicTransformerBlock

    block = BasicTransformerBlock(WIDE, WIDE // 64, 64, cross_attention_dim=WIDE_CONTEXT).eval()
    of_peer(block)
    x, context = (torch.from_numpy(value) for value in wide_inputs())
    with torch.no_grad():
        return block(x, encoder_hidden_states=context).numpy()


def wide_inputs() -> tuple[np.ndarray, np.ndarray]:
    """16 positions, 77 tokens."""
    return inputs(1, 16, WIDE, seed=5), inputs(1, 77, WIDE_CONTEXT, seed=6)


def run_vae_middle() -> np.ndarray:
    """The autoencoder's middle at its real width."""
    import torch
    from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D

    block = UNetMidBlock2D(VAE_WIDTH, None, attention_head_dim=VAE_WIDTH, resnet_eps=1e-6).eval()
    of_peer(block, VAE_MIDDLE)
    with torch.no_grad():
        return block(torch.from_numpy(inputs(1, VAE_WIDTH, 4, 5, seed=7))).numpy()


def main() -> None:
    """Write the file."""
    arrays = {f"unet.{name}": run_unet(name) for name in UNETS}
    for name in VAES:
        arrays.update({f"vae.{name}.{key}": value for key, value in run_vae(name).items()})
    for name in TEXTS:
        arrays.update({f"text.{name}.{key}": value for key, value in run_text(name).items()})
    arrays["block.transformer"] = run_transformer_block()
    arrays["block.vae_middle"] = run_vae_middle()
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
