"""Adversarial losses in closed form, the critic's locality, its calendar, R1 and LeCAM."""

import math

import pytest
import torch
from torch import nn

from ldm.models import CriticLoss, Hinge, NonSaturating, PatchCritic, Vanilla

REAL, FAKE = torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([[[[0.5, -3.0]]]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_losses_equal_their_formulas() -> None:
    hinge = 0.5 * ((0 + 2) / 2 + (1.5 + 0) / 2)
    assert float(Hinge().caught(REAL, FAKE)) == pytest.approx(hinge)
    assert float(Hinge().fooled(FAKE)) == pytest.approx(1.25)
    entropy = (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(-3)) / 2
    assert float(NonSaturating().caught(REAL, FAKE)) == pytest.approx(entropy)
    assert float(NonSaturating().fooled(FAKE)) == pytest.approx((softplus(-0.5) + softplus(3)) / 2)
    assert float(Vanilla().caught(REAL, FAKE)) == pytest.approx(entropy / 2)
    assert float(Vanilla().fooled(FAKE)) == pytest.approx(1.25)


def test_a_picture_is_judged_alone() -> None:
    torch.manual_seed(0)
    critic = PatchCritic(width=8, layers=2, groups=4)
    images = torch.randn(5, 3, 32, 32)
    alone = torch.cat([critic(image[None]) for image in images])
    assert torch.allclose(critic(images), alone, atol=1e-5)
    assert critic(images).shape[:2] == (5, 1)


def test_the_calendar() -> None:
    loss = CriticLoss(nn.Conv2d(3, 1, 1), Hinge(), weight=0.8, start=10, ramp=4)
    assert [loss.active(step) for step in (9, 10)] == [False, True]
    assert [loss.pressure(step) for step in (0, 9, 10, 11, 14, 99)] == pytest.approx(
        [0, 0, 0, 0.2, 0.8, 0.8]
    )
    assert CriticLoss(nn.Conv2d(3, 1, 1), Hinge(), weight=0.8).pressure(0) == 0.8


def test_r1_is_half_the_squared_slope_of_real_pictures() -> None:
    network = nn.Conv2d(3, 1, 1)
    plain, penalised = (CriticLoss(network, Hinge(), r1=r1) for r1 in (0.0, 6.0))
    image, made = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    extra = penalised.caught(image, made).loss - plain.caught(image, made).loss
    slope = network.weight.square().sum() * 4 * 5  # of the sum over patches, the same everywhere
    assert float(extra.detach()) == pytest.approx(float(3.0 * slope.detach()), rel=1e-4)
    penalised.caught(image, made).loss.backward()
    assert network.weight.grad is not None


def test_lecam_pulls_each_side_to_the_others_running_mean() -> None:
    network = nn.Conv2d(3, 1, 1)
    plain, calm = CriticLoss(network, Hinge()), CriticLoss(network, Hinge(), lecam=0.5)
    image, made = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    real, fake = network(image).detach(), network(made).detach()
    for turn in (image, 3 * image):  # two turns are one step
        calm.caught(turn, made)
    calm.stepped()
    remembered = 0.01 * 0.5 * (real.mean() + network(3 * image).detach().mean()), 0.01 * fake.mean()
    assert float(calm.real_mean) == pytest.approx(float(remembered[0]), rel=1e-4)
    assert float(calm.fake_mean) == pytest.approx(float(remembered[1]), rel=1e-4)
    extra = calm.caught(image, made).loss - plain.caught(image, made).loss
    expected = (real - remembered[1]).square().mean() + (fake - remembered[0]).square().mean()
    assert float(extra.detach()) == pytest.approx(0.5 * float(expected), rel=1e-4)


def test_lecam_forgets_what_is_not_finite() -> None:
    calm = CriticLoss(nn.Conv2d(3, 1, 1), Hinge(), lecam=0.5)
    image, made = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    calm.caught(torch.full_like(image, float("nan")), made)
    calm.stepped()
    calm.stepped()
    assert (float(calm.real_mean), float(calm.fake_mean)) == (0.0, 0.0)


def test_accuracy_is_the_share_of_patches_told_right() -> None:
    network = nn.Conv2d(3, 1, 1)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    image, made = torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    made[..., 0] = -1
    assert float(CriticLoss(network, Hinge()).caught(image, made).opinion.accuracy) == 0.75
