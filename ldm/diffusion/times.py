"""Where in time the network is trained.

A density is its quantile function: the t below which a share u of the training happens. So one
source of uniform numbers, independent or spread evenly over the global batch, serves them all.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule
from ldm.types import Draws, Time


@runtime_checkable
class Times(Protocol):
    """A density of training times on [0, 1]."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """t for u in (0, 1), elementwise and increasing."""


def draw_times(times: Times, schedule: Schedule, draws: Draws, *, stratified: bool) -> Time:
    """One t in float32 for each row of `draws`.

    Stratified, the rows of the *global* batch stand at even distances, all moved by one random
    offset (Kingma et al. 2021, arXiv:2107.00630, appendix I.1): each t alone keeps the density,
    and their mean varies far less.
    """
    if stratified:
        rows = torch.tensor(draws.rows, dtype=torch.float64)
        u = (rows / draws.total + draws.shared_uniform("times")) % 1
        u = u.to(draws.device, torch.float32, non_blocking=True)
    else:
        u = draws.uniform((), "times")
    return times.quantile(u.clamp(2**-25, 1 - 2**-24), schedule)


@dataclass(frozen=True)
class Uniform:
    """All times alike."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """Most weight on the middle of the path (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
