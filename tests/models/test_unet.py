"""The U-Net: published sizes, and what must hold for any of its shapes."""

import pytest
import torch

from ldm.models import UNet
from ldm.types import Condition

PUBLISHED = {  # parameters of the released U-Nets, counted in their weight files
    "SD 1.5": (859_520_964, {"text_width": 768, "heads": [8, 8, 8, 8]}),
    "SD 2.1": (865_910_724, {"text_width": 1024, "heads": [5, 10, 20, 20]}),
    "SDXL": (
        2_567_463_684,
        {
            "text_width": 2048,
            "channels": [320, 640, 1280],
            "depths": [0, 2, 10],
            "heads": [5, 10, 20],
            "middle_depth": 10,
            "pooled_width": 2816,
        },
    ),
}


def tiny(**changes) -> UNet:
    torch.manual_seed(0)
    arguments = {
        "channels": [8, 16],
        "depths": [1, 1],
        "heads": [1, 2],
        "groups": 4,
        "residual_blocks": 1,
    }
    return UNet(4, 12, **(arguments | changes))


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """Random numbers where the published start has zeros, so that everything counts."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def told(rows: int = 2, length: int = 5, width: int = 12, pooled: int = 0) -> Condition:
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, 3:] = False
    return Condition(
        torch.randn(rows, length, width), mask, torch.randn(rows, pooled) if pooled else None
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_parameters(name: str) -> None:
    count, changes = PUBLISHED[name]
    arguments = {"channels": [320, 640, 1280, 1280], "depths": [1, 1, 1, 0]} | changes
    with torch.device("meta"):
        network = UNet(4, **arguments)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_start_predicts_zero() -> None:
    assert not tiny()(torch.randn(2, 4, 8, 8), torch.rand(2), told()).any()


def test_every_parameter_has_a_gradient() -> None:
    network = awake(tiny(pooled_width=6))
    network(torch.randn(2, 4, 8, 4), torch.rand(2), told(pooled=6)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_masked_tokens_have_no_influence_unless_padding_is_attended_to() -> None:
    x, t, condition = torch.randn(2, 4, 8, 8), torch.rand(2), told()
    changed = condition.tokens.clone()
    changed[0, 3:] += 1.0
    other = Condition(changed, condition.mask)
    network = awake(tiny())
    assert torch.equal(network(x, t, condition), network(x, t, other))
    network = awake(tiny(attend_padding=True))
    assert not torch.equal(network(x, t, condition)[0], network(x, t, other)[0])


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny()(torch.randn(1, 4, 7, 8), torch.rand(1), told(1))


def test_levels_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry a level"):
        tiny(heads=[1])


def test_a_pooled_condition_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"backbone\.pooled_width=0"):
        tiny(pooled_width=3)(torch.randn(1, 4, 8, 8), torch.rand(1), told(1))
