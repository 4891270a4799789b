"""Memory and speed of a network's blocks: recomputed instead of kept, and compiled one by one."""

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.models.blocks import compile_blocks
from ldm.training.sharding import blocks_of


class Blocks(L.Callback):
    """Acts on the blocks of every network that is trained, before they are split over ranks.

    Every `recompute_every`-th block keeps only its input and is computed again in the backward
    pass (0: none). `compile` compiles each block on its own: equal blocks share the code, so it
    takes seconds. Weights and their names stay what they are.
    """

    def __init__(self, *, recompute_every: int = 0, compile: bool = False) -> None:
        if recompute_every < 0:
            raise ValueError(
                f"blocks.recompute_every={recompute_every}: set 0 for none, 1 for every block, 2 "
                "for every other"
            )
        self.recompute_every, self.compile = recompute_every, compile

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Once, when the training begins."""
        for child in module.children():
            network: Any = child
            trained = any(parameter.requires_grad for parameter in network.parameters())
            for number, block in enumerate(blocks_of(network)):
                if trained and self.recompute_every and number % self.recompute_every == 0:
                    block.forward = recomputed(block)
            if self.compile and blocks_of(network):
                compile_blocks(network)


def recomputed(block: nn.Module) -> Callable[..., Any]:
    """The block's forward, its activations made again when they are needed."""
    forward = block.forward

    def inner(*arguments: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False)

    return inner
