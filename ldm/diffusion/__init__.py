"""Gaussian diffusion on tensors: schedules, targets, objective, denoisers, samplers, guidance."""

from ldm.diffusion.denoiser import Denoiser, Estimate, NetworkDenoiser
from ldm.diffusion.grids import Grid, UniformGrid
from ldm.diffusion.guidance import Guided
from ldm.diffusion.multistep import DPMSolver2M
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import Sampler, Start
from ldm.diffusion.samplers import DDIM, Euler, Heun
from ldm.diffusion.schedules import Cosine, RectifiedFlow, Schedule, corrupt, log_snr
from ldm.diffusion.targets import AngularVelocity, Data, Noise, Target, Velocity
from ldm.diffusion.times import LogitNormal, Times, Uniform
from ldm.diffusion.weights import MinSNR, Unit, Weight

__all__ = [
    "DDIM",
    "AngularVelocity",
    "Cosine",
    "DPMSolver2M",
    "Data",
    "Denoiser",
    "Estimate",
    "Euler",
    "Grid",
    "Guided",
    "Heun",
    "LogitNormal",
    "MinSNR",
    "NetworkDenoiser",
    "Noise",
    "Objective",
    "RectifiedFlow",
    "Sampler",
    "Schedule",
    "Start",
    "Target",
    "Times",
    "Uniform",
    "UniformGrid",
    "Unit",
    "Velocity",
    "Weight",
    "corrupt",
    "log_snr",
]
