"""Samplers against the installed diffusers schedulers: one network, one grid, one noise."""

import math
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
from exact_denoisers import STABLE_DIFFUSION, Function, normal, nothing, seeded

from ldm.diffusion import (
    DDIM,
    AngularVelocity,
    Data,
    DPMSolver2M,
    DPMSolver3M,
    Euler,
    Heun,
    LeadingGrid,
    LinspaceGrid,
    NetworkDenoiser,
    Noise,
    RectifiedFlow,
    ShiftedGrid,
    TrailingGrid,
    UniPC,
    Velocity,
    Watched,
    ZeroTerminalSNR,
    log_snr,
)

pytestmark = pytest.mark.filterwarnings(  # theirs, under NumPy 2
    "ignore:__array__ implementation:DeprecationWarning"
)
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TARGETS = {"epsilon": Noise(), "v_prediction": AngularVelocity(), "sample": Data()}
noise = normal(2, 3, 4, 4)
STEPS = [10, 20, 50]


def smooth(x, step):
    """Stands in for a network: not linear, and different at each step of the table."""
    return 0.6 * x + 0.3 * torch.sin(2 * x + step / 200)


def ours(sampler, schedule, target, *, width=False, first=1.0):
    def network(x_t, t):
        step = 1000 * t.reshape(-1, 1, 1, 1) - (0 if isinstance(schedule, RectifiedFlow) else 1)
        out = smooth(x_t, step)
        return torch.cat([out, torch.cos(out)], dim=1) if width else out

    denoiser = NetworkDenoiser(Function(network), schedule, target, width)
    return sampler(denoiser, noise * first, nothing(2), seeded(2))


def theirs(scheduler, x, monkeypatch=None, *, width=False):
    """Their loop; their noise is replaced by ours, step by step."""
    if monkeypatch is not None:
        module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
        drawn = iter(range(1000))
        monkeypatch.setattr(
            module,
            "randn_tensor",
            lambda *_, **__: seeded(2).normal((3, 4, 4), f"step {next(drawn)}").double(),
        )
    for step in scheduler.timesteps:
        out = smooth(scheduler.scale_model_input(x, step), step)
        out = torch.cat([out, torch.cos(out)], dim=1) if width else out
        x = scheduler.step(out, step, x).prev_sample
    return x.double()


def precise(scheduler):
    """Their table in double precision: their single-precision one is wrong by 1e-4 in sigma^2 at
    its clean end, which is not what is compared here."""
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    scheduler.betas = root**2
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def agree(got, wanted):
    assert ((got - wanted).norm() / wanted.norm()).item() < 1e-5


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim(kind, steps, spacing):
    scheduler = precise(
        diffusers.DDIMScheduler(
            **TABLE,
            prediction_type=kind,
            clip_sample=False,
            timestep_spacing=spacing,
            steps_offset=1,
            set_alpha_to_one=spacing == "trailing",
        )
    )
    if spacing == "leading":  # as Stable Diffusion 1 is published
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    grid = TrailingGrid() if spacing == "trailing" else LeadingGrid(last=0.001)
    agree(ours(DDIM(steps, grid), STABLE_DIFFUSION, TARGETS[kind]), theirs(scheduler, noise))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", TARGETS)
def test_ddpm(kind, steps, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        **TABLE, prediction_type=kind, clip_sample=False, timestep_spacing="trailing"
    )
    precise(scheduler).set_timesteps(steps)
    wanted = theirs(scheduler, noise, monkeypatch)
    agree(ours(DDIM(steps, TrailingGrid(), 1.0), STABLE_DIFFUSION, TARGETS[kind]), wanted)


@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_with_a_learned_variance_as_dit_has_it(steps, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        **TABLE, variance_type="learned_range", clip_sample=False, timestep_spacing="linspace"
    )
    precise(scheduler).set_timesteps(steps)
    wanted = theirs(scheduler, noise, monkeypatch, width=True)
    got = ours(DDIM(steps, LinspaceGrid(), 1.0), STABLE_DIFFUSION, Noise(), width=True)
    agree(got, wanted)


IN_SIGMA = [
    (diffusers.EulerDiscreteScheduler, Euler),
    (diffusers.EulerAncestralDiscreteScheduler, lambda s, g: DDIM(s, g, 1.0)),
    (diffusers.HeunDiscreteScheduler, Heun),
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("theirs_is", "sampler"), IN_SIGMA)
def test_samplers_in_sigma(theirs_is, sampler, kind, steps, monkeypatch):
    """They hold x / alpha, so they start at ours over alpha."""
    scheduler = theirs_is(**TABLE, prediction_type=kind, timestep_spacing="trailing")
    precise(scheduler).set_timesteps(steps)
    alpha, _ = STABLE_DIFFUSION(torch.ones((), dtype=torch.float64))
    ancestral = theirs_is is diffusers.EulerAncestralDiscreteScheduler
    wanted = theirs(scheduler, noise / alpha, monkeypatch if ancestral else None)
    agree(ours(sampler(steps, TrailingGrid()), STABLE_DIFFUSION, TARGETS[kind]), wanted)


MULTISTEP = [
    (diffusers.DPMSolverMultistepScheduler, {}, DPMSolver2M),
    (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++"},
        lambda s, g: DPMSolver2M(s, g, 1.0),
    ),
    (diffusers.UniPCMultistepScheduler, {}, UniPC),
    (diffusers.UniPCMultistepScheduler, {"solver_order": 3}, lambda s, g: UniPC(s, g, 3)),
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(("theirs_is", "settings", "sampler"), MULTISTEP)
def test_multistep_samplers(theirs_is, settings, sampler, kind, steps, monkeypatch):
    scheduler = theirs_is(**TABLE, prediction_type=kind, timestep_spacing="trailing", **settings)
    precise(scheduler).set_timesteps(steps)
    monkeypatch = monkeypatch if "algorithm_type" in settings else None
    wanted = theirs(scheduler, noise, monkeypatch)
    agree(ours(sampler(steps, TrailingGrid()), STABLE_DIFFUSION, TARGETS[kind]), wanted)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [Euler, DDIM])
def test_flow_matching_euler(sampler, shift, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    wanted = noise
    for step in scheduler.timesteps:
        wanted = scheduler.step(smooth(wanted, step), step, wanted).prev_sample
    got = ours(sampler(steps, ShiftedGrid(shift)), RectifiedFlow(), Velocity())
    agree(got, wanted.double())


@dataclass(frozen=True)
class Given:
    """Stops at given times."""

    times: torch.Tensor

    def __call__(self, schedule, steps):
        return self.times.double()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("theirs_is", "sampler"),
    [
        (diffusers.DPMSolverMultistepScheduler, DPMSolver2M),
        (diffusers.UniPCMultistepScheduler, UniPC),
    ],
)
def test_multistep_samplers_on_a_flow(theirs_is, sampler, steps):
    """At their own times, which begin a little below 1."""
    scheduler = theirs_is(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(steps)
    wanted = noise
    for step, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        wanted = scheduler.step(smooth(wanted, 1000 * sigma), step, wanted).prev_sample
    first = scheduler.sigmas[0].double()
    start = 1 / torch.hypot(1 - first, first)  # ours begins as wide as x_t is there
    got = ours(sampler(steps, Given(scheduler.sigmas)), RectifiedFlow(), Velocity(), first=start)
    agree(got, wanted.double())


def test_third_order_is_theirs_but_for_half_of_the_bend():
    """Three steps, of first, second and third order: theirs gives the parabola's bend half its
    weight in the last, which is told from the estimates at the three stops."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **TABLE,
        solver_order=3,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
        prediction_type="sample",
        timestep_spacing="trailing",
    )
    precise(scheduler).set_timesteps(3)
    wanted = theirs(scheduler, noise)
    times = torch.cat([(scheduler.timesteps + 1) / 1000, torch.tensor([0.001])])
    seen = []
    network = Function(lambda x_t, t: smooth(x_t, 1000 * t.reshape(-1, 1, 1, 1) - 1))
    denoiser = NetworkDenoiser(network, STABLE_DIFFUSION, Data())
    watched = Watched(denoiser, lambda x_t, t, estimate: seen.append(estimate.x0))
    got = DPMSolver3M(3, Given(times))(watched, noise, nothing(2))
    a, b, c, d = (log_snr(STABLE_DIFFUSION, times.double()) / 2).tolist()
    first, second, third = seen
    bend = ((third - second) / (c - b) - (second - first) / (b - a)) / (c - a)
    alpha, _ = STABLE_DIFFUSION(times[-1].double())
    h = d - c
    half = alpha * (math.expm1(-h) + h - h**2 / 2) * bend
    assert half.norm() > 1e-3 * wanted.norm()
    agree(got + half, wanted)


@pytest.mark.parametrize("steps", STEPS)
def test_zero_terminal_snr(steps):
    scheduler = precise(
        diffusers.DDIMScheduler(
            **TABLE, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
        )
    )
    alpha = scheduler.alphas_cumprod.sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    scheduler.alphas_cumprod = alpha.square()
    scheduler.set_timesteps(steps)
    schedule = ZeroTerminalSNR(STABLE_DIFFUSION)
    agree(ours(DDIM(steps, TrailingGrid()), schedule, AngularVelocity()), theirs(scheduler, noise))
