"""Time densities against their distribution functions, and what stratification must and must not
change."""

import numpy as np
import pytest
import torch
from exact_denoisers import CPU, STABLE_DIFFUSION
from scipy import optimize, special, stats

from ldm.diffusion import (
    Cosine,
    CosMap,
    DiscreteUniform,
    LogitNormal,
    LogNormalSigma,
    Mode,
    RectifiedFlow,
    Uniform,
)
from ldm.diffusion.times import draw_times
from ldm.types import Draws


def batch(rows, step=0, total=None):
    return Draws(seed=3, step=step, rows=rows, total=total or len(rows), device=CPU)


def mode_distribution(t):
    """The u whose image under Esser et al. 2024, eq. 20, is t; that map falls."""

    def image(u):
        return 1 - u - 1.29 * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)

    return np.array([1 - optimize.brentq(lambda u, t=t: image(u) - t, 0, 1) for t in t])


DISTRIBUTIONS = [
    (Uniform(), RectifiedFlow(), lambda t: t),
    (
        LogitNormal(-0.4, 0.8),
        RectifiedFlow(),
        lambda t: special.ndtr((special.logit(t) + 0.4) / 0.8),
    ),
    (Mode(1.29), RectifiedFlow(), mode_distribution),
    (CosMap(), RectifiedFlow(), lambda t: 2 / np.pi * (np.arctan(2 * t - 1) + np.pi / 4)),
    (
        LogNormalSigma(-0.5, 1.2),
        Cosine(),
        lambda t: special.ndtr((np.log(np.tan(np.pi / 2 * t)) + 0.5) / 1.2),
    ),
]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("times", "schedule", "distribution"), DISTRIBUTIONS)
def test_draws_follow_the_density(times, schedule, distribution, stratified):
    t = draw_times(times, schedule, batch(range(1000)), stratified=stratified)
    assert stats.kstest(t.double().numpy(), distribution).pvalue > 0.01


@pytest.mark.parametrize("times", [times for times, _, _ in DISTRIBUTIONS], ids=repr)
def test_each_row_alone_keeps_the_density_when_stratified(times):
    """Row 5 of 8 over 500 steps: an offset that all rows share moves it over all times."""
    schedule, distribution = next(rest for t, *rest in DISTRIBUTIONS if t is times)
    t = [draw_times(times, schedule, batch([5], s, 8), stratified=True) for s in range(500)]
    assert stats.kstest(torch.cat(t).double().numpy(), distribution).pvalue > 0.01


def test_discrete_times_are_the_tables_steps():
    t = draw_times(DiscreteUniform(10), STABLE_DIFFUSION, batch(range(1000)), stratified=False)
    counts = torch.bincount((t * 10).round().long(), minlength=11)
    torch.testing.assert_close(t * 10, (t * 10).round())
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 0.01


def test_stratified_times_steady_an_integral():
    def spread(stratified):
        means = [
            draw_times(LogitNormal(), RectifiedFlow(), batch(range(32), s), stratified=stratified)
            .square()
            .mean()
            for s in range(40)
        ]
        return torch.stack(means).var()

    assert spread(stratified=False) > 4 * spread(stratified=True)


@pytest.mark.parametrize("stratified", [False, True])
def test_two_ranks_draw_what_one_draws(stratified):
    whole, left, right = (
        draw_times(Uniform(), RectifiedFlow(), batch(rows, 7, 12), stratified=stratified)
        for rows in (range(12), range(5), range(5, 12))
    )
    assert torch.equal(whole, torch.cat([left, right]))


def test_no_time_is_an_end():
    """Where log-SNR is infinite."""
    t = draw_times(Uniform(), RectifiedFlow(), batch(range(4096)), stratified=True)
    assert t.min() > 0
    assert t.max() < 1


def test_a_mode_density_that_runs_backwards_is_refused():
    with pytest.raises(ValueError, match=r"times\.scale between -1"):
        Mode(2.0)
