"""All well-posed combinations of the algebra's parts train, and then sample what they were shown.

The data is -1 or +1 with a little spread, a pixel each, and the network two layers on (x_t, t). A
covering set, in which each pair of parts meets, is small; all objectives take minutes.
"""

from contextlib import nullcontext
from functools import cache
from itertools import combinations, product

import pytest
import torch
from exact_denoisers import CPU, SCHEDULES, TARGETS, nothing
from torch import nn

from ldm.diffusion import (
    DDIM,
    EDM,
    P2,
    Betas,
    CosMap,
    Data,
    DiscreteUniform,
    DPMSolver2M,
    Heun,
    LogitNormal,
    LogNormalSigma,
    MinSNR,
    Mode,
    Noise,
    Objective,
    Sigmoid,
    SigmoidELBO,
    TruncatedSNR,
    Uniform,
    UniPC,
    Unit,
    UnitVariance,
    Velocity,
    ZeroTerminalSNR,
)
from ldm.types import Draws

TIMES = [Uniform(), LogitNormal(), Mode(), CosMap(), LogNormalSigma(), DiscreteUniform()]
WEIGHTS = [Unit(), MinSNR(), TruncatedSNR(), EDM(), P2(), SigmoidELBO()]
SAMPLERS = [DDIM(25), DDIM(25, eta=1.0), Heun(12), DPMSolver2M(25), UniPC(25)]
AXES = [SCHEDULES[:-1], TARGETS, TIMES, WEIGHTS, SAMPLERS]
ROWS, COLUMNS, STEPS = 32, 64, 50
UNTRAINED = 0.4  # the samples of a network that knows nothing are farther than this: at 0.46


class Toy(nn.Module):
    """Two layers on (x_t, t) around the best straight-line guess of the target from x_t, scaled to
    what that guess leaves open: EDM's preconditioning, for any target. It starts at that guess."""

    def __init__(self, schedule, target):
        super().__init__()
        torch.manual_seed(0)
        self.schedule, self.target = schedule, target
        self.blocks = nn.ModuleList()
        self.layers = nn.Sequential(
            nn.Linear(9, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x_t, t, condition):
        t = t.reshape(-1, 1)
        alpha, sigma = self.schedule(t)
        a, b = self.target.coefficients(self.schedule, t)
        width = torch.hypot(alpha, sigma)
        guess = (a * alpha + b * sigma) / width**2
        left = (alpha * b - sigma * a).abs() / width
        angle = torch.atan2(sigma, alpha)
        x = x_t.flatten(1) / width
        waves = [wave(k * angle).expand_as(x) for k in (1, 2, 4) for wave in (torch.sin, torch.cos)]
        features = torch.stack([x, (2 * x).tanh(), (x * alpha / (sigma + 0.1)).tanh(), *waves], -1)
        found = self.layers(features).squeeze(-1)
        return (guess * x_t.flatten(1) + left * found).reshape(x_t.shape)


def draws(step):
    return Draws(seed=1, step=step, rows=range(ROWS), total=ROWS, device=CPU)


@cache
def data(step):
    x0 = draws(step).uniform((1, 1, COLUMNS), "side").round() * 2 - 1
    return x0 + 0.1 * draws(step).normal((1, 1, COLUMNS), "spread")


def distance(objective, sampler, steps=STEPS):
    """Wasserstein-1 between 2048 samples after `steps` of training and as many data."""
    network = Toy(objective.schedule, objective.target)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, fused=True)
    condition = nothing(ROWS)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        loss = objective(network, data(step), condition, draws(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    noise = draws(99).normal((1, 1, COLUMNS), "start")
    drawn = sampler(objective.denoiser(network), noise, condition, draws(99))
    return (drawn.flatten().sort().values - data(100).flatten().sort().values).abs().mean().item()


def parts(choice):
    return [axis[k] for axis, k in zip(AXES, choice, strict=True)]


def is_ill_posed(schedule, target, times, weight):
    """The rule, stated apart from the code that finds it out by numbers."""
    reaches_pure_noise = not isinstance(schedule, Betas | UnitVariance)
    if isinstance(target, Noise) and reaches_pure_noise:
        return True
    if isinstance(target, Velocity) and isinstance(schedule, Sigmoid):
        return True  # alpha falls vertically at t = 1
    grows = isinstance(weight, EDM | TruncatedSNR)
    if grows and isinstance(target, Velocity) and isinstance(schedule, UnitVariance):
        return isinstance(times, Uniform | Mode | CosMap)  # t^-12, and t down to 2^-25
    like_snr = isinstance(target, Data) and grows
    smooth_start = not isinstance(schedule, Betas | Sigmoid | ZeroTerminalSNR)  # sigma ~ t or less
    if like_snr and isinstance(schedule, UnitVariance):
        return not isinstance(times, LogNormalSigma)  # SNR ~ t^-14
    return like_snr and smooth_start and not isinstance(times, LogNormalSigma | LogitNormal)


EVERYTHING = [
    choice
    for choice in product(*(range(len(axis)) for axis in AXES))
    if not is_ill_posed(*parts(choice)[:4])
]


def pairs(choice):
    return set(combinations(enumerate(choice), 2))


def covering():
    """A few choices in which all pairs meet that meet in any, picked greedily among some."""
    missing = set().union(*map(pairs, EVERYTHING))
    generator = torch.Generator().manual_seed(0)
    chosen = []
    while missing:
        some = torch.randint(len(EVERYTHING), (60,), generator=generator).tolist()
        best = max((EVERYTHING[k] for k in some), key=lambda choice: len(missing & pairs(choice)))
        if missing & pairs(best):
            missing -= pairs(best)
            chosen.append(best)
    return chosen


def name(choice):
    return "-".join(type(part).__name__ for part in parts(choice))


def test_exactly_the_ill_posed_are_refused():
    for schedule, target, times, weight in product(*AXES[:4]):
        expected = nullcontext()
        if is_ill_posed(schedule, target, times, weight):
            expected = pytest.raises(ValueError, match="set target to")
        with expected:
            Objective(schedule, target, times, weight)


def limit(schedule, target, times, weight):
    """The loss on the data itself hardly counts the clean end, and these times rarely see it; fifty
    steps leave some of it to do (0.32 on the slowest schedule, where 200 steps reach 0.14)."""
    late = isinstance(target, Data) and isinstance(weight, Unit) and isinstance(times, LogitNormal)
    return 0.35 if late else 0.2


class Earliest:
    """The smallest t that is ever drawn."""

    def quantile(self, u, schedule):
        return torch.full_like(u, 2**-25)


def test_the_loss_is_finite_where_noise_vanishes():
    """Squares of what is left of the noise there are smaller than float32 can tell from 0."""
    for schedule, target, weight in product(AXES[0], AXES[1], WEIGHTS):
        if not is_ill_posed(schedule, target, Uniform(), weight):
            objective = Objective(schedule, target, Earliest(), weight)
            loss = objective(Toy(schedule, target), data(0), nothing(ROWS), draws(0))
            assert loss.isfinite().all()


def test_untrained_networks_are_far_from_the_data():
    for schedule, target in product(*AXES[:2]):
        if not is_ill_posed(schedule, target, Uniform(), Unit()):
            far = distance(Objective(schedule, target, Uniform()), DDIM(25), steps=0)
            assert far > UNTRAINED


def learns(choice, sampler):
    """Whether fifty steps bring its samples near the data; the few that learn more slowly, as the
    weight on the clean end is small, get two hundred."""
    *arguments, _ = parts(choice)
    objective, near = Objective(*arguments), limit(*arguments)
    return distance(objective, sampler) < near or distance(objective, sampler, 4 * STEPS) < near


@pytest.mark.parametrize("choice", covering(), ids=name)
def test_a_covering_set_trains_and_samples(choice):
    assert learns(choice, parts(choice)[-1])


@pytest.mark.slow
@pytest.mark.parametrize("choice", EVERYTHING[:: len(SAMPLERS)], ids=name)
def test_every_objective_trains_and_samples(choice):
    """Each once, with the samplers in turn."""
    assert learns(choice, SAMPLERS[EVERYTHING.index(choice) // len(SAMPLERS) % len(SAMPLERS)])
