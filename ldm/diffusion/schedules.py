"""How signal turns into noise: x_t = alpha(t) x_0 + sigma(t) noise, a curve in the plane.

A schedule gives its point (alpha, sigma), its slope, and the time of a given signal-to-noise ratio.
Each computes alpha and sigma to full *relative* precision at both ends (never 1 - something that
rounds to 0), so that one formula, 2 log(alpha / sigma), is a stable log-SNR for all of them.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from ldm.types import Latent


@runtime_checkable
class Schedule(Protocol):
    """Elementwise functions of t in [0, 1], of any shape and floating type."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma): alpha falls and sigma rises as t goes from 0 (data) to 1 (noise)."""

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt); infinite at an end where the curve is vertical."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which log(alpha^2 / sigma^2) has this value, or the nearer end of [0, 1]."""


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2): +inf where there is no noise, -inf where there is no signal."""
    alpha, sigma = schedule(t)
    return 2 * (alpha.log() - sigma.log())


def columns(t: Tensor) -> Shaped[Tensor, "b 1 1 1"]:
    """Times `[b]`, or one for all, shaped to multiply latents."""
    return t.reshape(-1, 1, 1, 1)


def corrupt(schedule: Schedule, x0: Latent, noise: Latent, t: Tensor) -> Latent:
    """x_t for t `[b]` or scalar: forward diffusion in one step."""
    alpha, sigma = schedule(columns(t))
    return alpha * x0 + sigma * noise


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight lines from data to noise (Liu et al. 2022, arXiv:2209.03003)."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class Cosine:
    """A quarter of a circle, alpha = cos(pi t / 2) (Nichol & Dhariwal 2021, arXiv:2102.09672,
    without their offset, as in Salimans & Ho 2022, arXiv:2202.00512)."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def time(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-log_snr / 2))


@dataclass(frozen=True)
class Sigmoid:
    """Variance preserving, alpha^2 a falling sigmoid over [start, end] / tau, moved and stretched
    to reach 1 and 0 (Jabri et al. 2022, arXiv:2212.11972).

    Differences of sigmoids are written as sinh(difference / 2) over cosh's, which keeps their
    relative precision where they vanish.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._halves()
        width = last - first
        shared = torch.cosh(first + width * t) * math.sinh(width)
        alpha = (torch.sinh(width * (1 - t)) * math.cosh(first) / shared).sqrt()
        sigma = (torch.sinh(width * t) * math.cosh(last) / shared).sqrt()
        return alpha, sigma

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._halves()
        width = last - first
        alpha, sigma = self(t)
        steepness = width * math.cosh(first) * math.cosh(last) / math.sinh(width)
        d_square = -steepness / torch.cosh(first + width * t).square()  # d alpha^2 / dt
        return d_square / (2 * alpha), -d_square / (2 * sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        first, last = self._halves()
        tanh = torch.sigmoid(log_snr) * math.tanh(first) + torch.sigmoid(-log_snr) * math.tanh(last)
        return ((torch.atanh(tanh) - first) / (last - first)).clamp(0, 1)

    def _halves(self) -> tuple[float, float]:
        return self.start / self.tau / 2, self.end / self.tau / 2


@dataclass(frozen=True)
class VarianceExploding:
    """alpha = 1 and sigma = sigma_max t^rho: the noise levels of EDM's sampler, down to none at
    all (Karras et al. 2022, arXiv:2206.00364, eq. 5 with sigma_min = 0).

    x_t is as wide as sigma; a network is trained on UnitVariance(VarianceExploding(...)).
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma_max * self.rho * t ** (self.rho - 1)

    def time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr / 2).exp() / self.sigma_max).clamp(0, 1) ** (1 / self.rho)
