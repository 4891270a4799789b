"""The loss against its definition, learned variance against DDPM's posterior."""

import math

import pytest
import torch
from exact_denoisers import CPU, STABLE_DIFFUSION, Function, nothing, seeded
from torch.distributions import Normal, kl_divergence

from ldm.diffusion import (
    AngularVelocity,
    Cosine,
    DiscreteUniform,
    LearnedUncertainty,
    LearnedVariance,
    LogitNormal,
    MinSNR,
    Noise,
    Objective,
    RectifiedFlow,
    TimeBins,
    Uniform,
    Velocity,
)
from ldm.types import draws_for_seeds

x0 = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_weighted_error_of_what_the_network_saw():
    seen = {}

    def network(x_t, t):
        seen.update(x_t=x_t, t=t)
        return 0.3 * x_t

    objective = Objective(Cosine(), AngularVelocity(), Uniform(), MinSNR(2.0))
    loss = objective(Function(network), x0, nothing(6), seeded(6))
    angle = math.pi / 2 * seen["t"].reshape(-1, 1, 1, 1).double()
    noise = (seen["x_t"] - angle.cos() * x0) / angle.sin()
    error = 0.3 * seen["x_t"] - (angle.cos() * noise - angle.sin() * x0)
    snr = angle.flatten().tan() ** -2
    wanted = snr.clamp(max=2) / (snr + 1) * error.square().mean((1, 2, 3))
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(seen["t"], objective.draw_times(seeded(6)))


def test_a_rows_loss_does_not_depend_on_the_others():
    objective = Objective(RectifiedFlow(), Velocity(), LogitNormal(), stratified=False)
    network = Function(lambda x_t, t: x_t.square())
    whole = objective(network, x0, nothing(6), seeded(6))
    part = objective(network, x0[4:], nothing(2), draws_for_seeds([4, 5], CPU))
    assert torch.equal(whole[4:], part)


def test_offset_noise_moves_channels_by_its_width():
    """The mean of x_t where there is only noise: variance 1/64 of white noise, and 0.3^2."""
    many = torch.zeros(400, 4, 8, 8)
    means = []
    for offset in (0.0, 0.3):
        objective = Objective(
            RectifiedFlow(), Velocity(), LogitNormal(8.0, 0.01), offset_noise=offset
        )
        objective(
            Function(lambda x_t, t: means.append(x_t.mean((2, 3))) or x_t),
            many,
            nothing(400),
            seeded(400),
        )
    variances = [mean.var().item() for mean in means]
    assert variances == pytest.approx([1 / 64, 1 / 64 + 0.09], rel=0.15)


def test_input_perturbation_is_seen_by_the_network_and_not_by_the_target():
    inputs = []
    network = Function(lambda x_t, t: inputs.append(x_t) or torch.zeros_like(x_t))
    plain, perturbed = (
        Objective(RectifiedFlow(), Velocity(), Uniform(), input_perturbation=gamma)
        for gamma in (0.0, 0.1)
    )
    losses = [o(network, x0, nothing(6), seeded(6)) for o in (plain, perturbed)]
    assert torch.equal(*losses)  # a network that ignores its input
    sigma = plain.draw_times(seeded(6)).reshape(-1, 1, 1, 1)
    added = ((inputs[1] - inputs[0]) / sigma).std()
    assert added.item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("setting", ["offset_noise", "input_perturbation"])
def test_negative_widths_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} is -1"):
        Objective(RectifiedFlow(), Velocity(), Uniform(), **{setting: -1.0})


def test_learned_variance_is_the_kl_to_ddpms_posterior():
    """Ho et al. 2020, eq. 6 and 7, in their own terms, at steps 1, 500 and 999 of the table."""
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    beta = root**2
    product = (1 - beta).cumprod(0)
    i = torch.tensor([1, 500, 999])
    before = product[i - 1].reshape(-1, 1, 1, 1)
    now, step = product[i].reshape(-1, 1, 1, 1), beta[i].reshape(-1, 1, 1, 1)
    posterior = (1 - before) / (1 - now) * step
    to_mean = before.sqrt() * step / (1 - now)
    data, guess = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    width = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    log_variance = width * step.log() + (1 - width) * posterior.log()
    wanted = kl_divergence(
        Normal(to_mean * data, posterior.sqrt().expand_as(data)),
        Normal(to_mean * guess, (log_variance / 2).exp()),
    )
    got = LearnedVariance().loss(STABLE_DIFFUSION, data, guess, width, (i + 1).double() / 1000)
    torch.testing.assert_close(got, wanted.mean((1, 2, 3)) / math.log(2), rtol=1e-8, atol=1e-12)


def test_the_hybrid_loss_trains_the_width_and_leaves_the_prediction_alone():
    objective = Objective(STABLE_DIFFUSION, Noise(), DiscreteUniform(), variance=LearnedVariance())
    output = torch.zeros(6, 8, 8, 8, requires_grad=True)
    loss = objective(Function(lambda x_t, t: output), x0, nothing(6), seeded(6))
    (hybrid,) = torch.autograd.grad(loss.sum(), output)
    half = torch.zeros(6, 4, 8, 8, requires_grad=True)
    simple = Objective(STABLE_DIFFUSION, Noise(), DiscreteUniform())
    loss = simple(Function(lambda x_t, t: half), x0, nothing(6), seeded(6))
    (plain,) = torch.autograd.grad(loss.sum(), half)
    torch.testing.assert_close(hybrid[:, :4], plain)
    assert (hybrid[:, 4:].flatten(1).norm(dim=1) > 0).all()


def test_learned_uncertainty_starts_as_nothing_and_finds_the_mean_loss():
    uncertainty = LearnedUncertainty()
    t = torch.rand(256, generator=torch.Generator().manual_seed(2))
    loss = 1 + 3 * t  # known at each time
    assert torch.equal(uncertainty(loss, t), loss)
    optimizer = torch.optim.LBFGS(
        uncertainty.parameters(), max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = uncertainty(loss, t).mean()
        total.backward()
        return total

    optimizer.step(closure)
    learned = uncertainty(torch.zeros_like(loss), t).exp()
    torch.testing.assert_close(learned.detach(), loss, rtol=0.05, atol=0)


def test_time_bins_hold_sums_and_counts():
    bins = TimeBins(CPU)
    t = torch.tensor([0.0, 0.124, 0.13, 0.5, 1.0])
    for _ in range(2):
        bins.add(t, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], requires_grad=True))
    sums, counts = bins.take()
    assert sums.tolist() == [6, 8, 0, 0, 16, 0, 0, 32]
    assert counts.tolist() == [4, 2, 0, 0, 2, 0, 0, 2]
    assert bins.take().sum() == 0
    bins.add(t, torch.tensor([1.0, float("nan"), 4.0, 8.0, 16.0]))
    assert bins.take()[0].isnan().tolist() == [True] + 7 * [False]
