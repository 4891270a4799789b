"""The times at which a sampler stops on its way from noise to data."""

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from ldm.diffusion.reshaped import shift_time
from ldm.diffusion.schedules import Schedule, log_snr

Stops = Float64[Tensor, "stops"]


@runtime_checkable
class Grid(Protocol):
    """A rule for where to stop."""

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        """steps + 1 falling times on the CPU; the network is asked at all but the last, which is
        0 where nothing else is said."""


@dataclass(frozen=True)
class UniformGrid:
    """Even steps from 1 to 0."""

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class TrailingGrid:
    """Even steps from the end of a table, rounded to it (Lin et al. 2023, arXiv:2305.08891, table
    2): what Stable Diffusion 2.1 with zero terminal SNR and its distilled kin are sampled with."""

    table: int = 1000

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        _fits(steps, self.table)
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return (even * self.table).round() / self.table


@dataclass(frozen=True)
class LeadingGrid:
    """Multiples of table // steps plus an offset, short of the table's end (same table): Stable
    Diffusion 1 and 2 as published, which end at `last` = 0.001, the table's first step."""

    table: int = 1000
    offset: int = 1
    last: float = 0.0

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        _fits(steps + self.offset, self.table)
        rows = torch.arange(steps - 1, -1, -1) * (self.table // steps) + self.offset
        return torch.cat([(rows.double() + 1) / self.table, torch.tensor([self.last]).double()])


@dataclass(frozen=True)
class LinspaceGrid:
    """Both ends of a table and even steps between, rounded to it (same table): DDPM's and DiT's
    respacing."""

    table: int = 1000

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        _fits(steps, self.table)
        rows = torch.linspace(self.table - 1, 0, steps, dtype=torch.float64).round()
        return torch.cat([(rows + 1) / self.table, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class KarrasGrid:
    """(sigma / alpha)^(1 / rho) even from sigma_max to sigma_min, then 0 (Karras et al. 2022,
    arXiv:2206.00364, eq. 5). sigma_max None is the schedule's own, where it has one."""

    sigma_min: float = 0.002
    sigma_max: float | None = None
    rho: float = 7.0

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        low, high = _noise_range(schedule, self.sigma_min, self.sigma_max)
        ends = high ** (1 / self.rho), low ** (1 / self.rho)
        return _at_noise(schedule, torch.linspace(*ends, steps, dtype=torch.float64) ** self.rho)


@dataclass(frozen=True)
class LogSNRGrid:
    """Even steps in log-SNR from sigma_max to sigma_min (of sigma / alpha), then 0 (Lu et al.
    2022, arXiv:2206.00927, section 3.4)."""

    sigma_min: float = 0.002
    sigma_max: float | None = None

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        low, high = _noise_range(schedule, self.sigma_min, self.sigma_max)
        return _at_noise(
            schedule,
            torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp(),
        )


@dataclass(frozen=True)
class ShiftedGrid:
    """Another grid with SD3's time shift: more stops where there is much noise."""

    shift: float
    grid: Grid = field(default_factory=UniformGrid)

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift is {self.shift}, but it multiplies: set 1 for none, or 3")

    def __call__(self, schedule: Schedule, steps: int) -> Stops:
        return shift_time(self.grid(schedule, steps), self.shift)


def _fits(rows: int, table: int) -> None:
    if rows > table:
        raise ValueError(f"a table of {table} has no {rows} steps: set steps to less")


def _noise_range(schedule: Schedule, low: float, high: float | None) -> tuple[float, float]:
    """The least and the most sigma / alpha, once they are known to make sense."""
    most = (-log_snr(schedule, torch.ones(1, dtype=torch.float64)) / 2).exp().item()
    if high is None and most == float("inf"):
        raise ValueError(
            f"{schedule} ends in pure noise, where sigma / alpha is infinite, and this grid needs "
            "a largest one: set grid.sigma_max to e.g. 80, or grid to UniformGrid"
        )
    high = most if high is None else high
    if not 0 < low < high <= most * (1 + 1e-9):
        raise ValueError(
            f"the grid runs from sigma_max = {high} to sigma_min = {low} and {schedule} ends at "
            f"{most:.6g}: set 0 < grid.sigma_min < grid.sigma_max <= {most:.6g}"
        )
    return low, high


def _at_noise(schedule: Schedule, noise: Tensor) -> Stops:
    """The times of these sigma / alpha, and 0."""
    return torch.cat([schedule.time(-2 * noise.log()), torch.zeros(1, dtype=torch.float64)])
