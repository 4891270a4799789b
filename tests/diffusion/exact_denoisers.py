"""Data whose denoiser is known exactly: the outside truth for samplers and guidance."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ldm.diffusion import (
    AngularVelocity,
    Betas,
    Cosine,
    Data,
    Estimate,
    Noise,
    Preconditioned,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    UnitVariance,
    VarianceExploding,
    Velocity,
    ZeroTerminalSNR,
)
from ldm.diffusion.schedules import columns
from ldm.types import Condition, Draws, Latent, Time, draws_for_seeds

CPU = torch.device("cpu")
STABLE_DIFFUSION = Betas(0.00085, 0.012, power=2.0)
SCHEDULES = [
    RectifiedFlow(),
    Cosine(),
    Betas(),
    STABLE_DIFFUSION,
    Sigmoid(),
    ZeroTerminalSNR(STABLE_DIFFUSION),
    UnitVariance(VarianceExploding()),
    Shifted(RectifiedFlow(), 3.0),
    Shifted(Cosine(), 0.4),
    VarianceExploding(),
]
TARGETS = [Noise(), Data(), Velocity(), AngularVelocity(), Preconditioned()]


def nothing(n: int) -> Condition:
    """A condition that says nothing."""
    return Condition(torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))


def seeded(n: int) -> Draws:
    return draws_for_seeds(range(n), CPU)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class GaussianData:
    """x_0 ~ N(mean, std^2): the posterior mean is a straight line in x_t, and the probability flow
    keeps (x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) constant."""

    schedule: Schedule
    mean: float | Tensor = 0.5
    std: float | Tensor = 0.3

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        alpha, sigma = self.schedule(columns(t.to(x_t)))
        residual = (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return Estimate(self.mean + alpha * self.std**2 * residual, sigma * residual)

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability flow carries x, exactly."""
        (alpha, sigma), (alpha_end, sigma_end) = (
            self.schedule(torch.tensor(t, dtype=torch.float64)) for t in (start, end)
        )
        width = (alpha**2 * self.std**2 + sigma**2).sqrt()
        width_end = (alpha_end**2 * self.std**2 + sigma_end**2).sqrt()
        return alpha_end * self.mean + width_end * (x - alpha * self.mean) / width


@dataclass(frozen=True)
class TwoPoints:
    """x_0 is -1 or +1 in each element, with equal chance."""

    schedule: Schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        alpha, sigma = self.schedule(columns(t.to(x_t)))
        x0 = torch.tanh(alpha * x_t / sigma**2)
        return Estimate(x0, (x_t - alpha * x0) / sigma)


@dataclass(frozen=True)
class Counted:
    """Counts the rows of each pass."""

    denoiser: GaussianData | TwoPoints
    rows: list[int] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        self.rows.append(len(x_t))
        return self.denoiser(x_t, t, condition)


class Function(nn.Module):
    """A network without weights."""

    def __init__(self, function):
        super().__init__()
        self.blocks = nn.ModuleList()
        self.function = function

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.function(x_t, t)
