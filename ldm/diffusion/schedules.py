"""How signal turns into noise: x_t = alpha(t) x_0 + sigma(t) noise, a curve in the plane.

A schedule gives its point (alpha, sigma), its slope, and the time of a given signal-to-noise ratio.
Each computes alpha and sigma to full *relative* precision at both ends (never 1 - something that
rounds to 0), so that one formula, 2 log(alpha / sigma), is a stable log-SNR for all of them.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
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


def columns(t: Tensor) -> Float[Tensor, "b 1 1 1"]:
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
