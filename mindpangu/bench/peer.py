"""The peer: diffusers' nets on PyTorch, with our weights. Imports no MindSpore.

Both sides walk the noise levels by `mindpangu.diffusion`, which works on any array.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn import functional

from mindpangu.bench.cases import GUIDANCE, PROMPTS, STEPS, TOKENS, Case
from mindpangu.checkpoint.diffusers import unet_names, vae_names
from mindpangu.checkpoint.store import load_tensors, read_card
from mindpangu.diffusion import NetDenoiser, NoiseSchedule, ScheduleSpec, TimeDecoupled, uniform_sigmas
from mindpangu.diffusion.samplers import euler


class UNet(nn.Module):
    """Called as our UNet is: (x, t, context, vector) -> out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any, t: Any, context: Any, vector: Any) -> Any:
        return self.net(x, t, context, class_labels=vector, return_dict=False)[0]


class VAE(nn.Module):
    """diffusers' autoencoder behind our pixel-unshuffle stem, with our shift and scale."""

    def __init__(self, net: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.patch = net, spec["patch"]
        self.register_buffer("scale", torch.tensor(spec["scale"]).reshape(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(spec["shift"]).reshape(1, -1, 1, 1))

    def encode(self, image: Any) -> Any:
        mean = self.net.encode(functional.pixel_unshuffle(image, self.patch)).latent_dist.mean
        return (mean - self.shift) * self.scale

    def decode(self, latents: Any) -> Any:
        return functional.pixel_shuffle(self.net.decode(latents / self.scale + self.shift).sample, self.patch)


def load_unet(path: Path) -> UNet:
    """Our UNet's checkpoint in diffusers' class."""
    spec, tensors = read_card(path)["spec"], load_tensors(path)
    widths = [spec["model_channels"] * m for m in spec["channel_mult"]]
    depths = spec["transformer_depth"]
    net = UNet2DConditionModel(
        in_channels=spec["in_channels"],
        out_channels=spec["out_channels"],
        down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths),
        up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)),
        block_out_channels=tuple(widths),
        layers_per_block=spec["num_res_blocks"],
        transformer_layers_per_block=tuple(max(1, d) for d in depths),
        attention_head_dim=tuple(max(1, w // spec["head_dim"]) for w in widths),  # diffusers means the count of heads
        cross_attention_dim=spec["context_dim"],
        norm_num_groups=spec["norm_groups"],
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=spec["vector_dim"],
    )
    names = unet_names(tensors, len(widths), spec["num_res_blocks"], depths)
    net.load_state_dict({names[k]: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items()})
    return UNet(net)


def load_vae(path: Path) -> VAE:
    """Our autoencoder's checkpoint in diffusers' class."""
    spec, tensors = read_card(path)["spec"], load_tensors(path)
    widths = [spec["channels"] * m for m in spec["channel_mult"]]
    net = AutoencoderKL(
        in_channels=3 * spec["patch"] ** 2,
        out_channels=3 * spec["patch"] ** 2,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=spec["num_res_blocks"],
        latent_channels=spec["z_channels"],
        norm_num_groups=spec["norm_groups"],
    )
    names, wanted = vae_names(tensors, len(widths)), net.state_dict()
    # A 1×1 convolution of ours is a dense layer of theirs in the middle's attention.
    state = {
        names[k]: torch.from_numpy(v.astype(np.float32)).reshape(wanted[names[k]].shape) for k, v in tensors.items()
    }
    net.load_state_dict(state)
    return VAE(net, spec)


def prepare(folder: Path, case: Case, fast: bool, compiled: bool) -> Callable[[], np.ndarray]:
    """The work of `case`; `fast`: bfloat16 autocast and channels-last; `compiled`: torch.compile besides."""
    unets = [load_unet(folder / f"{name}.safetensors") for name in ("structure", "texture")]
    vae = load_vae(folder / "vae.safetensors")
    nets: list[nn.Module] = [*unets, vae]
    if fast:
        nets = [net.to(memory_format=torch.channels_last) for net in nets]
    card = read_card(folder / "structure.safetensors")["spec"]
    factor = vae.patch * 2 ** (len(vae.net.config.block_out_channels) - 1)
    arrays = case.inputs(card["in_channels"], card["context_dim"], card["vector_dim"], factor)
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    inputs = [tensors[name] for name in ("x", "t", "context", "vector")]
    calls: list[Callable[..., Any]] = [*unets, vae.encode, vae.decode]
    if compiled:
        calls = [torch.compile(call) for call in calls]
    structure, texture, encode, decode = calls

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if fast else nullcontext()

    def train() -> np.ndarray:
        with autocast():
            loss = functional.mse_loss(structure(*inputs).float(), tensors["target"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unets[0].parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().numpy()

    def forward(call: Callable[..., Any], *given: Any) -> np.ndarray:
        with torch.inference_mode(), autocast():
            return call(*given).float().numpy()

    if case.kind == "train":
        optimizer = torch.optim.AdamW(unets[0].parameters(), 1e-5, (0.9, 0.99), weight_decay=0.01, fused=True)
        unets[0].train()
        return train
    for net in nets:
        net.eval()
    if case.kind == "unet":
        return lambda: forward(structure, *inputs)
    if case.kind == "encode":
        return lambda: forward(encode, tensors["image"])
    if case.kind == "decode":
        return lambda: forward(decode, tensors["x"])
    return lambda: forward(_drawing(folder, structure, texture, decode, card), tensors["x"])


def _drawing(
    folder: Path, structure: Callable[..., Any], texture: Callable[..., Any], decode: Callable[..., Any], spec: dict
) -> Callable[[Any], Any]:
    """The walk from noise to pictures, on random text features: this side encodes no text."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    schedule = NoiseSchedule(ScheduleSpec())
    denoiser = TimeDecoupled(
        NetDenoiser(structure, schedule, model["prediction"]),
        NetDenoiser(texture, schedule, model["prediction"]),
        float(schedule.sigma(model["t_struct"])),
    )
    rows, generator = 2 * len(PROMPTS), torch.Generator().manual_seed(0)
    cond = (
        torch.randn((rows, TOKENS, spec["context_dim"]), generator=generator),
        torch.randn((rows, spec["vector_dim"]), generator=generator),
    )

    def guided(x: Any, sigma: np.ndarray) -> Any:
        without, asked = denoiser(torch.cat([x, x]), np.tile(sigma, 2), cond).chunk(2)
        return without + GUIDANCE * (asked - without)

    sigmas = uniform_sigmas(schedule, STEPS)
    return lambda x: decode(euler(guided, x * float(sigmas[0]), sigmas))
