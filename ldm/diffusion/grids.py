"""The times at which a sampler stops on its way from noise to data."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from ldm.diffusion.schedules import Schedule


@runtime_checkable
class Grid(Protocol):
    """A rule for where to stop."""

    def __call__(self, schedule: Schedule, steps: int) -> Float64[Tensor, "stops"]:
        """Falling times on the CPU; the network is asked at all but the last, which is 0."""


@dataclass(frozen=True)
class UniformGrid:
    """Even steps from 1 to 0. On a 1000-step table that `steps` divides, this is the `trailing`
    spacing (Lin et al. 2023, arXiv:2305.08891, table 2)."""

    def __call__(self, schedule: Schedule, steps: int) -> Float64[Tensor, "stops"]:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
