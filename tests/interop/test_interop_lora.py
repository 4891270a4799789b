"""Low-rank weights of ours, read by diffusers through PEFT."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from ldm.interop.lora import FILE, lora_to_diffusers, write_lora
from ldm.interop.unet import DIFFUSERS, unet_table
from ldm.interop.unet_configs import unet_to_diffusers
from ldm.models import UNet
from ldm.models.lora import add_lora, lora_state
from ldm.types import Condition


def test_diffusers_computes_the_same_with_our_low_rank_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet(
        4, 6, channels=[8, 8], depths=[0, 1], heads=[1, 2], groups=4, attend_padding=True
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    table = unet_table(network, DIFFUSERS, convolutions=False)
    theirs = UNet2DConditionModel.from_config(unet_to_diffusers(network, 4))
    theirs.load_state_dict(table.give(network.state_dict()))
    x, t, tokens = torch.randn(2, 4, 4, 4), torch.rand(2), torch.randn(2, 3, 6)
    with torch.no_grad():
        plain = theirs(x, 1000 * t, tokens).sample
    add_lora(network, ["*.qkv", "*.key_value", "*.feed_forward.enter"], rank=2, alpha=1.0)
    for value in lora_state(network).values():
        value.normal_()
    theirs.load_lora_adapter(lora_to_diffusers(network, table), prefix=None)
    with torch.no_grad():
        ours = network(x, t, Condition(tokens, torch.ones(2, 3, dtype=torch.bool)))
        other = theirs(x, 1000 * t, tokens).sample
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
    assert (other - plain).abs().max() > 0.1
    write_lora(tmp_path, network, table, "unet")
    assert (tmp_path / FILE).is_file()
