"""The peer: diffusers' nets on PyTorch, with our weights. Imports no MindSpore.

Both sides sample with `mindpangu.diffusion`, which works on any array.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn import functional

from mindpangu.bench.cases import GUIDANCE, PROMPTS, STEPS, TOKENS, Case
from mindpangu.checkpoint.diffusers import unet_config, unet_places, vae_config, vae_places
from mindpangu.checkpoint.name_map import Place
from mindpangu.checkpoint.store import load_tensors, read_card
from mindpangu.config import parse
from mindpangu.diffusion import NetDenoiser, NoiseSchedule, ScheduleSpec, TimeDecoupled, uniform_sigmas
from mindpangu.diffusion.samplers import euler
from mindpangu.spec import UNetSpec, VAESpec


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
    spec, tensors = parse(read_card(path)["spec"], UNetSpec, str(path)), load_tensors(path)
    net = UNet2DConditionModel.from_config(unet_config(asdict(spec), "index", 0))
    _fill(net, unet_places(tensors, spec), tensors)
    return UNet(net)


def load_vae(path: Path) -> VAE:
    """Our autoencoder's checkpoint in diffusers' class."""
    spec, tensors = read_card(path)["spec"], load_tensors(path)
    net = AutoencoderKL.from_config(vae_config(spec))
    _fill(net, vae_places(tensors, parse(spec, VAESpec, str(path))), tensors)
    return VAE(net, spec)


def _fill(net: nn.Module, places: dict[str, Place], tensors: dict[str, np.ndarray]) -> None:
    """Give a module our weights; a 1×1 convolution of ours may be a dense layer of theirs."""
    wanted, state = net.state_dict(), {}
    for name, place in places.items():
        shape = tuple(wanted[place.names[0]].shape)
        state.update({n: torch.from_numpy(v.astype(np.float32)) for n, v in place.write(tensors[name], shape).items()})
    net.load_state_dict(state)


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
    """The sampling from noise to pictures, on random text features: this side encodes no text."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    schedule = NoiseSchedule(ScheduleSpec())
    experts = [NetDenoiser(net, schedule, model["prediction"]) for net in (structure, texture)]
    denoiser = TimeDecoupled(experts, [float(schedule.sigma(model["experts"]["structure"]))])
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
