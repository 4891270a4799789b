"""The two-by-two algebra of targets, against round trips and autograd."""

import pytest
import torch

from ldm.diffusion import (
    AngularVelocity,
    Cosine,
    Data,
    LogitNormal,
    Noise,
    Objective,
    RectifiedFlow,
    Velocity,
    corrupt,
    log_snr,
)
from ldm.diffusion.targets import compose, solve

SCHEDULES = [RectifiedFlow(), Cosine()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("target", [Noise(), Data(), Velocity(), AngularVelocity()], ids=repr)
def test_solving_a_target_gives_back_data_and_noise(schedule, target):
    x0, noise = torch.randn(2, 5, 4, 8, 8, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    x_t = corrupt(schedule, x0, noise, t)
    wanted = compose(target, schedule, x0, noise, t)
    torch.testing.assert_close(
        solve(target, schedule, wanted, x_t, t), (x0, noise), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_slopes_are_the_derivatives(schedule):
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64, requires_grad=True)
    for value, slope in zip(schedule(t), schedule.slope(t), strict=True):
        (expected,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_inverts_log_snr(schedule):
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(log_snr(schedule, t)), t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_target_blind_to_the_data_is_refused(schedule):
    with pytest.raises(ValueError, match="says nothing of the data at t = 1"):
        Objective(schedule, Noise(), LogitNormal())
