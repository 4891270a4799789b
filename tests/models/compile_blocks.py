"""Compiles each kind of block with fullgraph=True, and compares, also where a block is watched for
its alignment with frozen features. Run by test_unet_dit_mmdit.py."""

import torch

from ldm.models import DiT, MMDiT, TokenAlignment, UNet, compile_blocks
from ldm.types import Condition

torch.manual_seed(0)
condition = Condition(torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 6))
x, t = torch.randn(2, 4, 8, 4), torch.rand(2)
for network in (
    UNet(4, 12, channels=[8], depths=[1], heads=[1], groups=4, residual_blocks=1),
    DiT(4, width=16, depth=1, heads=2, text_width=12, rope=True, qk_norm=True, registers=1),
    DiT(4, width=16, depth=1, heads=2, shared_modulation=True, swiglu=True, rms_norm=True),
    MMDiT(4, 12, width=16, depth=2, heads=2, pooled_width=6, dual=1),
):
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = network(x, t, condition)
    # "eager" traces the whole graph, which is where breaks would show, without a C++ compiler
    compile_blocks(network, backend="eager")
    torch.testing.assert_close(network(x, t, condition), plain)


class Ones:
    """Features that do not look at the picture."""

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.ones(2, 10, 4, 2)]


def aligned(network: DiT, alignment: TokenAlignment) -> list[torch.Tensor]:
    """The prediction, the loss and its gradients."""
    network.zero_grad()
    with alignment.watching(network):
        out = network(x, t, condition)
    loss = alignment(torch.zeros(2, 3, 32, 16))
    loss.sum().backward()
    return [out, loss, *(p.grad for p in network.parameters() if p.grad is not None)]


network = DiT(4, width=16, depth=3, heads=2, text_width=12)
for parameter in network.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
alignment = TokenAlignment(Ones(), block=1, width=16, feature_width=10, hidden=12)
plain = aligned(network, alignment)
compile_blocks(network, backend="eager")
network(x, t, condition)  # a validation, of which nothing is kept
for _ in range(2):
    torch.testing.assert_close(aligned(network, alignment), plain)
network(x, t, condition)
assert alignment.seen is None
