"""The transformer: published sizes, and what must hold for any of its switches."""

import pytest
import torch

from ldm.models import DiT
from ldm.types import Condition

# Parameters of the released models, their fixed position table of 256 x width counted in.
PUBLISHED = {
    "S/2": (32_963_360, 384, 12, 6),
    "B/2": (130_512_416, 768, 12, 12),
    "L/2": (458_102_816, 1024, 24, 16),
    "XL/2": (675_129_632, 1152, 28, 16),
}
SWITCHES = [
    {},
    {"text_width": 12, "pooled_width": 6, "qk_norm": True},
    {"text_width": 12, "shared_modulation": True},
    {"classes": 5, "rms_norm": True, "swiglu": True, "rope": True, "registers": 3},
]


def tiny(**changes) -> DiT:
    torch.manual_seed(0)
    return DiT(4, width=16, depth=2, heads=2, **changes)


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """Random numbers where the published start has zeros, so that everything counts."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def told(rows: int = 2) -> Condition:
    mask = torch.ones(rows, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return Condition(torch.randn(rows, 5, 12), mask, torch.eye(6)[:rows])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_parameters(name: str) -> None:
    count, width, depth, heads = PUBLISHED[name]
    with torch.device("meta"):
        network = DiT(4, width=width, depth=depth, heads=heads, classes=1000, out_channels=8)
    assert sum(p.numel() for p in network.parameters()) + 256 * width == count


@pytest.mark.parametrize("switches", SWITCHES)
def test_the_start_predicts_zero(switches: dict) -> None:
    assert not tiny(**switches)(torch.randn(2, 4, 4, 6), torch.rand(2), told()).any()


@pytest.mark.parametrize("switches", SWITCHES)
def test_every_parameter_has_a_gradient(switches: dict) -> None:
    network = awake(tiny(**switches))
    network(torch.randn(6, 4, 4, 6), torch.rand(6), told(6)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_masked_tokens_have_no_influence() -> None:
    network = awake(tiny(text_width=12))
    x, t, condition = torch.randn(2, 4, 8, 8), torch.rand(2), told()
    changed = condition.tokens.clone()
    changed[0, 3:] += 1.0
    assert torch.equal(network(x, t, condition), network(x, t, Condition(changed, condition.mask)))


def test_twice_the_channels_where_the_variance_is_learned() -> None:
    out = tiny(out_channels=8)(torch.randn(2, 4, 4, 6), torch.rand(2), told())
    assert out.shape == (2, 8, 4, 6)


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny()(torch.randn(1, 4, 5, 4), torch.rand(1), told(1))
