"""Multistep samplers: one pass a step, higher order from the estimates of earlier steps.

All integrate the same exact solution (Lu et al. 2022, arXiv:2211.01095, proposition 4.1), with
lambda = log(alpha / sigma) as time,
    x_s = sigma_s / sigma_t x_t + sigma_s * integral of exp(lambda) x_0(lambda) d lambda,
with a polynomial through known estimates in place of x_0(lambda). Slopes are divided differences
over lambda: towards a stop at infinite lambda they vanish, and the order falls by itself.
"""

import math
from dataclasses import dataclass

from ldm.diffusion.path import Path, Sampler
from ldm.types import Latent


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2); with eta = 1 its SDE form
    (section 5), with fresh noise at each step."""

    eta: float = 0.0

    def walk(self, path: Path, x: Latent) -> Latent:
        x0_before, step_before = None, 1.0
        for here, there in path.steps():
            x0 = path.estimate(x, here).x0
            h = there.lambda_ - here.lambda_
            middle = x0
            if x0_before is not None and math.isfinite(h):
                middle = x0 + h / (2 * step_before) * (x0 - x0_before)
            decay = math.exp(-self.eta * h) if self.eta > 0 else 1.0
            x = there.sigma / here.sigma * decay * x
            x = x - there.alpha * math.expm1(-(1 + self.eta) * h) * middle
            new = there.sigma * math.sqrt(1 - decay**2)
            if new > 0:
                x = x + new * path.fresh_noise(x)
            x0_before, step_before = x0, h
        return x
