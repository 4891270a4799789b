"""Gaussian diffusion on tensors: schedules, targets, objective, denoisers, samplers, guidance."""

from ldm.diffusion.betas import Betas
from ldm.diffusion.bins import TimeBins
from ldm.diffusion.denoiser import Denoiser, Estimate, Keeping, NetworkDenoiser, Watched
from ldm.diffusion.grids import (
    Grid,
    KarrasGrid,
    LeadingGrid,
    LinspaceGrid,
    LogSNRGrid,
    ShiftedGrid,
    TrailingGrid,
    UniformGrid,
)
from ldm.diffusion.guidance import (
    Guidance,
    Guided,
    Projected,
    Push,
    Rescaled,
    Straight,
    Thresholded,
)
from ldm.diffusion.multistep import DPMSolver2M, DPMSolver3M, UniPC
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import Sampler, Start
from ldm.diffusion.reshaped import Shifted, UnitVariance, ZeroTerminalSNR, resolution_shift
from ldm.diffusion.samplers import DDIM, Churn, Euler, Heun
from ldm.diffusion.schedules import (
    Cosine,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    VarianceExploding,
    corrupt,
    log_snr,
)
from ldm.diffusion.targets import (
    AngularVelocity,
    Data,
    Noise,
    Preconditioned,
    Target,
    Velocity,
)
from ldm.diffusion.times import (
    CosMap,
    DiscreteUniform,
    LogitNormal,
    LogNormalSigma,
    Mode,
    Times,
    Uniform,
)
from ldm.diffusion.uncertainty import LearnedUncertainty
from ldm.diffusion.variance import LearnedVariance
from ldm.diffusion.weights import EDM, P2, MinSNR, SigmoidELBO, TruncatedSNR, Unit, Weight

__all__ = [
    "DDIM",
    "EDM",
    "P2",
    "AngularVelocity",
    "Betas",
    "Churn",
    "CosMap",
    "Cosine",
    "DPMSolver2M",
    "DPMSolver3M",
    "Data",
    "Denoiser",
    "DiscreteUniform",
    "Estimate",
    "Euler",
    "Grid",
    "Guidance",
    "Guided",
    "Heun",
    "KarrasGrid",
    "Keeping",
    "LeadingGrid",
    "LearnedUncertainty",
    "LearnedVariance",
    "LinspaceGrid",
    "LogNormalSigma",
    "LogSNRGrid",
    "LogitNormal",
    "MinSNR",
    "Mode",
    "NetworkDenoiser",
    "Noise",
    "Objective",
    "Preconditioned",
    "Projected",
    "Push",
    "RectifiedFlow",
    "Rescaled",
    "Sampler",
    "Schedule",
    "Shifted",
    "ShiftedGrid",
    "Sigmoid",
    "SigmoidELBO",
    "Start",
    "Straight",
    "Target",
    "Thresholded",
    "TimeBins",
    "Times",
    "TrailingGrid",
    "TruncatedSNR",
    "UniPC",
    "Uniform",
    "UniformGrid",
    "Unit",
    "UnitVariance",
    "VarianceExploding",
    "Velocity",
    "Watched",
    "Weight",
    "ZeroTerminalSNR",
    "corrupt",
    "log_snr",
    "resolution_shift",
]
