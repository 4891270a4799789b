"""Multistep samplers: one pass a step, higher order from the estimates of earlier steps.

All integrate the same exact solution (Lu et al. 2022, arXiv:2211.01095, proposition 4.1), with
lambda = log(alpha / sigma) as time,
    x_s = sigma_s / sigma_t x_t + sigma_s * integral of exp(lambda) x_0(lambda) d lambda,
with a polynomial through known estimates in place of x_0(lambda). Slopes are divided differences
over lambda: towards a stop at infinite lambda they vanish, and the order falls by itself; the
step onto no noise at all is of first order, x_s = x_0.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ldm.diffusion.path import Path, Point, Sampler, check_eta
from ldm.types import Latent


class Known(NamedTuple):
    """The data as estimated at a stop."""

    lambda_: float
    x0: Latent


def slope(late: Known, early: Known) -> Latent:
    """The divided difference; 0 if one of them is infinitely far."""
    return (late.x0 - early.x0) / (late.lambda_ - early.lambda_)


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2); with eta = 1 its SDE form
    (section 5), with fresh noise at each step."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)

    def walk(self, path: Path, x: Latent) -> Latent:
        before: Known | None = None
        for here, there in path.steps():
            now = Known(here.lambda_, path.estimate(x, here).x0)
            h = there.lambda_ - here.lambda_
            middle = now.x0
            if before is not None and there.sigma > 0:
                middle = middle + h / 2 * slope(now, before)
            decay = math.exp(-self.eta * h) if self.eta > 0 else 1.0
            x = there.sigma / here.sigma * decay * x
            x = x - there.alpha * math.expm1(-(1 + self.eta) * h) * middle
            new = there.sigma * math.sqrt(1 - decay**2)
            if new > 0:
                x = x + new * path.fresh_noise(x)
            before = now
        return x


@dataclass(frozen=True)
class DPMSolver3M(Sampler):
    """DPM-Solver++ of third order: the integral of a parabola through three estimates; the first
    steps are Euler's and 2M's.

    The authors' code and those after it give the parabola's bend half its weight in the integral,
    which leaves the order at two; here it has all of it.
    """

    def walk(self, path: Path, x: Latent) -> Latent:
        known: list[Known] = []
        for here, there in path.steps():
            known = [Known(here.lambda_, path.estimate(x, here).x0), *known[:2]]
            h = there.lambda_ - here.lambda_
            phi_1 = math.expm1(-h)
            x = there.sigma / here.sigma * x - there.alpha * phi_1 * known[0].x0
            if there.sigma == 0 or len(known) == 1:
                continue
            if len(known) == 2:
                x = x - there.alpha * phi_1 * h / 2 * slope(*known)
                continue
            near, far = slope(known[0], known[1]), slope(known[1], known[2])
            bend = (near - far) / (known[0].lambda_ - known[2].lambda_)
            start = near + (known[0].lambda_ - known[1].lambda_) * bend  # slope at `here`
            x = x + there.alpha * ((phi_1 + h) * start - (2 * (phi_1 + h) - h**2) * bend)
        return x


@dataclass(frozen=True)
class UniPC(Sampler):
    """Predictor and corrector (Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2, with
    B(h) = exp(-h) - 1 and data prediction): the estimate asked for at a stop first corrects the
    step that led there, then serves the next, so accuracy order + 1 costs one pass a step."""

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.order <= 3:
            raise ValueError(f"order is {self.order}, but UniPC is stable for 1 to 3: set order=2")

    def walk(self, path: Path, x: Latent) -> Latent:
        known: list[Known] = []  # at stops behind, the latest first
        origin = x  # x at the latest of them
        before, order = path.stops[0], 0
        for number, (here, there) in enumerate(path.steps()):
            now = Known(here.lambda_, path.estimate(x, here).x0)
            if known:
                x = unified_step(before, here, origin, known[0], [now, *known[1:order]])
            known = [now, *known[: self.order - 1]]
            order = min(self.order, number + 1)
            if path.stops[-1].sigma == 0:  # the estimates bend most on the way to no noise
                order = min(order, len(path.stops) - 1 - number)
            origin, before = x, here
            x = unified_step(here, there, origin, known[0], known[1:order])
        return x


def unified_step(here: Point, there: Point, x: Latent, now: Known, nodes: list[Known]) -> Latent:
    """From here to there with the estimate `now` and its differences to those at other nodes;
    eq. 3 and 9 of UniPC, a corrector's if one of the nodes is `there`."""
    h = there.lambda_ - here.lambda_
    moved = math.expm1(-h)
    nodes = [node for node in nodes if math.isfinite(node.lambda_)]
    x = there.sigma / here.sigma * x - there.alpha * moved * now.x0
    if not nodes or there.sigma == 0:
        return x
    if math.isinf(h):  # from pure noise the only other node is `there`
        return x - there.alpha * moved / 2 * (nodes[0].x0 - now.x0)
    places = [(node.lambda_ - here.lambda_) / h for node in nodes]
    for weight, place, node in zip(moment_weights(places, h), places, nodes, strict=True):
        x = x - there.alpha * moved * weight / place * (node.x0 - now.x0)
    return x


def moment_weights(places: list[float], h: float) -> list[float]:
    """The weights for which the step is exact on polynomials through the nodes, which stand at
    `places` in units of h; a single node gets the paper's 1/2, which is exact as h falls."""
    if len(places) == 1:
        return [0.5]
    rows, moments = [], []
    phi, factorial = math.expm1(-h) / -h - 1, 1
    for power in range(len(places)):
        rows.append([place**power for place in places])
        moments.append(phi * factorial / math.expm1(-h))
        factorial *= power + 2
        phi = phi / -h - 1 / factorial
    system = torch.tensor(rows, dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(
        system, torch.tensor(moments, dtype=torch.float64)
    ).tolist()
    return weights
