"""Samplers against the exact denoiser of Gaussian data, whose flow is known."""

import math
from dataclasses import dataclass

import pytest
import torch
from exact_denoisers import GaussianData, nothing

from ldm.diffusion import DDIM, Cosine, DPMSolver2M, Euler, Heun, RectifiedFlow, log_snr
from ldm.diffusion.schedules import columns

SCHEDULES = [RectifiedFlow(), Cosine()]


@dataclass(frozen=True)
class Between:
    """Stops even in log-SNR between two times: an order is a promise about small steps in it."""

    first: float = 0.9
    last: float = 0.1

    def __call__(self, schedule, steps):
        ends = log_snr(schedule, torch.tensor([self.first, self.last], dtype=torch.float64))
        return schedule.time(torch.linspace(*ends.tolist(), steps + 1, dtype=torch.float64))


def error(sampler, schedule, first, last):
    """Largest distance from the exact flow, over 64 starts."""
    noise = torch.randn(
        64, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    data = GaussianData(schedule)
    alpha, sigma = schedule(columns(torch.tensor(first, dtype=torch.float64)))
    reached = sampler(data, noise, nothing(64))
    return (reached - data.flow(alpha.hypot(sigma) * noise, first, last)).abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (Euler, 1), (Heun, 2), (DPMSolver2M, 2)])
def test_the_error_falls_at_the_order(schedule, sampler, order):
    coarse, fine = (
        error(sampler(steps, Between(0.9, 0.1)), schedule, 0.9, 0.1) for steps in (40, 80)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, rel=0.25)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("sampler", [DDIM, Euler, Heun, DPMSolver2M])
def test_samplers_reach_the_data_from_pure_noise(schedule, sampler):
    assert error(sampler(200), schedule, 1.0, 0.0) < 0.02
