"""Samplers against denoisers that are known exactly: orders, distributions, starts, bad input."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from exact_denoisers import (
    CPU,
    SCHEDULES,
    STABLE_DIFFUSION,
    Counted,
    Function,
    GaussianData,
    TwoPoints,
    normal,
    nothing,
    seeded,
)
from scipy.integrate import quad

from ldm.diffusion import (
    DDIM,
    Churn,
    Cosine,
    DPMSolver2M,
    DPMSolver3M,
    Euler,
    Heun,
    KarrasGrid,
    Keeping,
    LeadingGrid,
    LinspaceGrid,
    LogSNRGrid,
    NetworkDenoiser,
    RectifiedFlow,
    ShiftedGrid,
    Start,
    TrailingGrid,
    UniformGrid,
    UniPC,
    Velocity,
    Watched,
    log_snr,
)
from ldm.diffusion.denoiser import with_data
from ldm.diffusion.schedules import columns
from ldm.types import draws_for_seeds

DETERMINISTIC = [DDIM, Euler, Heun, DPMSolver2M, DPMSolver3M, UniPC]
GRIDS = [
    UniformGrid(),
    TrailingGrid(),
    LinspaceGrid(),
    KarrasGrid(sigma_max=10.0),
    LogSNRGrid(sigma_max=10.0),
    ShiftedGrid(3.0),
]
NOISY = [
    DDIM(100, eta=1.0),
    DDIM(100, eta=0.5),
    DPMSolver2M(100, eta=1.0),
    Heun(60, churn=Churn(30.0, inflation=1.0)),
    Euler(100, churn=Churn(20.0, low=0.05, high=50.0)),
]


@dataclass(frozen=True)
class Between:
    """Stops even in log-SNR between SNR exp(-2) and exp(2): an order is a promise about small
    steps in it. A first step of h^2 lets a multistep method start at its own order."""

    short_start: bool = False

    def __call__(self, schedule, steps):
        even = torch.linspace(-2, 2, steps + 1, dtype=torch.float64)
        if not self.short_start:
            return schedule.time(even)
        early = even[:1] + (even[1] - even[0]) / steps
        return schedule.time(torch.cat([even[:1], early, even[1:]]))


def error(sampler, schedule):
    """Largest distance from the exact flow over 64 starts, between the grid's ends."""
    noise, data = normal(64, 1, 2, 2), GaussianData(schedule)
    times = sampler.grid(schedule, sampler.steps)
    alpha, sigma = schedule(columns(times[:1]))
    reached = sampler(data, noise, nothing(64))
    wanted = data.flow(alpha.hypot(sigma) * noise, times[0].item(), times[-1].item())
    return (reached - wanted).abs().max().item()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM, 1), (Euler, 1), (Heun, 2), (DPMSolver2M, 2), (DPMSolver3M, 3), (UniPC, 3)],
)
def test_the_error_falls_at_the_order(schedule, sampler, order):
    """UniPC's corrector adds one to its order of two."""
    grid = Between(short_start=sampler is DPMSolver3M)
    coarse, fine = (error(sampler(steps, grid), schedule) for steps in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, rel=0.25)


@dataclass(frozen=True)
class Parabola:
    """An estimate of the data that depends on lambda = log(alpha / sigma) alone."""

    schedule: Cosine

    def value(self, half_log_snr):
        return 1 + 0.7 * half_log_snr - 0.4 * half_log_snr**2

    def __call__(self, x_t, t, condition):
        x0 = self.value(log_snr(self.schedule, columns(t)) / 2).expand_as(x_t)
        return with_data(self.schedule, x_t, t, x0)


def test_third_order_integrates_a_parabola_as_quadrature_does():
    schedule, seen = Cosine(), []
    watched = Watched(Parabola(schedule), lambda x_t, t, _: seen.append((t[0], x_t)))
    DPMSolver3M(8, Between())(watched, normal(2, 1, 2, 2), nothing(2))
    for (here, x), (there, wanted) in pairwise(seen[2:]):  # the first steps are of lower order
        (_, sigma), (_, sigma_there) = schedule(here), schedule(there)
        ends = [(log_snr(schedule, t) / 2).item() for t in (here, there)]
        area = quad(lambda k: math.exp(k) * Parabola(schedule).value(k), *ends)[0]
        torch.testing.assert_close(sigma_there * (x / sigma + area), wanted)


@pytest.mark.parametrize(
    "sampler", [*(s(12) for s in DETERMINISTIC), Heun(12, churn=Churn(3.0))], ids=repr
)
def test_passes_are_counted_and_kept_within_a_budget(sampler):
    counted = Counted(GaussianData(Cosine()))
    sampler(counted, normal(2, 1, 2, 2), nothing(2), seeded(2))
    assert len(counted.rows) == sampler.passes
    within = sampler.within(10)
    assert within.passes <= 10 < replace(within, steps=within.steps + 1).passes
    with pytest.raises(ValueError, match="set passes to 1 or more"):
        sampler.within(0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_samplers_reach_the_data_from_pure_noise(schedule, sampler):
    """The limit is the first-order samplers' at a thousandth of variance-exploding's noise."""
    assert error(sampler(100), schedule) < 0.1


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_every_grid_serves_every_sampler(grid, sampler):
    for schedule in (RectifiedFlow(), STABLE_DIFFUSION):
        assert error(sampler(300, grid), schedule) < 0.1


@pytest.mark.parametrize("schedule", [RectifiedFlow(), STABLE_DIFFUSION], ids=repr)
@pytest.mark.parametrize("sampler", [s(40) for s in DETERMINISTIC] + NOISY, ids=repr)
def test_two_points_are_found_from_either_side(schedule, sampler):
    noise = normal(10, 1, 20, 20)
    found = sampler(TwoPoints(schedule), noise, nothing(10), seeded(10))
    assert ((found.abs() - 1).abs() < 0.05).double().mean() > 0.98
    assert (found > 0).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), STABLE_DIFFUSION, SCHEDULES[9]], ids=repr)
@pytest.mark.parametrize("sampler", NOISY, ids=repr)
def test_noisy_samplers_draw_from_the_data(schedule, sampler):
    """10 000 draws of two independent numbers, N(0.5, 0.3^2) and N(-1, 0.8^2)."""
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    std = torch.tensor([0.3, 0.8], dtype=torch.float64).reshape(1, 2, 1, 1)
    grid = LogSNRGrid(0.01, 50.0 if isinstance(schedule, RectifiedFlow) else None)
    sampler = replace(sampler, steps=500, grid=grid)
    drawn = sampler(
        GaussianData(schedule, mean, std), normal(10, 2, 100, 10), nothing(10), seeded(10)
    )
    drawn = ((drawn - mean) / std).transpose(0, 1).flatten(1)
    allowed = 4 / 10_000**0.5 + 0.01  # four deviations, and the steps' own error
    torch.testing.assert_close(drawn.mean(1), torch.zeros(2).double(), rtol=0, atol=allowed)
    torch.testing.assert_close(torch.cov(drawn), torch.eye(2).double(), rtol=0, atol=2 * allowed)


@pytest.mark.parametrize("sampler", [DDIM(8, eta=1.0), DPMSolver2M(8, eta=1.0), NOISY[3]], ids=repr)
def test_a_seed_gives_its_sample_in_any_batch(sampler):
    data, noise = GaussianData(Cosine()), normal(6, 1, 4, 4)
    whole = sampler(data, noise, nothing(6), seeded(6))
    part = sampler(data, noise[[4, 1]], nothing(2), draws_for_seeds([4, 1], CPU))
    torch.testing.assert_close(part, whole[[4, 1]], rtol=0, atol=0)


def test_latents_keep_their_type():
    latent = UniPC(5)(GaussianData(Cosine()), normal(2, 1, 4, 4).float(), nothing(2))
    assert latent.dtype == torch.float32


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_image_to_image_starts_on_the_way(sampler):
    """From t = strength the exact flow carries the noisy latent to the data."""
    schedule = Cosine()
    data = Counted(GaussianData(schedule))
    latent, noise = normal(2, 8, 1, 4, 4)
    reached = sampler(100)(data, noise, nothing(8), start=Start(latent, 0.4))
    alpha, sigma = schedule(torch.tensor(0.4, dtype=torch.float64))
    wanted = data.denoiser.flow(alpha * latent + sigma * noise, 0.4, 0.0)
    torch.testing.assert_close(reached, wanted, rtol=0, atol=0.05)
    assert len(data.rows) == (79 if sampler is Heun else 40)  # 40 of the 100 steps


@pytest.mark.parametrize("schedule", [RectifiedFlow(), STABLE_DIFFUSION, SCHEDULES[9]], ids=repr)
@pytest.mark.parametrize("sampler", [s(10) for s in DETERMINISTIC] + NOISY[:3], ids=repr)
def test_inpainting_keeps_the_mask_and_fills_the_rest(schedule, sampler):
    latent = normal(4, 2, 6, 6, seed=5)
    keep = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    keep[..., :3] = 1
    free = GaussianData(schedule)
    filled = sampler(Keeping(free, latent, keep), normal(4, 2, 6, 6), nothing(4), seeded(4))
    assert torch.equal(filled[..., :3], latent[..., :3])
    alone = sampler(free, normal(4, 2, 6, 6), nothing(4), seeded(4))
    torch.testing.assert_close(filled[..., 3:], alone[..., 3:])  # its cells are independent


def test_a_kept_region_is_the_latent_under_its_own_noise_at_every_step():
    schedule, latent, noise = RectifiedFlow(), normal(2, 1, 4, 4, seed=5), normal(2, 1, 4, 4)
    seen = []
    kept = Keeping(GaussianData(schedule), latent, torch.ones(2, 1, 4, 4, dtype=torch.float64))
    DDIM(5)(Watched(kept, lambda *step: seen.append(step)), noise, nothing(2))
    assert [t[0].item() for _, t, _ in seen] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    for x_t, t, estimate in seen:
        torch.testing.assert_close(x_t, (1 - t[0]) * latent + t[0] * noise)
        assert torch.equal(estimate.x0, latent)


def test_nan_is_reported_with_its_step_and_share():
    def network(x_t, t):
        return torch.where((t.reshape(-1, 1, 1, 1) < 0.75) & (x_t > x_t.median()), math.nan, x_t)

    denoiser = NetworkDenoiser(Function(network), RectifiedFlow(), Velocity())
    with pytest.raises(ValueError, match=r"in 50\.00% of its values at step 4 of 10 \(t = 0\.7"):
        DDIM(10)(denoiser, normal(2, 1, 4, 4), nothing(2))


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_no_steps_are_refused(sampler):
    with pytest.raises(ValueError, match="set steps=20"):
        sampler(0)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (lambda: DDIM(5, eta=1.5), "eta is 1.5"),
        (lambda: DPMSolver2M(5, eta=-0.1), "eta is -0.1"),
        (lambda: UniPC(5, order=4), "set order=2"),
        (lambda: Churn(-1.0), "amount >= 0"),
        (lambda: Start(torch.zeros(1, 1, 2, 2), 0.0), "strength is 0.0"),
        (lambda: Start(torch.zeros(1, 1, 2, 2), 1.2), "strength is 1.2"),
        (lambda: ShiftedGrid(0.0), "shift is 0.0"),
        (lambda: KarrasGrid()(RectifiedFlow(), 5), r"set grid\.sigma_max to e\.g\. 80"),
        (lambda: LogSNRGrid(sigma_max=99.0)(STABLE_DIFFUSION, 5), r"sigma_max <= 14\.6"),
        (lambda: TrailingGrid()(Cosine(), 1001), "set steps to less"),
        (lambda: LeadingGrid()(Cosine(), 1000), "set steps to less"),
        (
            lambda: DDIM(5, eta=1.0)(GaussianData(Cosine()), normal(1, 1, 2, 2), nothing(1)),
            "give it draws",
        ),
        (
            lambda: Keeping(GaussianData(Cosine()), normal(2, 4, 8, 8), torch.ones(1, 1, 64, 64)),
            "one cell for each",
        ),
    ],
)
def test_bad_settings_are_refused(action, says):
    with pytest.raises(ValueError, match=says):
        action()


def test_the_snr_grid_is_even():
    times = LogSNRGrid(0.01, 10.0)(Cosine(), 7)
    steps = log_snr(Cosine(), times[:-1]).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert times[-1] == 0


def test_the_karras_grid_is_eq_5():
    i = torch.arange(18, dtype=torch.float64)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = KarrasGrid()(SCHEDULES[9], 18)
    torch.testing.assert_close(SCHEDULES[9](times)[1], torch.cat([wanted, torch.zeros(1).double()]))
