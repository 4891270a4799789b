"""One-step samplers: each step knows nothing of those before it."""

import math
from dataclasses import dataclass

import torch

from ldm.diffusion.denoiser import Estimate
from ldm.diffusion.path import Path, Point, Sampler, check_eta, points
from ldm.types import Latent


def jump(estimate: Estimate, there: Point) -> Latent:
    """Straight to another time with the same data and noise: Euler's method in x/alpha over
    sigma/alpha, in x over t on a rectified flow, and DDIM, which are one formula."""
    return there.alpha * estimate.x0 + there.sigma * estimate.noise


@dataclass(frozen=True)
class DDIM(Sampler):
    """First order (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16).

    eta = 0 is deterministic and equals Euler's method; eta = 1 is DDPM's ancestral sampling (Ho et
    al. 2020, arXiv:2006.11239) and equals the "Euler ancestral" of k-diffusion. A learned variance
    widens the noise that eta adds.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def walk(self, path: Path, x: Latent) -> Latent:
        for here, there in path.steps():
            estimate = path.estimate(x, here)
            new = self.eta * posterior_std(here, there)
            kept = math.sqrt(max(there.sigma**2 - new**2, 0))
            x = there.alpha * estimate.x0 + kept * estimate.noise
            if new > 0:
                fresh = new * path.fresh_noise(x)
                if estimate.width is not None:
                    fresh = fresh * (here.sigma / there.sigma) ** estimate.width
                x = x + fresh
        return x


def posterior_std(here: Point, there: Point) -> float:
    """Std of x_there given x_here and x_0, `there` being less noisy; at most there.sigma."""
    return there.sigma * math.sqrt(-math.expm1(2 * (here.lambda_ - there.lambda_)))


@dataclass(frozen=True)
class Churn:
    """Noise put back before a step, which a step then takes away again, and with it errors made
    before (Karras et al. 2022, arXiv:2206.00364, algorithm 2: S_churn, S_tmin, S_tmax, S_noise).
    low and high bound the sigma / alpha at which it is done."""

    amount: float
    low: float = 0.0
    high: float = float("inf")
    inflation: float = 1.0

    def __post_init__(self) -> None:
        if not (self.amount >= 0 and 0 <= self.low <= self.high and self.inflation > 0):
            raise ValueError(
                f"{self} makes no noise: set amount >= 0, 0 <= low <= high, inflation > 0"
            )

    def __call__(self, path: Path, x: Latent, here: Point) -> tuple[Latent, Point]:
        """x and its place after the noise."""
        share = min(self.amount / (len(path.stops) - 1), math.sqrt(2) - 1)
        level = math.exp(-here.lambda_)
        more = min(level * (1 + share), math.exp(-path.stops[0].lambda_))
        if not (self.low <= level <= self.high and more > level):
            return x, here
        time = path.schedule.time(torch.tensor([-2 * math.log(more)], dtype=torch.float64))
        (noisier,) = points(path.schedule, time)
        added = math.sqrt(math.exp(-2 * noisier.lambda_) - level**2)
        fresh = self.inflation * added * path.fresh_noise(x)
        return noisier.alpha * (x / here.alpha + fresh), noisier


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method on the probability-flow ODE; without churn it equals DDIM."""

    churn: Churn | None = None

    def walk(self, path: Path, x: Latent) -> Latent:
        for here, there in path.steps():
            if self.churn is not None:
                x, here = self.churn(path, x, here)
            x = jump(path.estimate(x, here), there)
        return x


@dataclass(frozen=True)
class Heun(Sampler):
    """Second order, two passes a step (Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2);
    the last step, onto no noise at all, is Euler's.

    The slope d(x/alpha) / d(sigma/alpha) is the noise. Where the path starts at pure noise (alpha
    = 0) these coordinates are infinite; there x/(alpha + sigma) over sigma/(alpha + sigma), with
    the slope noise - x_0, stand in: the straight path that every schedule is but for its scale.
    """

    churn: Churn | None = None

    @property
    def passes(self) -> int:
        return 2 * self.steps - 1

    def walk(self, path: Path, x: Latent) -> Latent:
        straight = 1 if path.stops[0].alpha == 0 else 0
        for here, there in path.steps():
            if self.churn is not None:
                x, here = self.churn(path, x, here)
            first = path.estimate(x, here)
            ahead = jump(first, there)
            if there.sigma > 0:
                second = path.estimate(ahead, there)
                slope = (first.noise + second.noise - straight * (first.x0 + second.x0)) / 2
                width_here = here.alpha + straight * here.sigma
                width = there.alpha + straight * there.sigma
                length = there.sigma / width - here.sigma / width_here
                ahead = width * (x / width_here + length * slope)
            x = ahead
        return x
