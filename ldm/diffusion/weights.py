"""How much each time counts in the loss.

Papers state weights for the loss on noise or on x_0. An error d in a prediction is an error
-sigma d / D in x_0 and alpha d / D in the noise, D the target's determinant; so each formula below
is the paper's, times the square of one of these, and holds for every target.
"""

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
    """min(SNR, gamma) on x_0 (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""

    gamma: float = 5.0

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        most = torch.minimum(alpha.square(), self.gamma * sigma.square())
        return most / determinant(target, schedule, t).square()
