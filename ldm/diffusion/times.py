"""Where in time the network is trained.

A density is its quantile function: the t below which a share u of the training happens. So one
source of uniform numbers, independent or spread evenly over the global batch, serves them all.
"""

import math
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


LEAST = 2**-25  # of the share of times that lie before the earliest one that is drawn


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
        u = draws.uniform((1,), "times")[:, 0]
    return times.quantile(u.clamp(LEAST, 1 - 2**-24), schedule)


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


@dataclass(frozen=True)
class Mode:
    """Heavy in the middle for scale > 0, and nowhere zero (same paper, eq. 20);
    -1 <= scale <= 2 / (pi - 2)."""

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(
                f"scale is {self.scale}, where this density would run backwards: "
                "set times.scale between -1 and 1.75"
            )

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return u - self.scale * (torch.sin(math.pi / 2 * u).square() - u)


@dataclass(frozen=True)
class CosMap:
    """On a rectified flow, the signal-to-noise ratios that a uniform cosine schedule has (same
    paper, eq. 21): density 2 / (pi (1 - 2 t + 2 t^2))."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        sine = torch.sin(math.pi / 2 * u)
        return sine / (sine + torch.sin(math.pi / 2 * (1 - u)))


@dataclass(frozen=True)
class LogNormalSigma:
    """log(sigma / alpha) ~ N(mean, std^2), for data of unit variance (Karras et al. 2022,
    arXiv:2206.00364, table 1, whose data has std 0.5: add log 2 to the mean given there)."""

    mean: float = -0.5
    std: float = 1.2

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class DiscreteUniform:
    """Only the steps of a table, t = 1/steps ... 1, all alike (Ho et al. 2020)."""

    steps: int = 1000

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return ((u * self.steps).floor() + 1) / self.steps
