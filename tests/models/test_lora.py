"""Low-rank adaptation: what it may change, and that merging changes nothing."""

import copy

import pytest
import torch

from ldm.models import DiT, MMDiT, UNet
from ldm.models.lora import add_lora, load_lora, lora_state, merge_lora
from ldm.types import Condition

MADE = {
    "unet": lambda: UNet(4, 6, channels=[8], depths=[1], heads=[2], groups=4, residual_blocks=1),
    "dit": lambda: DiT(4, width=16, depth=1, heads=2, text_width=6),
    "mmdit": lambda: MMDiT(4, 6, width=16, depth=2, heads=2),
}


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = MADE[name]()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def inputs() -> tuple[torch.Tensor, torch.Tensor, Condition]:
    torch.manual_seed(1)
    condition = Condition(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    return torch.randn(2, 4, 4, 4), torch.rand(2), condition


@pytest.mark.parametrize("name", MADE)
def test_a_new_difference_is_nothing_and_training_moves_only_it(name: str) -> None:
    made = network(name)
    plain = made(*inputs())
    before = copy.deepcopy(made.state_dict())
    paths = add_lora(made, ["*attention*qkv", "*.feed_forward.*"], rank=2)
    assert len(paths) >= 3
    torch.testing.assert_close(made(*inputs()), plain, atol=1e-5, rtol=1e-5)
    trained = [n for n, p in made.named_parameters() if p.requires_grad]
    assert {n.rsplit(".", 1)[1] for n in trained} == {"down", "up"}
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.3)
    for _ in range(2):
        made(*inputs()).square().mean().backward()
        optimizer.step()
    assert (made(*inputs()) - plain).abs().max() > 1e-3
    after = {n.replace(".base.", "."): v for n, v in made.state_dict().items()}
    assert all(torch.equal(after[n], value) for n, value in before.items())


@pytest.mark.parametrize("name", MADE)
def test_merged_equals_unmerged(name: str) -> None:
    made = network(name).double()
    names = list(made.state_dict())
    add_lora(made, ["*"], rank=1, alpha=3.0)
    for value in lora_state(made).values():
        value.normal_(std=0.1)
    beside = made(*(_double(inputs())))
    merge_lora(made)
    assert list(made.state_dict()) == names
    torch.testing.assert_close(made(*(_double(inputs()))), beside, atol=1e-6, rtol=0)


def _double(given: tuple) -> tuple:
    x, t, condition = given
    return x.double(), t.double(), Condition(condition.tokens.double(), condition.mask)


def test_saved_and_loaded_again() -> None:
    one, two = network("dit"), network("dit")
    for made in (one, two):
        add_lora(made, ["*.qkv"], rank=2)
    for value in lora_state(one).values():
        value.normal_()
    load_lora(two, copy.deepcopy(lora_state(one)))
    assert torch.equal(one(*inputs()), two(*inputs()))
    with pytest.raises(ValueError, match=r"do not fit the network: blocks\.0\.attention\.qkv\.up"):
        load_lora(two, {n: v for n, v in lora_state(one).items() if n.endswith("down")})


def test_targets_that_fit_nothing_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['\*\.to_q'\] fit no linear layer"):
        add_lora(network("dit"), ["*.qkv", "*.to_q"], rank=1)


def test_a_rank_that_is_not_low_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=17"):
        add_lora(network("dit"), ["*.qkv"], rank=17)
