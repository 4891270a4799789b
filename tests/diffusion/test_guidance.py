"""Guidance against its formulas, and the number of passes it makes."""

from dataclasses import dataclass, field

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from exact_denoisers import Counted, GaussianData, normal

from ldm.diffusion import (
    DDIM,
    AngularVelocity,
    Cosine,
    Estimate,
    Guidance,
    Guided,
    NetworkDenoiser,
    Projected,
    RectifiedFlow,
    Rescaled,
    Straight,
    Thresholded,
)
from ldm.diffusion.schedules import columns
from ldm.types import Condition

schedule = Cosine()
t = torch.full((3,), 0.6, dtype=torch.float64)
x = normal(3, 2, 4, 4)


def told(mean: float, n: int = 3) -> Condition:
    return Condition(torch.full((n, 1, 1), mean), torch.ones(n, 1, dtype=torch.bool))


@dataclass(frozen=True)
class Listener:
    """The exact denoiser of N(token, 0.3^2): it believes what it is told."""

    rows: list[int] = field(default_factory=list)
    schedule = schedule

    def __call__(self, x_t, t, condition):
        self.rows.append(len(x_t))
        mean = condition.tokens.double().reshape(-1, 1, 1, 1)
        return GaussianData(schedule, mean)(x_t, t, condition)


def test_guidance_is_linear_in_noise_too():
    """Ho & Salimans state it for the noise: (1 + w) good - w bad, scale = 1 + w."""
    good, bad = Listener()(x, t, told(0.5)), Listener()(x, t, told(-0.2))
    guided = Guided(Listener(), told(-0.2), 3.0)(x, t, told(0.5))
    torch.testing.assert_close(guided.noise, 3 * good.noise - 2 * bad.noise)
    torch.testing.assert_close(guided.x0, 3 * good.x0 - 2 * bad.x0)


def test_scale_one_is_the_condition_bit_for_bit_in_one_pass():
    listener = Listener()
    guided = DDIM(10)(Guided(listener, told(-0.2), 1.0), x, told(0.5))
    assert listener.rows == [3] * 10
    assert torch.equal(guided, DDIM(10)(Listener(), x, told(0.5)))


def test_passes_double_inside_the_interval_only():
    listener = Listener()
    DDIM(10)(Guided(listener, told(-0.2), 2.0, Guidance(low=0.25, high=0.75)), x, told(0.5))
    assert listener.rows == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]  # t = 1.0, 0.9 ... 0.1


def test_rows_at_other_times_are_left_alone():
    times = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
    guided = Guided(Listener(), told(-0.2), 2.0, Guidance(low=0.5, high=0.7))(x, times, told(0.5))
    plain = Listener()(x, times, told(0.5))
    assert torch.equal(guided.x0[[0, 2]], plain.x0[[0, 2]])
    assert not torch.allclose(guided.x0[1], plain.x0[1])


def test_autoguidance_leads_away_from_the_weaker_network():
    strong = Counted(GaussianData(schedule, 0.5, 0.3))
    weak = Counted(GaussianData(schedule, 0.4, 0.6))
    guided = Guided(strong, told(0.5), 2.0, Guidance(weaker=weak))(x, t, told(0.5))
    good, bad = (d.denoiser(x, t, told(0.5)) for d in (strong, weak))
    torch.testing.assert_close(guided.x0, 2 * good.x0 - bad.x0)
    assert strong.rows == weak.rows == [3]


def test_rescaling_puts_the_deviation_back():
    good, bad = normal(2, 3, 2, 4, 4)
    straight = Straight()(good, bad, 5.0)
    torch.testing.assert_close(Rescaled(0.0)(good, bad, 5.0), straight)
    full = Rescaled(1.0)(good, bad, 5.0)
    torch.testing.assert_close(full.std((1, 2, 3)), good.std((1, 2, 3)))
    half = Rescaled(0.5)(good, bad, 5.0)
    torch.testing.assert_close(half, (full + straight) / 2)


def test_projection_adds_what_is_orthogonal_and_no_more_than_the_radius():
    good, bad = normal(2, 3, 2, 4, 4)
    torch.testing.assert_close(Projected(1.0)(good, bad, 5.0), Straight()(good, bad, 5.0))
    push = Projected(0.0)(good, bad, 5.0) - good
    torch.testing.assert_close((push * good).sum((1, 2, 3)), torch.zeros(3).double())
    short = Projected(1.0, radius=0.5)(good, bad, 5.0) - good
    torch.testing.assert_close(short.flatten(1).norm(dim=1), torch.full((3,), 2.0).double())


def test_momentum_and_projection_are_diffusers_apg():
    """Their function on the same estimates, step after step; a rise in t begins another run."""
    buffer = MomentumBuffer(-0.5)
    original = {"use_original_formulation": True}  # the paper's: the scale above 1, from good
    push = Projected(parallel=0.3, radius=2.0)
    guided = Guided(Listener(), told(-0.2), 4.0, Guidance(push, push_momentum=-0.5))
    times = [torch.full((3,), k / 5, dtype=torch.float64) for k in (5, 4, 3, 2)]
    ours = [guided(x, now, told(0.5)).x0 for now in times]
    for now, found in zip(times, ours, strict=True):
        good, bad = (Listener()(x, now, told(mean)).x0 for mean in (0.5, -0.2))
        wanted = normalized_guidance(good, bad, 3.0, buffer, 0.3, 2.0, **original)
        torch.testing.assert_close(found, wanted)
    again = [guided(x, now, told(0.5)).x0 for now in times]
    for first, second in zip(ours, again, strict=True):
        assert torch.equal(first, second)


def test_thresholding_bounds_what_is_too_wide_and_nothing_else():
    @dataclass(frozen=True)
    class Fixed:
        schedule = schedule

        def __call__(self, x_t, t, condition):
            x0 = torch.linspace(-1, 1, 101, dtype=torch.float64).reshape(1, 1, 1, 101)
            return Estimate(torch.cat([10 * x0, x0]), torch.zeros(2, 1, 1, 101).double())

    x_t = normal(2, 1, 1, 101)
    wide, narrow = Thresholded(Fixed(), limit=3.0, share=0.9)(x_t, t[:2], told(0.0, 2)).x0
    free = Fixed()(x_t, t, told(0.0)).x0
    torch.testing.assert_close(wide, free[0].clamp(-9, 9) / 3)  # nine tenths lie within 9
    assert torch.equal(narrow, free[1])


@pytest.mark.parametrize("push", [Straight(), Rescaled(), Projected()], ids=repr)
def test_a_guided_estimate_still_explains_its_input(push):
    estimate = Guided(Listener(), told(-0.2), 4.0, Guidance(push))(x, t, told(0.5))
    alpha, sigma = schedule(columns(t))
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.noise, x)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Guided(Listener(), told(0.0), -1.0), "scale is -1"),
        (lambda: Guidance(low=0.8, high=0.2), "no interval"),
        (lambda: Guidance(push_momentum=1.0), "guidance.push_momentum is 1.0"),
        (lambda: Guidance(limit=0.0), "guidance.limit is 0.0"),
        (lambda: Projected(radius=0.0), "push.radius is 0.0"),
        (lambda: Guided(Listener(), told(0.0, 1), 2.0)(x, t, told(0.0)), "1 rows for 3 samples"),
        (
            lambda: Guided(
                Listener(), told(0.0), 2.0, Guidance(weaker=GaussianData(RectifiedFlow()))
            ),
            "the same schedule",
        ),
        (lambda: Rescaled(1.5), r"push\.share is 1\.5"),
        (lambda: Thresholded(Listener(), 0.0), "limit is 0.0"),
        (lambda: Thresholded(Listener(), 3.0, 2.0), "share is 2.0"),
    ],
)
def test_bad_guidance_is_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_a_learned_width_is_the_good_estimates():
    class Network(torch.nn.Module):
        blocks = torch.nn.ModuleList()

        def forward(self, x_t, t, condition):
            return torch.cat([x_t, condition.tokens.reshape(-1, 1, 1, 1).expand_as(x_t)], 1)

    denoiser = NetworkDenoiser(Network(), schedule, AngularVelocity(), learned_width=True)
    width = Guided(denoiser, told(-1.0), 2.0)(x, t, told(0.5)).width
    assert (width == 0.75).all()
