"""What all samplers share: where they stop, how they start, and what they may ask.

A grid's points are plain Python numbers in double precision, so a sampler's coefficients cost no
kernel launch, never wait for an accelerator, and are exact whatever the latents' type.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser, Estimate
from ldm.diffusion.grids import Grid, UniformGrid
from ldm.diffusion.schedules import Schedule, log_snr
from ldm.types import Condition, Draws, Latent


class Point(NamedTuple):
    """A stop on the path. lambda = log(alpha / sigma), half the log-SNR, is the time in which
    fast samplers integrate; it is infinite where there is no signal or no noise."""

    t: float
    alpha: float
    sigma: float
    lambda_: float


def points(schedule: Schedule, times: Tensor) -> list[Point]:
    """The schedule at each time."""
    t = times.double()
    columns = torch.stack([t, *schedule(t), log_snr(schedule, t) / 2], dim=1)
    return [Point(*row) for row in columns.tolist()]


@dataclass(frozen=True)
class Start:
    """Image to image: begin at t = strength from this latent with noise added, instead of from
    noise alone. A small strength stays close to the latent and makes fewer steps."""

    latent: Latent
    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"strength is {self.strength}, but it is the time in (0, 1] at which denoising "
                "starts: set strength to e.g. 0.6"
            )


def check_eta(eta: float) -> None:
    """Refuse a share of fresh noise outside of [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta is {eta}, but it is the share of fresh noise: set 0 (deterministic) to 1"
        )


class Path:
    """One run of a sampler: a denoiser and what it is told, along the stops."""

    def __init__(
        self, denoiser: Denoiser, condition: Condition, draws: Draws | None, stops: list[Point]
    ) -> None:
        self.schedule = denoiser.schedule
        self.stops = stops
        self._denoiser = denoiser
        self._condition = condition
        self._draws = draws
        self._step = 0
        self._broken: list[tuple[int, float, Tensor]] = []

    def steps(self) -> Iterator[tuple[Point, Point]]:
        """(where it is, where it goes) for each step."""
        for number, (here, there) in enumerate(pairwise(self.stops)):
            self._step = number
            yield here, there

    def estimate(self, x: Latent, point: Point) -> Estimate:
        """The denoiser's estimate at a point."""
        estimate = self._denoiser(
            x, torch.full((len(x),), point.t, dtype=torch.float64), self._condition
        )
        broken = estimate.x0.isfinite().logical_not().float().mean()
        self._broken.append((self._step, point.t, broken))
        return estimate

    def fresh_noise(self, x: Latent, name: str = "step") -> Latent:
        """Standard normal noise for this step, a function of each sample's seed."""
        if self._draws is None:
            raise ValueError(
                "this sampler adds noise at each step: give it draws, one row a sample"
            )
        return self._draws.normal(x.shape[1:], f"{name} {self._step}").to(x)

    def check(self) -> None:
        """Raise if any estimate was not finite. Once, at the end: to look at each step would make
        the host wait for the accelerator at each step."""
        if not self._broken:
            return
        fractions = torch.stack([fraction for _, _, fraction in self._broken]).tolist()
        for (step, t, _), fraction in zip(self._broken, fractions, strict=True):
            if fraction > 0:
                raise ValueError(
                    f"the network's estimate is NaN or infinite in {fraction:.2%} of its values at "
                    f"step {step + 1} of {len(self.stops) - 1} (t = {t:.4f}): set another "
                    "checkpoint, or float32 instead of a 16-bit precision"
                )


@dataclass(frozen=True)
class Sampler(ABC):
    """Reverse diffusion in `steps` steps over the stops of `grid`."""

    steps: int
    grid: Grid = field(default_factory=UniformGrid)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(
                f"steps is {self.steps}, but sampling makes at least one: set steps=20"
            )

    @property
    def passes(self) -> int:
        """How often the denoiser is asked on a grid that ends at t = 0."""
        return self.steps

    def within(self, passes: int) -> "Sampler":
        """The same with as many steps as cost no more than this many passes."""
        possible = (replace(self, steps=steps) for steps in range(passes, 0, -1))
        for sampler in possible:
            if sampler.passes <= passes:
                return sampler
        raise ValueError(f"{passes} passes make no step: set passes to 1 or more")

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Latent,
        condition: Condition,
        draws: Draws | None = None,
        *,
        start: Start | None = None,
    ) -> Latent:
        """A latent for each row of standard normal `noise`; `draws` seeds what is added on the
        way, and only samplers that add noise need it. ValueError if the network gives NaN."""
        with torch.no_grad():
            times = self.grid(denoiser.schedule, self.steps)
            if start is not None:
                first = torch.tensor([start.strength], dtype=torch.float64)
                times = torch.cat([first, times[times < start.strength * (1 - 1e-9)]])
            stops = points(denoiser.schedule, times)
            _, alpha, sigma, _ = stops[0]
            if start is not None:
                x = alpha * start.latent + sigma * noise
            else:  # as wide as the x_t of unit-variance data
                x = math.hypot(alpha, sigma) * noise
            path = Path(denoiser, condition, draws, stops)
            x = self.walk(path, x)
            path.check()
        return x

    @abstractmethod
    def walk(self, path: Path, x: Latent) -> Latent:
        """From x at the first stop to the latent at the last."""
