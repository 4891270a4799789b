"""Schedules against autograd, published tables and closed forms."""

import math

import pytest
import torch
from exact_denoisers import SCHEDULES, STABLE_DIFFUSION

from ldm.diffusion import (
    Betas,
    RectifiedFlow,
    Shifted,
    Sigmoid,
    UnitVariance,
    VarianceExploding,
    ZeroTerminalSNR,
    log_snr,
    resolution_shift,
)

ends = torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_slopes_are_the_derivatives(schedule):
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64).add(1e-5).requires_grad_()
    for value, slope in zip(schedule(t), schedule.slope(t), strict=True):
        (expected,) = torch.autograd.grad(value.sum() + 0 * t.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_inverts_log_snr_up_to_both_ends(schedule, dtype):
    near = torch.logspace(-6, -3, 20, dtype=dtype)
    t = torch.cat([torch.linspace(0, 1, 1001, dtype=dtype), near, 1 - near])
    back = schedule.time(log_snr(schedule, t))
    torch.testing.assert_close(back, t, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_data_is_clean_and_snr_falls(schedule):
    alpha, sigma = schedule(ends)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (log_snr(schedule, torch.linspace(0, 1, 500, dtype=torch.float64)).diff() < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_sigma_in_single_precision_is_right_in_relative_terms(schedule):
    """1 - alpha^2, computed in single precision, is 0 at the clean end."""
    t = torch.logspace(-4, 0, 200)
    (_, sigma), (_, exact) = schedule(t), schedule(t.double())
    torch.testing.assert_close(sigma.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("betas", "name"), [(Betas(), "linear"), (STABLE_DIFFUSION, "scaled_linear")]
)
def test_tables_are_diffusers_at_the_grid(betas, name):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=betas.first, beta_end=betas.last, beta_schedule=name)
    square = (1 - scheduler.betas.double()).cumprod(0)  # its float32 product is off by 1e-6
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(betas(t)[0].square(), square, rtol=5e-6, atol=0)


def test_zero_terminal_snr_is_the_published_rescaling():
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    alpha = (1 - root**2).cumprod(0).sqrt()
    wanted = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])  # Lin et al., algorithm 1
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    got, sigma = ZeroTerminalSNR(STABLE_DIFFUSION)(t)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(sigma, (1 - wanted**2).sqrt(), rtol=1e-9, atol=0)


def test_sigmoid_is_the_published_formula():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    start, end = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64) / 0.9)
    wanted = (end - torch.sigmoid((6 * t - 3) / 0.9)) / (end - start)
    torch.testing.assert_close(Sigmoid(tau=0.9)(t)[0].square(), wanted)


def test_a_shift_divides_the_snr_of_a_flow_by_its_square():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    shift = resolution_shift(4096, 1024)
    moved = log_snr(Shifted(RectifiedFlow(), shift), t)
    torch.testing.assert_close(moved, log_snr(RectifiedFlow(), t) - 2 * math.log(2))


def test_unit_variance_keeps_the_snr_and_the_width():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    inner = VarianceExploding()
    alpha, sigma = UnitVariance(inner)(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(log_snr(UnitVariance(inner), t), log_snr(inner, t))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Betas(first=0.02, last=1e-4), "0 < first <= last < 1"),
        (lambda: Shifted(RectifiedFlow(), 0.0), "set a positive shift"),
        (lambda: ZeroTerminalSNR(RectifiedFlow()), "does not preserve variance"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()
