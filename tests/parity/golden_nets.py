"""Write mindpangu/selftest/golden.npz: what diffusers' nets make of weights and inputs that anyone can draw.

Run where the extra `bench` is installed: python -m tests.parity.golden_nets. Tests and selftest need the file alone.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from mindpangu.checkpoint.diffusers import unet_config, vae_config
from mindpangu.checkpoint.transformers import PREFIX, text_config
from mindpangu.selftest.narrow import (
    BETAS,
    DECAY,
    GOLDEN,
    MAX_NORM,
    RATE,
    SIZE_DIM,
    STEPS,
    TEXTS,
    TRAINED,
    UNETS,
    VAE_WIDTH,
    VAES,
    WIDE,
    WIDE_CONTEXT,
    text_ids,
    training_batch,
    unet_inputs,
    wide_inputs,
)
from mindpangu.selftest.weights import draw, inputs, is_norm_scale
from mindpangu.spec import TextSpec, UNetSpec

VAE_MIDDLE = "decoder.mid_block."


def of_peer(module, prefix: str = "") -> None:
    """Give a torch module its weights; `prefix` is what its names lack of those in its files."""
    import torch

    state = {
        name: torch.from_numpy(np.asarray(draw(prefix + name, tuple(value.shape), is_norm_scale(name))))
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }
    missing = [name for name in module.load_state_dict(state, strict=False).missing_keys if "position_ids" not in name]
    assert not missing, missing


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


def run_vae_middle() -> np.ndarray:
    """The autoencoder's middle at its real width."""
    import torch
    from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D

    block = UNetMidBlock2D(VAE_WIDTH, None, attention_head_dim=VAE_WIDTH, resnet_eps=1e-6).eval()
    of_peer(block, VAE_MIDDLE)
    with torch.no_grad():
        return block(torch.from_numpy(inputs(1, VAE_WIDTH, 4, 5, seed=7))).numpy()


def run_training() -> np.ndarray:
    """The losses of ten steps of PyTorch's AdamW; matrices and kernels decay."""
    import torch

    net = peer_unet(TRAINED, "class_embedding", False)
    of_peer(net)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, RATE, BETAS), []
    for step in range(STEPS):
        x, t, context, vector, target = map(torch.from_numpy, training_batch(step))
        out = net(x, t, context, class_labels=vector, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(out, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def main() -> None:
    """Write the file."""
    arrays = {f"unet.{name}": run_unet(name) for name in UNETS}
    for name in VAES:
        arrays.update({f"vae.{name}.{key}": value for key, value in run_vae(name).items()})
    for name in TEXTS:
        arrays.update({f"text.{name}.{key}": value for key, value in run_text(name).items()})
    arrays["block.transformer"] = run_transformer_block()
    arrays["block.vae_middle"] = run_vae_middle()
    arrays["training.losses"] = run_training()
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
