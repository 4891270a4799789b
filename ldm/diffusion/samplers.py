"""One-step samplers: each step knows nothing of those before it."""

import math
from dataclasses import dataclass

from ldm.diffusion.denoiser import Estimate
from ldm.diffusion.path import Path, Point, Sampler
from ldm.types import Latent


def jump(estimate: Estimate, there: Point) -> Latent:
    """Straight to another time with the same data and noise: Euler's method in x/alpha over
    sigma/alpha, in x over t on a rectified flow, and DDIM, which are one formula."""
    return there.alpha * estimate.x0 + there.sigma * estimate.noise


@dataclass(frozen=True)
class DDIM(Sampler):
    """First order (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16).

    eta = 0 is deterministic and equals Euler's method; eta = 1 is DDPM's ancestral sampling (Ho et
    al. 2020, arXiv:2006.11239) and equals the "Euler ancestral" of k-diffusion.
    """

    eta: float = 0.0

    def walk(self, path: Path, x: Latent) -> Latent:
        for here, there in path.steps():
            estimate = path.estimate(x, here)
            new = self.eta * posterior_std(here, there)
            kept = math.sqrt(max(there.sigma**2 - new**2, 0))
            x = there.alpha * estimate.x0 + kept * estimate.noise
            if new > 0:
                x = x + new * path.fresh_noise(x)
        return x


def posterior_std(here: Point, there: Point) -> float:
    """Std of x_there given x_here and x_0, where `there` is less noisy."""
    kept = here.alpha * there.sigma / there.alpha  # what is left of there's noise, here
    return there.sigma / here.sigma * math.sqrt(max(here.sigma**2 - kept**2, 0))


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method on the probability-flow ODE."""

    def walk(self, path: Path, x: Latent) -> Latent:
        for here, there in path.steps():
            x = jump(path.estimate(x, here), there)
        return x


@dataclass(frozen=True)
class Heun(Sampler):
    """Second order, two passes a step (Karras et al. 2022, arXiv:2206.00364, algorithm 1); the
    last step, onto no noise at all, is Euler's.

    The slope d(x/alpha) / d(sigma/alpha) is the noise. Where the path starts at pure noise (alpha
    = 0) these coordinates are infinite; there x/(alpha + sigma) over sigma/(alpha + sigma), with
    the slope noise - x_0, stand in: the straight path that every schedule is but for its scale.
    """

    def walk(self, path: Path, x: Latent) -> Latent:
        straight = 1 if path.stops[0].alpha == 0 else 0
        for here, there in path.steps():
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
