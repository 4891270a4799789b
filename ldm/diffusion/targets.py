"""What the network predicts. Every target is a straight combination  a x_0 + b noise.

That one fact gives the training target and, with x_t = alpha x_0 + sigma noise, a two-by-two
system whose solution is (x_0, noise): no pairwise conversion is needed. Its determinant
alpha b - sigma a says where the system can be solved, and what a weight on one target's loss is
on another's (weights.py).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule, columns
from ldm.types import Latent


@runtime_checkable
class Target(Protocol):
    """The combination of data and noise that a network is trained to predict."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b), each shaped like t."""


@dataclass(frozen=True)
class Noise:
    """epsilon (Ho et al. 2020, arXiv:2006.11239)."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Data:
    """x_0 itself."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)


@dataclass(frozen=True)
class Velocity:
    """dx_t/dt; on a rectified flow, noise - x_0 (Lipman et al. 2022, arXiv:2210.02747)."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.slope(t)


@dataclass(frozen=True)
class AngularVelocity:
    """v = alpha noise - sigma x_0, the derivative by the angle atan(sigma / alpha)
    (Salimans & Ho 2022, arXiv:2202.00512, section 4)."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule(t)
        return -sigma, alpha


@dataclass(frozen=True)
class Preconditioned:
    """What EDM's network predicts, (x_0 - c_skip x_t) / c_out, which has unit variance at every t
    for data of standard deviation data_std (Karras et al. 2022, arXiv:2206.00364, table 1). For
    unit variance it is -v."""

    data_std: float = 1.0

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule(t)
        width = torch.hypot(self.data_std * alpha, sigma)
        return sigma / width / self.data_std, -self.data_std * alpha / width


def determinant(target: Target, schedule: Schedule, t: Tensor) -> Tensor:
    """alpha b - sigma a. An error d in the prediction is an error -sigma d / determinant in x_0
    and alpha d / determinant in the noise."""
    alpha, sigma = schedule(t)
    a, b = target.coefficients(schedule, t)
    return alpha * b - sigma * a


def compose(target: Target, schedule: Schedule, x0: Latent, noise: Latent, t: Tensor) -> Latent:
    """The target's value for t `[b]` or scalar."""
    a, b = target.coefficients(schedule, columns(t))
    return a * x0 + b * noise


def solve(
    target: Target, schedule: Schedule, prediction: Latent, x_t: Latent, t: Tensor
) -> tuple[Latent, Latent]:
    """(x_0, noise) from the prediction: the inverse of [alpha sigma; a b]."""
    t = columns(t)
    alpha, sigma = schedule(t)
    a, b = target.coefficients(schedule, t)
    scale = 1 / determinant(target, schedule, t)
    x0 = scale * (b * x_t - sigma * prediction)
    noise = scale * (alpha * prediction - a * x_t)
    return x0, noise
