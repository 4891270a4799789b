"""Weights against the papers' formulas for each target, and against each other."""

import pytest
import torch
from exact_denoisers import SCHEDULES, STABLE_DIFFUSION, TARGETS, Function, normal, nothing, seeded
from torch import nn

from ldm.diffusion import (
    EDM,
    P2,
    AngularVelocity,
    Cosine,
    Data,
    LogitNormal,
    MinSNR,
    Noise,
    Objective,
    Preconditioned,
    RectifiedFlow,
    SigmoidELBO,
    TruncatedSNR,
    Uniform,
    VarianceExploding,
    Velocity,
    log_snr,
)

t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
WEIGHTS = [MinSNR(), TruncatedSNR(), EDM(), P2(), SigmoidELBO(-1.0)]


@pytest.mark.parametrize("schedule", [Cosine(), STABLE_DIFFUSION], ids=repr)
@pytest.mark.parametrize(
    ("target", "formula"),
    [
        (Noise(), lambda snr: snr.clamp(max=5) / snr),
        (Data(), lambda snr: snr.clamp(max=5)),
        (AngularVelocity(), lambda snr: snr.clamp(max=5) / (snr + 1)),
    ],
)
def test_min_snr_is_hang_et_al_2023(schedule, target, formula):
    torch.testing.assert_close(
        MinSNR(5.0)(schedule, target, t), formula(log_snr(schedule, t).exp())
    )


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), STABLE_DIFFUSION], ids=repr)
@pytest.mark.parametrize(
    ("weight", "target", "formula"),
    [
        (P2(0.7, 1.5), Noise(), lambda snr: (0.7 + snr) ** -1.5),
        (TruncatedSNR(), Data(), lambda snr: snr.clamp(min=1)),
        (EDM(0.5), Data(), lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
    ],
)
def test_other_weights_are_their_papers(schedule, weight, target, formula):
    torch.testing.assert_close(weight(schedule, target, t), formula(log_snr(schedule, t).exp()))


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), STABLE_DIFFUSION], ids=repr)
def test_sigmoid_weight_is_the_papers_integrand(schedule):
    """sigmoid(b - lambda) * -d lambda/dt on the noise, the rate from autograd."""
    at = (t + 1e-5).requires_grad_()
    (rate,) = torch.autograd.grad(log_snr(schedule, at).sum(), at)
    wanted = -rate * torch.sigmoid(-2.0 - log_snr(schedule, at.detach()))
    torch.testing.assert_close(SigmoidELBO(-2.0)(schedule, Noise(), at.detach()), wanted)


@pytest.mark.parametrize("data_std", [0.5, 1.0])
def test_edms_weight_is_one_on_its_own_target(data_std):
    weight = EDM(data_std)(VarianceExploding(), Preconditioned(data_std), t)
    torch.testing.assert_close(weight, torch.ones_like(t))


@pytest.mark.parametrize("schedule", [RectifiedFlow(), STABLE_DIFFUSION, SCHEDULES[6]], ids=repr)
@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_one_weight_on_any_target_gives_one_gradient(schedule, weight):
    """The same model of x_0, read as each target in turn, is pulled the same way."""
    gradients = []
    for target in TARGETS:
        model = nn.Conv2d(1, 1, 1).double()
        nn.init.constant_(model.weight, 0.7)
        nn.init.constant_(model.bias, -0.2)

        def network(x_t, t, target=target, model=model):
            t = t.reshape(-1, 1, 1, 1)
            (alpha, sigma), (a, b) = schedule(t), target.coefficients(schedule, t)
            x0 = model(x_t)
            return a * x0 + b * (x_t - alpha * x0) / sigma

        objective = unchecked(schedule, target, weight)
        loss = objective(Function(network), normal(8, 1, 2, 2), nothing(8), seeded(8))
        loss.mean().backward()
        gradients.append(torch.cat([model.weight.grad.flatten(), model.bias.grad]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-8, atol=0)


def unchecked(schedule, target, weight):
    """An objective that sampling perhaps cannot use: its loss is defined all the same."""
    objective = Objective(schedule, AngularVelocity(), LogitNormal())
    object.__setattr__(objective, "target", target)
    object.__setattr__(objective, "weight", weight)
    return objective


@pytest.mark.parametrize(
    ("schedule", "target", "weight", "says"),
    [
        (RectifiedFlow(), Noise(), MinSNR(), "nothing of the data at t = 1"),
        (SCHEDULES[4], Velocity(), MinSNR(), "nothing of the data at t = 1"),
        (SCHEDULES[5], Noise(), MinSNR(), "nothing of the data at t = 1"),
        (RectifiedFlow(), Data(), EDM(), "grows without bound"),
        (Cosine(), Data(), TruncatedSNR(), "grows without bound"),
    ],
    ids=repr,
)
def test_ill_posed_objectives_are_refused_with_the_remedy(schedule, target, weight, says):
    with pytest.raises(ValueError, match=says) as caught:
        Objective(schedule, target, Uniform(), weight)
    assert "set target to AngularVelocity()" in str(caught.value)
    Objective(schedule, AngularVelocity(), Uniform(), weight)
