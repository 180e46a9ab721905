"""The mathematics of diffusion. All above speak σ-space and x0; this package alone knows ε, v and tables."""

from mindpangu.diffusion.denoiser import (
    Conditioned,
    Denoiser,
    Guided,
    Inpainted,
    LaggingTimeDecoupled,
    NetDenoiser,
    TimeDecoupled,
)
from mindpangu.diffusion.samplers import SAMPLERS
from mindpangu.diffusion.schedule import NoiseSchedule, ScheduleSpec, karras_sigmas, uniform_sigmas

__all__ = [
    "SAMPLERS",
    "Conditioned",
    "Denoiser",
    "Guided",
    "Inpainted",
    "LaggingTimeDecoupled",
    "NetDenoiser",
    "NoiseSchedule",
    "ScheduleSpec",
    "TimeDecoupled",
    "karras_sigmas",
    "uniform_sigmas",
]
