"""How much each time counts in the loss.

Papers state weights for the loss on noise or on x_0. An error d in a prediction is an error
-sigma d / D in x_0 and alpha d / D in the noise, D the target's determinant; so each formula below
is the paper's, times the square of one of these, and holds for every target.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule
from ldm.diffusion.targets import Target, determinant


@runtime_checkable
class Weight(Protocol):
    """A factor on the squared error of the target at each time."""

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Shaped like t, not negative."""


@dataclass(frozen=True)
class Unit:
    """The target's own squared error."""

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on x_0 (Hang et al. 2023, arXiv:2303.09556)."""

    gamma: float = 5.0

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        most = torch.minimum(alpha.square(), self.gamma * sigma.square())
        return most / determinant(target, schedule, t).square()


@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, 1) on x_0 (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        most = torch.maximum(alpha.square(), sigma.square())
        return most / determinant(target, schedule, t).square()


@dataclass(frozen=True)
class EDM:
    """(sigma^2 + data_std^2) / (sigma data_std)^2 on x_0 where alpha = 1, which is 1 on the
    preconditioned target (Karras et al. 2022, arXiv:2206.00364, table 1)."""

    data_std: float = 1.0

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        width = alpha.square() + (sigma / self.data_std).square()
        return width / determinant(target, schedule, t).square()


@dataclass(frozen=True)
class P2:
    """1 / (k + SNR)^gamma on the noise (Choi et al. 2022, arXiv:2204.00227)."""

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        alpha, sigma = (x.square() for x in schedule(t))
        most = alpha * (sigma / (self.k * sigma + alpha)) ** self.gamma
        return most / determinant(target, schedule, t).square()


@dataclass(frozen=True)
class SigmoidELBO:
    """sigmoid(bias - log SNR) on the noise, per unit of log-SNR (Kingma & Gao 2023,
    arXiv:2303.00848).

    The rate -d log SNR / dt is part of it, so it means what the paper says for Uniform times.
    """

    bias: float = 0.0

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        t = t.clamp(1e-6, 1 - 1e-6)  # at its very ends a curve may be vertical
        alpha, sigma = schedule(t)
        d_alpha, d_sigma = schedule.slope(t)
        share = alpha * sigma / (sigma.square() + alpha.square() * math.exp(-self.bias))
        rate = 2 * (alpha * d_sigma - sigma * d_alpha)  # times 1 / (alpha sigma), in share
        return share * rate / determinant(target, schedule, t).square()
