"""Schedules in closed form; Muon against singular vectors and AdamW; averages in closed form."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from ldm.training.ema import follow, gradual_decay, twin
from ldm.training.muon import Muon, orthogonal
from ldm.training.optim import warmup_constant, warmup_cosine, warmup_linear


def rates(make: Any, count: int, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer, **settings)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_all_rise_linearly_and_fall_as_named() -> None:
    for make in (warmup_constant, warmup_cosine, warmup_linear):
        settings = {} if make is warmup_constant else {"steps": 20}
        assert rates(make, 5, warmup=4, **settings) == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates(warmup_constant, 3) == [2.0, 2.0, 2.0]
    cosine = rates(warmup_cosine, 12, steps=10, final=0.1)
    assert cosine[5] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert cosine[2] == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(0.2 * math.pi))))
    assert cosine[10:] == pytest.approx([0.2, 0.2])
    assert rates(warmup_linear, 12, steps=10, final=0.5)[5:] == pytest.approx(
        [1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 1.0]
    )


def test_a_warmup_that_never_ends_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"warmup=10 does not end before module\.lr_schedule\.steps=10"
    ):
        rates(warmup_cosine, 1, steps=10, warmup=10)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 9)])
def test_orthogonal_keeps_singular_vectors_and_evens_singular_values(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonal(matrix) @ right.T
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9
    assert inside.diagonal().min() > 0.6
    assert inside.diagonal().max() < 1.3
    assert (orthogonal(matrix.float()) - orthogonal(matrix)).abs().max() < 0.05


def test_vectors_step_as_adamw_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings: Any = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2}
    optimizers = [Muon([ours], **settings), torch.optim.AdamW([theirs], **settings)]
    for _ in range(5):
        gradient = torch.randn(7, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_matrix_step_has_the_size_of_adams_and_the_rate_scales_it() -> None:
    for shape in ((64, 64), (16, 8, 3, 3)):
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([parameter], lr=0.5).step()
        assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(
            0.5 * 0.2, rel=0.25
        )


def test_muon_resumes_from_its_state() -> None:
    torch.manual_seed(0)
    whole, again = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = Muon(whole.parameters(), lr=0.1)

    def step(network: nn.Module, optimizer: Muon, seed: int) -> None:
        for parameter in network.parameters():
            generator = torch.Generator().manual_seed(seed)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    step(whole, optimizer, 1)
    again.load_state_dict(whole.state_dict())
    resumed = Muon(again.parameters(), lr=0.7)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    step(whole, optimizer, 2)
    step(again, resumed, 2)
    assert torch.equal(whole.weight, again.weight)
    assert torch.equal(whole.bias, again.bias)


def test_a_closure_is_called_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(2))

    def closure() -> torch.Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss.detach()

    assert float(Muon([parameter], lr=0.1).step(closure)) == 2
    assert float(parameter.detach().max()) < 1


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="lr=0"):
        Muon([nn.Parameter(torch.zeros(2))], lr=0.0)


def test_the_average_is_the_weighted_sum_of_what_it_followed() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = twin(network)
    first = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.fill_(3.0)
        network[1].running_mean.fill_(7.0)
    follow(average, network, 0.75)
    follow(average, network, 0.75)
    assert torch.allclose(average[0].weight, first * 0.75**2 + 3.0 * (1 - 0.75**2))
    assert torch.equal(average[1].running_mean, torch.full((2,), 7.0))
    assert not any(p.requires_grad for p in average.parameters())
    assert not average.training


def test_an_average_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="the average has 2 parameters, the network 4"):
        follow(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.9)


def test_the_decay_is_reached_gradually() -> None:
    assert gradual_decay(0.99, 0) == pytest.approx(0.1)
    assert gradual_decay(0.99, 80) == pytest.approx(0.9)
    assert gradual_decay(0.99, 10**6) == 0.99
