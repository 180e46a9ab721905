"""Write golden/samplers.npz: what diffusers' schedulers make of a denoiser and noise that anyone can compute.

Run where the extra `bench` is installed: python -m tests.parity.golden_samplers. The tests need the file alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "samplers.npz"
SHAPE = (2, 3, 4, 4)
TABLE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 10


def denoise(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Nothing any sampler gets right by luck: not linear in x, and different at each σ."""
    s = np.asarray(sigma, np.float64).reshape(-1, 1, 1, 1)
    return 0.8 * np.tanh(1.3 * x / np.sqrt(1 + s * s)) + 0.2 * np.cos(x) / (1 + s) + 0.1


def noise(number: int) -> np.ndarray:
    """The start (-1), and what stochastic samplers add at each step."""
    return np.random.default_rng([5, number + 1]).standard_normal(SHAPE)


def cases() -> dict:
    """name -> (our sampler, diffusers' scheduler)."""
    import diffusers as d

    return {
        "euler": ("euler", d.EulerDiscreteScheduler(**TABLE)),
        "euler_karras": ("euler", d.EulerDiscreteScheduler(**TABLE, use_karras_sigmas=True)),
        "euler_ancestral": ("euler_ancestral", d.EulerAncestralDiscreteScheduler(**TABLE)),
        "heun": ("heun", d.HeunDiscreteScheduler(**TABLE)),
        "dpmpp_2m": ("dpmpp_2m", d.DPMSolverMultistepScheduler(**TABLE)),
        "dpmpp_2m_karras": ("dpmpp_2m", d.DPMSolverMultistepScheduler(**TABLE, use_karras_sigmas=True)),
        "dpmpp_2m_sde": ("dpmpp_2m_sde", d.DPMSolverMultistepScheduler(**TABLE, algorithm_type="sde-dpmsolver++")),
        "ddim": ("ddim", d.DDIMScheduler(**TABLE, clip_sample=False)),
        "unipc": ("unipc", d.UniPCMultistepScheduler(**TABLE, final_sigmas_type="zero")),
        "lcm": ("lcm", d.LCMScheduler(**TABLE)),
    }


def levels(scheduler) -> np.ndarray:
    """The σ it walks, float64, Heun's doubled ones once."""
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().numpy()
        return np.concatenate([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]) if "Heun" in str(type(scheduler)) else sigmas
    alpha_bar = scheduler.alphas_cumprod.double().numpy()[scheduler.timesteps.numpy()]
    return np.append(np.sqrt((1 - alpha_bar) / alpha_bar), 0.0)


def walk(scheduler) -> tuple[np.ndarray, np.ndarray]:
    """The σ, (n + 1,), and the σ-space latents before each step and at the end, (n + 1, *SHAPE)."""
    import importlib

    import torch

    scheduler.set_timesteps(STEPS)
    sigmas, name = levels(scheduler), type(scheduler).__name__
    in_sigma_space = name.startswith(("Euler", "Heun"))
    heun, drawn = "Heun" in name, []

    def our_noise(*_, **__):
        drawn.append(0)
        return torch.from_numpy(noise(len(drawn) - 1))

    module = importlib.import_module(type(scheduler).__module__)
    module.randn_tensor = our_noise
    x, path = torch.from_numpy(noise(-1) * sigmas[0]), []
    if not in_sigma_space:
        x = x / np.sqrt(1 + sigmas[0] ** 2)
    for i, t in enumerate(scheduler.timesteps):
        step = (i + 1) // 2 if heun else i
        sigma = float(sigmas[step])
        c = 1.0 if in_sigma_space else 1 / np.sqrt(1 + sigma**2)
        latent = x.double().numpy() / c
        if not heun or i % 2 == 0:
            path.append(latent)
        epsilon = (latent - denoise(latent, np.full(SHAPE[0], sigma))) / sigma
        x = scheduler.step(torch.from_numpy(epsilon), t, x).prev_sample
    path.append(x.double().numpy())
    return sigmas, np.stack(path)


def main() -> None:
    """Write the file."""
    arrays = {}
    for name, (sampler, scheduler) in cases().items():
        sigmas, path = walk(scheduler)
        arrays.update(
            {f"{name}.sampler": np.array(sampler), f"{name}.sigmas": sigmas, f"{name}.path": path.astype(np.float32)}
        )
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
