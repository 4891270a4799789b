"""Data whose denoiser is known exactly: the outside truth for samplers and guidance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion import Estimate, Schedule
from ldm.diffusion.schedules import columns
from ldm.types import Condition, Draws, Latent, Time, draws_for_seeds

CPU = torch.device("cpu")


def nothing(n: int) -> Condition:
    """A condition that says nothing."""
    return Condition(torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))


def seeded(n: int) -> Draws:
    return draws_for_seeds(range(n), CPU)


@dataclass(frozen=True)
class GaussianData:
    """x_0 ~ N(mean, std^2): the posterior mean is a straight line in x_t, and the probability flow
    keeps (x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) constant."""

    schedule: Schedule
    mean: float = 0.5
    std: float = 0.3

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
    """x_0 is -place or +place, with equal chance, in each element."""

    schedule: Schedule
    place: float = 1.0

    def __call__(self, x_t: Latent, t: Time, condition: Condition) -> Estimate:
        alpha, sigma = self.schedule(columns(t.to(x_t)))
        x0 = self.place * torch.tanh(alpha * self.place * x_t / sigma**2)
        return Estimate(x0, (x_t - alpha * x0) / sigma)
